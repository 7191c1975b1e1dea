"""The data pipeline alone: clips a second from a folder of FLAC files (of synthetic speech).

No worker processes, as on a small machine; each clip is a crop of 0.96 s, levelled. What the trainer of
`configs/lite.py` takes is in `lite_step`.
"""

import itertools
import pathlib
import tempfile
import time

from affectcodec_jax import config as config_lib
from affectcodec_jax.audio import write_audio
from affectcodec_jax.data import pipeline
from affectcodec_jax.data.synthetic import SyntheticSource
from configs import lite

FILES, SECONDS, BATCHES = 200, 4.0, 50


def run(threads, rounds):
  """One row."""
  del threads
  config = lite.get_config()
  with tempfile.TemporaryDirectory() as folder:
    clips = SyntheticSource(FILES, seconds=SECONDS)
    for i in range(FILES):
      write_audio(pathlib.Path(folder) / f'{i}.flac', clips[i]['audio'])
    config.data.path = folder
    source = pipeline.make_source(config.data, 'train', 0)
    iterator = pipeline.make_iterator(
        source, config.data, batch_size=config.train.batch_size,
        crop_samples=config_lib.crop_samples(config), seed=0)
    next(iterator)
    rates = []
    for _ in range(rounds):
      start = time.perf_counter()
      for _ in itertools.islice(iterator, BATCHES):
        pass
      rates.append(BATCHES * config.train.batch_size / (time.perf_counter() - start))
  rates.sort()
  low, high = rates[0], rates[-1]
  yield {'operation': 'FLAC crops', 'system': 'affectcodec_jax',
         'clips_per_second': round(rates[len(rates) // 2], 1), 'range': [round(low, 1), round(high, 1)],
         'crop_seconds': config.data.crop_seconds, 'file_seconds': SECONDS}
