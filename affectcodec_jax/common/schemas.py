"""Fields of a configuration, their types and ranges, and what the JSON files of codecs and corpora hold.

A configuration to train by has every field of configs/base.py. `config.json` of a run and `codec.json` of a
released codec may be older: of `loss`, `data` and `train` they need only the fields without a default here,
and the others are not looked at. The defaults say no more than that. What one field cannot say by itself is
in config.py. Fields that are not known here do no harm: a newer version may have more.
"""

from typing import Annotated, Literal

import pydantic
from pydantic import Field

from affectcodec_jax.common.errors import UserError
from affectcodec_jax.common.files import parse_json, read_bytes

# Beyond these no codec is: what a file asks for must be bounded before any of it is made.
_Size = Annotated[int, Field(ge=1, le=65536)]
_Depth = Annotated[int, Field(ge=0, le=128)]
_Levels = Annotated[list[Annotated[int, Field(ge=2, le=65536)]], Field(min_length=1, max_length=16)]
_Positive = Annotated[int, Field(ge=1)]
_Count = Annotated[int, Field(ge=0)]
_Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_Above0 = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_Share = Annotated[float, Field(ge=0, le=1)]
_Below1 = Annotated[float, Field(ge=0, lt=1)]


class _Section(pydantic.BaseModel):
  model_config = pydantic.ConfigDict(strict=True, extra='ignore')


class _Lite(_Section):
  width: _Size
  encoder_depth: _Depth
  decoder_depth: _Depth


class _Model(_Section):
  backbone: Literal['dac', 'lite']
  lite: _Lite
  encoder_dim: _Size
  decoder_dim: _Size
  strides: Annotated[list[_Size], Field(min_length=1, max_length=16)] = [2, 4, 5, 8]  # of dac
  acoustic_width: _Size
  emotion_dim: _Size
  acoustic_dim: _Size
  num_stages: Annotated[int, Field(ge=1, le=255)]
  emotion_levels: _Levels
  acoustic_levels: _Levels
  quantizer: Literal['bd_rfsq', 'full_rfsq', 'rvq']
  rvq_codebook_dim: _Size = 8
  conditioning: bool
  adapter_dim: _Size
  adapter_layers: Annotated[int, Field(ge=1, le=128)]
  adapter_kernel: Annotated[int, Field(ge=1, le=1024)]
  compute_dtype: Literal['float32', 'bfloat16']


class _Teacher(_Section):
  kind: str
  dim: _Size
  depth: _Depth = 9  # of the compact teacher, as older runs have it
  layer: _Positive = 3
  path: str
  student: str


class _Discriminator(_Section):
  n_ffts: Annotated[list[Annotated[int, Field(ge=16, le=65536)]], Field(max_length=16)]
  filters: _Size


class _Loss(_Section):
  mel: _Weight
  mel_floor: _Above0 = 1e-5
  waveform: _Weight = 0.0
  adversarial: _Weight
  feature_matching: _Weight = 0.0
  commitment: _Weight = 0.0
  emotion: _Weight = 0.0
  posterior: _Weight = 0.0
  cycle: _Weight = 0.0
  multi_rate: _Weight
  pitch: _Weight = 0.0
  voicing: _Weight = 0.0


class _Data(_Section):
  source: str
  path: str = ''
  tfds_name: str = ''
  tfds_dir: str = ''
  train_split: str = ''
  eval_split: str = ''
  num_clips: _Positive = 1
  min_seconds: _Weight = 0.0
  crop_seconds: Annotated[float, Field(gt=0, le=3600)]
  gain_db: _Weight = 0.0
  speed: _Below1 = 0.0
  equalise_db: _Weight = 0.0
  num_workers: _Count


class _Train(_Section):
  steps: _Positive
  batch_size: _Positive
  accumulate: _Positive = 1
  remat: bool = False
  parallel: Literal['mesh', 'pmap'] = 'pmap'
  fsdp: _Positive = 1
  lr: _Above0 = 1.0
  disc_lr: _Above0 = 1.0
  beta1: _Below1 = 0.0
  beta2: _Below1 = 0.0
  weight_decay: _Weight = 0.0
  clip_norm: _Above0 = 1.0
  warmup_steps: _Count = 0
  final_lr_fraction: _Share = 1.0
  ema_decay: _Below1 = 0.0
  adversarial_start: _Count = 0
  stage_dropout: _Share = 0.0
  rate_probs: list[_Weight]
  stage_start: Literal['spread', 'refine'] = 'spread'
  stage_fade: _Above0 = 1.0
  unquantized_steps: _Count = 0
  rounding_steps: _Count = 0
  true_pitch_steps: _Count = 0
  decoder_only: bool = False
  checkpoint_every: _Positive = 1
  keep_checkpoints: _Positive
  log_every: _Positive = 1
  sample_every: _Positive = 1
  num_samples: _Count = 0
  valid_clips: _Count = 0
  distributed: bool
  dropout: _Below1 = 0.0  # of the emotion networks, as the next one
  label_smoothing: _Below1 = 0.0


class _Student(_Section):
  width: _Size
  depth: Annotated[int, Field(ge=1, le=128)]


class _Guide(_Section):
  kind: str
  dim: _Size
  layer: _Positive
  path: str
  weight: _Weight


SECTIONS: dict[str, type[pydantic.BaseModel]] = {
    'model': _Model, 'teacher': _Teacher, 'discriminator': _Discriminator, 'loss': _Loss, 'data': _Data,
    'train': _Train}


class Config(_Section):
  """`config.json`: as configs/base.py."""

  seed: _Count = 0
  rates: Annotated[list[Annotated[int, Field(ge=1, le=255)]], Field(min_length=1, max_length=255)]
  model: _Model
  teacher: _Teacher
  discriminator: _Discriminator
  loss: _Loss
  data: _Data
  train: _Train
  student: _Student | None = None  # of configs/student.py
  guide: _Guide | None = None  # of configs/teacher.py

  @pydantic.model_validator(mode='before')
  @classmethod
  def _names(cls, value):
    from ml_collections import ConfigDict
    try:
      ConfigDict(value) if isinstance(value, dict) else None
    except Exception as e:  # a dot in a name, or a name of its own such as 'items'
      raise ValueError(f'a name that no field can have ({" ".join(str(e).split())[:80]})') from e
    return value


class Card(_Section):
  """`codec.json`: a released codec's."""

  step: Annotated[int, Field(ge=0)]
  fingerprint: Annotated[str, Field(pattern='^[0-9a-f]{16}$')]
  config: Config


class Shards(_Section):
  """`settings` of `tokens.json`: a tokenized corpus's."""

  shards: Annotated[int, Field(ge=1)]
  formats: Annotated[list[Annotated[str, Field(pattern='^(arrayrecord|parquet)$')]], Field(min_length=1)]


class Speech(_Section):
  """`speech.json`: a packed corpus's."""

  version: Annotated[int, Field(ge=1, le=1)]
  files: Annotated[int, Field(ge=1)]
  list_sha256: Annotated[str, Field(pattern='^[0-9a-f]{64}$')]
  shard_files: Annotated[int, Field(ge=1)]
  shards: Annotated[int, Field(ge=1, le=10_000_000)]


class Index(_Section):
  """`tokens.json`."""

  settings: Shards
  shards: dict[Annotated[str, Field(pattern='^[0-9]{1,9}$')], dict]


def read(path, schema, advice):
  """The JSON in a file, as it is, when `schema` fits it.

  Raises:
    UserError: not there, not JSON, or with a field that is absent, of another type or out of range; it ends
      with `advice`.
  """
  try:
    value = parse_json(read_bytes(path))
  except UserError as e:
    raise UserError(f'{str(e).removesuffix("; check the path")}; {advice}') from e
  except ValueError as e:
    raise UserError(f'{path}: not JSON ({" ".join(str(e).split())[:100]}); {advice}') from e
  if problem := find_problem(schema, value, _is_of_training):
    raise UserError(f'{path}: {problem}; {advice}')
  return value


def is_missing(error):
  """Whether an error of pydantic's is that a field is not there."""
  return error['type'] == 'missing'


def _is_of_training(error):
  """Whether it is about a field that only training reads."""
  for section, name in zip(error['loc'], error['loc'][1:]):
    if section in ('loss', 'data', 'train'):
      return not SECTIONS[section].model_fields[name].is_required()
  return False


def find_problem(schema, value, ignore):
  """The first field of `value` that does not fit `schema`, and why, or None; `ignore` is of an error."""
  try:
    schema.model_validate(value)
  except pydantic.ValidationError as e:
    for error in e.errors():
      if not ignore(error):
        where = '.'.join(map(str, error['loc'])) or 'the whole'
        got = '' if is_missing(error) else f', got {repr(error["input"])[:60]}'
        return f'{where}: {error["msg"]}{got}'
  return None
