"""What the JSON files of a codec hold: `codec.json` of a released one, `config.json` of a run.

Types and sizes alone; what one field cannot say by itself is in `config.check_model`. Fields that are not
known here do no harm: a newer version may have more.
"""

from typing import Annotated

import pydantic
from pydantic import Field

from affectcodec_jax.common.errors import UserError
from affectcodec_jax.common.files import parse_json, read_bytes

# Beyond these no codec is: what a file asks for must be bounded before any of it is made.
_Size = Annotated[int, Field(ge=1, le=65536)]
_Depth = Annotated[int, Field(ge=0, le=128)]
_Weight = Annotated[float, Field(allow_inf_nan=False)]
_Levels = Annotated[list[Annotated[int, Field(ge=2, le=65536)]], Field(min_length=1, max_length=16)]


class _Section(pydantic.BaseModel):
  model_config = pydantic.ConfigDict(strict=True, extra='ignore')


class _Lite(_Section):
  width: _Size
  encoder_depth: _Depth
  decoder_depth: _Depth


class _Model(_Section):
  backbone: str
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
  quantizer: str
  rvq_codebook_dim: _Size = 8
  conditioning: bool
  adapter_dim: _Size
  adapter_layers: Annotated[int, Field(ge=1, le=128)]
  adapter_kernel: Annotated[int, Field(ge=1, le=1024)]
  compute_dtype: str


class _Teacher(_Section):
  kind: str
  dim: _Size
  depth: _Depth = 9  # of the compact teacher, as older runs have it
  path: str
  student: str


class _Discriminator(_Section):
  n_ffts: Annotated[list[Annotated[int, Field(ge=16, le=65536)]], Field(max_length=16)]
  filters: _Size


class _Loss(_Section):
  mel: _Weight
  multi_rate: _Weight
  adversarial: _Weight


class _Data(_Section):
  source: str
  crop_seconds: Annotated[float, Field(gt=0, le=3600)]
  num_workers: Annotated[int, Field(ge=0)]


class _Train(_Section):
  steps: Annotated[int, Field(ge=1)]
  batch_size: Annotated[int, Field(ge=1)]
  rate_probs: list[_Weight]
  keep_checkpoints: Annotated[int, Field(ge=1)]
  distributed: bool


class Config(_Section):
  """`config.json`: as configs/base.py."""

  rates: Annotated[list[Annotated[int, Field(ge=1, le=255)]], Field(min_length=1, max_length=255)]
  model: _Model
  teacher: _Teacher
  discriminator: _Discriminator
  loss: _Loss
  data: _Data
  train: _Train

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
  try:
    schema.model_validate(value)
  except pydantic.ValidationError as e:
    first = e.errors()[0]
    where = '.'.join(map(str, first['loc'])) or 'the whole'
    got = '' if first['type'] == 'missing' else f', got {repr(first["input"])[:60]}'
    raise UserError(f'{path}: {where}: {first["msg"]}{got}; {advice}') from e
  return value
