"""What is scored: a codec at one rate, under test or a peer."""

import pathlib
from typing import NamedTuple

import numpy as np


class System(NamedTuple):
  """A codec at one rate.

  Attributes:
    name: e.g. 'opus'.
    kbps: its nominal rate.
    run: the adapter; the codec under test gives its codes as a third value.
    version: of the codec or its model; scores of another one are stale.
  """

  name: str
  kbps: float
  run: object
  version: str

  @property
  def label(self):
    return f'{self.name} {self.kbps:g}' if self.kbps else self.name


def model_stamp(name):
  """A model's name and, where it is a folder, the time of its newest file, by which another is known."""
  files = [p for p in pathlib.Path(name).rglob('*') if p.is_file()] if pathlib.Path(name).is_dir() else []
  return f'{name} {max((int(p.stat().st_mtime) for p in files), default="")}'.strip()


def model_version(name, config, transformers):
  """What says whether a model of the package `transformers` is still the same, by its configuration."""
  commit = getattr(config, '_commit_hash', None) or ''
  return f'{model_stamp(name)} {commit} transformers {transformers.__version__}'


def fit_length(audio, length):
  """Cut or padded with zeros to `length` samples, float32."""
  return np.pad(audio[:length], (0, max(0, length - len(audio)))).astype(np.float32)
