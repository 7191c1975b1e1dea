"""Start-up: `--help`, and `encode` of 10 s by the packaged codec, with nothing compiled yet and again."""

import os
import pathlib
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parents[1]


def run(threads, rounds):
  """Rows of the three, each in fresh processes."""
  del threads
  from affectcodec_jax.audio import write_audio
  from affectcodec_jax.data.synthetic import SyntheticSource

  def call(*args, cache):
    subprocess.run((sys.executable, '-m', *args), cwd=ROOT, check=True, capture_output=True,
                   env=os.environ | {'XDG_CACHE_HOME': str(cache)})

  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    write_audio(folder / 'in.wav', SyntheticSource(1, seconds=10.0)[0]['audio'])
    encode = ('affectcodec_jax', 'encode', str(folder / 'in.wav'), str(folder / 'out.afc'))
    times = {'--help': [], 'encode 10 s, cold': [], 'encode 10 s, again': []}
    for i in range(rounds):
      cache = folder / f'cache{i}'
      for what, args in (('--help', ('affectcodec_jax', '--help')), ('encode 10 s, cold', encode),
                         ('encode 10 s, again', encode)):
        start = time.perf_counter()
        call(*args, cache=cache)
        times[what].append(time.perf_counter() - start)
  for what, values in times.items():
    values.sort()
    yield {'operation': what, 'system': 'affectcodec_jax', 'seconds': round(values[len(values) // 2], 2),
           'range': [round(values[0], 2), round(values[-1], 2)]}
