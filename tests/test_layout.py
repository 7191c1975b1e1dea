"""How the package is laid out; who imports whom is checked by `lint-imports` (pyproject.toml)."""

import pathlib
import subprocess
import sys

PACKAGE = pathlib.Path(__file__).parent.parent / 'affectcodec_jax'

WITHOUT_JAX = """
import importlib, importlib.abc, pathlib, pkgutil, sys

class Blocked(importlib.abc.MetaPathFinder):
  def find_spec(self, name, path=None, target=None):
    if name.split('.')[0] in ('jax', 'jaxlib', 'flax'):
      raise ImportError(f'{name} is blocked')

sys.meta_path.insert(0, Blocked())
import numpy as np
import affectcodec_jax.tokens
names = [m.name for m in pkgutil.iter_modules(affectcodec_jax.tokens.__path__)]
assert {'afc', 'corpus', 'emotion', 'entropy', 'lm', 'shards'} <= set(names)
for name in names:
  importlib.import_module(f'affectcodec_jax.tokens.{name}')

from affectcodec_jax.tokens import afc, lm
codes = np.random.default_rng(0).integers(2 ** 15, size=(30, 4)).astype(np.int32)
path = pathlib.Path(sys.argv[1]) / 'a.afc'
for digit_bits in ((), (1, 1, 1, 2, 2, 2, 2, 2, 2)):  # plain, and entropy coded
  afc.write_tokens(path, afc.Tokens(codes, 30 * 320, 0.0, b'thecodec', digit_bits=digit_bits))
  np.testing.assert_array_equal(afc.read_tokens(path).codes, codes)
vocabulary = lm.codes_vocabulary(4)
ids = vocabulary.to_ids(lm.split(codes))
np.testing.assert_array_equal(lm.join(vocabulary.to_codes(ids)), codes)
assert lm.flatten(ids).shape == (30 * 8,)
assert not {'jax', 'flax'} & set(sys.modules)
"""


def test_the_top_level_is_small():
  modules = sorted(p.name for p in PACKAGE.glob('*.py'))
  assert len(modules) <= 8, modules


def test_tokens_work_without_jax(tmp_path):
  """Every module of `tokens`, a token file and what a language model reads, in NumPy."""
  done = subprocess.run([sys.executable, '-c', WITHOUT_JAX, str(tmp_path)], cwd=PACKAGE.parent,
                        capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
