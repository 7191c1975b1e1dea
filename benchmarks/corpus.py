"""Starting on a corpus of 281 000 files, as LibriSpeech's 960 hours are, and what a reading process takes.

The files are hard links to 40 recordings of 12 s (FLAC, 16 kHz, of synthetic speech) in a temporary folder,
in 4607 folders. Starts: the first, which reads every header of the split; from the index; from a packed
corpus whose shards have names and sizes and no bytes, which a start does not look at. Seconds are of
`make_source` and the digest of the data, all of it in the disk's cache, beside the processor's seconds in
this process. A reading process is one of grain's, with the crops of `configs/lite.py`: its largest memory,
how much of what it has no other process shares, and clips a second.
"""

import itertools
import json
import multiprocessing
import os
import pathlib
import pickle
import tempfile
import time

from affectcodec_jax import config as config_lib
from affectcodec_jax.audio import write_audio
from affectcodec_jax.common.files import write_json
from affectcodec_jax.data import arrayrecord, pipeline
from affectcodec_jax.data.synthetic import SyntheticSource
from configs import lite

FILES, A_FOLDER, SECONDS, SHARD_FILES, BATCHES = 281_000, 61, 12.0, 1000, 100


def run(threads, rounds):
  """A row for each kind of start, and one for a reading process."""
  del threads
  config = lite.get_config()
  with tempfile.TemporaryDirectory() as temporary:
    root = pathlib.Path(temporary)
    os.environ['XDG_CACHE_HOME'] = str(root / 'cache')
    data, packed = root / 'data', root / 'packed'
    names = _make_files(data)
    _make_lists(packed, names)
    config.data.path = str(data)
    yield _start('first start', config.data, 1)
    yield _start('start from the index', config.data, rounds)
    yield _reading(config, rounds)
    config.data.source, config.data.path = 'arrayrecord', str(packed)
    yield _start('start from packed lists', config.data, rounds)


def _make_files(data):
  """Links the files; returns their names in the folder."""
  clips, names = SyntheticSource(40, seconds=SECONDS), []
  (data / '.recordings').mkdir(parents=True)
  for i in range(len(clips)):
    write_audio(data / '.recordings' / f'{i}.flac', clips[i]['audio'])
    os.utime(data / '.recordings' / f'{i}.flac', (1e9, 1e9))  # files of this moment are not kept
  for i in range(FILES):
    chapter = i // A_FOLDER
    name = f'{chapter // 2}/{chapter}/{chapter // 2}-{chapter}-{i % A_FOLDER:04d}.flac'
    if i % A_FOLDER == 0:
      (data / name).parent.mkdir(parents=True)
    os.link(data / '.recordings' / f'{i % len(clips)}.flac', data / name)
    names.append(name)
  return names


def _make_lists(packed, names):
  """What `pack` writes of them, but for the bytes of the shards."""
  packed.mkdir()
  shards = -(-len(names) // SHARD_FILES)
  write_json(packed / arrayrecord.SETTINGS, {'version': 1, 'files': len(names), 'list_sha256': '0' * 64,
                                             'shard_files': SHARD_FILES, 'shards': shards})
  for i in range(shards):
    path = arrayrecord.shard_path(packed, i, shards)
    rows = [{'path': name, 'speaker': name.split('/')[1], 'seconds': SECONDS}
            for name in names[i * SHARD_FILES:(i + 1) * SHARD_FILES]]
    path.touch()
    os.truncate(path, 200_000_000)
    held = {'clips': len(rows), 'bytes': 200_000_000, 'skipped': []}
    arrayrecord.lines_path(path).write_text(''.join(json.dumps(x) + '\n' for x in [held, *rows]))


def _start(what, config, rounds):
  seconds, processor = [], []
  for _ in range(rounds):
    start, used = time.perf_counter(), time.process_time()
    source = pipeline.make_source(config, 'train', 0)
    source.digest()
    seconds.append(round(time.perf_counter() - start, 2))
    processor.append(round(time.process_time() - used, 2))
  middle = sorted(range(rounds), key=seconds.__getitem__)[rounds // 2]
  return {'operation': what, 'system': 'affectcodec_jax', 'files': FILES, 'clips': len(source),
          'seconds': seconds[middle], 'range': [min(seconds), max(seconds)],
          'processor_seconds': processor[middle], 'processor_range': [min(processor), max(processor)]}


def _reading(config, rounds):
  source = pipeline.make_source(config.data, 'train', 0)
  batch = config.train.batch_size
  iterator = pipeline.make_iterator(source, config.data, batch_size=batch, num_workers=1, seed=0,
                                    crop_samples=config_lib.crop_samples(config))
  for _ in itertools.islice(iterator, BATCHES):  # what it had waiting, and more
    pass
  worker, = multiprocessing.active_children()
  private = [_memory(worker.pid, 'smaps_rollup', f'Private_{kind}') for kind in ('Clean', 'Dirty')]
  rates, shares = [], []
  for _ in range(rounds):
    start, used = time.perf_counter(), _processor_seconds(worker.pid)
    for _ in itertools.islice(iterator, BATCHES):
      pass
    rates.append(round(BATCHES * batch / (time.perf_counter() - start), 1))
    shares.append(round(BATCHES * batch / (_processor_seconds(worker.pid) - used), 1))
  return {'operation': 'reading process', 'system': 'affectcodec_jax', 'file_seconds': SECONDS,
          'crop_seconds': config.data.crop_seconds, 'pickle_bytes': len(pickle.dumps(source)),
          'peak_mib': _memory(worker.pid, 'status', 'VmHWM'), 'private_mib': sum(private),
          'clips_per_second': sorted(rates)[rounds // 2], 'range': [min(rates), max(rates)],
          'clips_per_processor_second': sorted(shares)[rounds // 2],
          'processor_range': [min(shares), max(shares)]}


def _processor_seconds(process):
  fields = pathlib.Path(f'/proc/{process}/stat').read_text().rpartition(')')[2].split()
  return (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')


def _memory(process, file, field):
  lines = pathlib.Path(f'/proc/{process}/{file}').read_text().splitlines()
  return round(next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field + ':')))
