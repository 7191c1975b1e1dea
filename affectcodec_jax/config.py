"""Configurations: read from a Python file, overridden on the command line, kept as JSON."""

from collections.abc import Mapping, Sequence
import json
import logging
import math
import os
import pathlib
import sys
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from affectcodec_jax.common import schemas
from affectcodec_jax.common.constants import HOP_LENGTH, SAMPLE_RATE
from affectcodec_jax.common.errors import UserError
from affectcodec_jax.common.files import AnyPath, write_json
from affectcodec_jax.emotion import teachers
from affectcodec_jax.models.codec import bits_per_stage

MIN_CROP = 2048  # samples: the longest window of the mel loss
# Of one kind of backbone, quantiser or network: others need not have them.
_OPTIONAL = ('strides', 'rvq_codebook_dim', 'depth', 'dropout', 'label_smoothing')
# What training needs of each section of a configuration; what using a codec needs has no default there.
FIELDS = {section: tuple(name for name in schema.model_fields if name not in _OPTIONAL)
          for section, schema in schemas.SECTIONS.items()}


def parse_args(argv: Sequence[str], description: str, **strings: str) -> tuple[Any, ...]:
  """Reads `--config FILE --workdir DIR --config.field=value …`: (ConfigDict, workdir, *strings).

  `strings` are further flags of the command and their help; each is None where it is not given.

  Raises:
    UserError: a missing flag or file, an unknown field, a value of the wrong type.
  """
  values = flags.FlagValues()
  config_flags.DEFINE_config_file('config', None, 'Configuration file.', flag_values=values)
  flags.DEFINE_string('workdir', None, 'Folder of the run.', flag_values=values)
  for name, text in strings.items():
    flags.DEFINE_string(name, None, text, flag_values=values)
  if any(a in ('--help', '-h') for a in argv[1:]):  # absl's help would list its own flags too
    print(f'{description}\n\nusage: {argv[0]} --config FILE [--workdir DIR] '
          + ''.join(f'[--{name} …] ' for name in strings) + '[--config.FIELD=VALUE …]')
    sys.exit(0)
  for i, arg in enumerate(argv):
    file = arg.split('=', 1)[1] if arg.startswith('--config=') else (
        argv[i + 1] if arg == '--config' and i + 1 < len(argv) else None)
    if file is not None:
      file = file.split(':')[0]  # FILE:VARIANT gives get_config its argument
      if not os.path.isfile(file):
        raise UserError(f'{file}: no such configuration file')
      # A configuration derives from another by `from configs.base import …`.
      sys.path.insert(0, str(pathlib.Path(file).resolve().parent.parent))
  old_argv, sys.argv = sys.argv, list(argv)  # config_flags looks for overrides in sys.argv
  try:
    rest = values(list(argv))
  except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as e:
    reason = ' '.join(str(e.args[0] if e.args else e).split()).strip('"\'')
    reason = f'unknown field or variant: {reason}' if ' ' not in reason else reason
    raise UserError(f'{reason} (see configs/base.py for the fields)') from e
  except Exception as e:  # the file is the user's own program
    raise UserError(f'the configuration file does not load: {type(e).__name__}: {e}') from e
  finally:
    sys.argv = old_argv
  if len(rest) > 1:
    raise UserError(f'unexpected argument {rest[1]}; overrides look like --config.train.steps=100')
  if values.config is None:
    raise UserError('--config is missing, e.g. --config configs/base.py')
  return values.config, values.workdir, *(values[name].value for name in strings)


def require(config: ConfigDict, sections: Mapping[str, Sequence[str]], origin: AnyPath) -> None:
  """Checks that a configuration has every section and field that is needed.

  Args:
    config: a ConfigDict.
    sections: names of sections and the fields each must have, `{'train': ('steps', …)}`.
    origin: where the configuration comes from, for the message.

  Raises:
    UserError: names what is missing.
  """
  for section, fields in sections.items():
    if not isinstance(config.get(section), ConfigDict):
      raise UserError(f"{origin}: has no section '{section}'; is it made for another command?")
    for field in fields:
      if field not in config[section]:
        raise UserError(f"{origin}: has no field '{section}.{field}'; is it made for another command?")


def validate(config: ConfigDict) -> None:
  """Checks a codec's configuration.

  Raises:
    UserError: names a field that is missing or out of range, or fields that do not fit together.
  """
  require(config, FIELDS, 'this configuration')
  for name in ('seed', 'rates'):
    if name not in config:
      raise UserError(f"this configuration: has no field '{name}'; is it made for another command?")
  check_ranges(config)
  check_model(config)
  t, rates = config.train, config.rates
  if len(t.rate_probs) != len(rates) or sum(t.rate_probs) <= 0:
    raise UserError(f'train.rate_probs={tuple(t.rate_probs)} needs one weight for each of '
                    f'rates={tuple(rates)}')
  if config.loss.posterior and config.teacher.kind != 'compact':
    raise UserError(f'loss.posterior={config.loss.posterior}: a teacher of kind {config.teacher.kind} does '
                    'not classify emotions; give --config.loss.posterior=0')
  if config.loss.adversarial and not config.discriminator.n_ffts:
    raise UserError('loss.adversarial needs discriminator.n_ffts, a window or more')
  if t.fsdp != 1 and t.parallel == 'pmap':
    raise UserError(f'train.fsdp={t.fsdp} needs train.parallel=mesh: with pmap every device has it all')
  quantized_from = t.unquantized_steps + t.rounding_steps
  if config.model.quantizer != 'rvq' and t.steps <= quantized_from:
    logging.warning('train.steps=%d end before the quantiser rounds at step %d (train.unquantized_steps + '
                    'train.rounding_steps): the decoder never trains on rounded codes', t.steps,
                    quantized_from)


def check_ranges(config: ConfigDict) -> None:
  """Checks the fields that a configuration, of a codec or of an emotion network, has of `schemas.Config`.

  Raises:
    UserError: names the field that is out of range.
  """
  plain = json.loads(config.to_json())
  if problem := schemas.find_problem(schemas.Config, plain, schemas.is_missing):
    raise UserError(f'this configuration: {problem}')
  if crop_samples(config) < MIN_CROP:
    raise UserError(f'data.crop_seconds={config.data.crop_seconds} is too short; the longest window of the '
                    f'mel loss takes {MIN_CROP / SAMPLE_RATE} s')


def check_model(config: ConfigDict) -> None:
  """Checks what a codec is made of, in training and in use.

  Raises:
    UserError: names the fields that do not fit together.
  """
  m = config.model
  if m.quantizer == 'rvq' and 'rvq_codebook_dim' not in m:
    raise UserError("has no field 'model.rvq_codebook_dim', which quantizer rvq needs")
  for name in ('emotion', 'acoustic'):
    levels = m[f'{name}_levels']
    if len(levels) > m[f'{name}_dim']:
      raise UserError(f'model.{name}_levels={tuple(levels)} must be at most model.{name}_dim='
                      f'{m[f"{name}_dim"]} values')
  if m.backbone == 'dac':  # lite has none
    if 'strides' not in m:
      raise UserError("has no field 'model.strides', which backbone dac needs")
    if math.prod(m.strides) != HOP_LENGTH:
      raise UserError(f'model.strides multiply to {math.prod(m.strides)}; 50 Hz frames at 16 kHz need '
                      f'{HOP_LENGTH}')
  rates = list(config.rates)
  if not rates or sorted(set(rates)) != rates or rates[-1] != m.num_stages or rates[0] < 1:
    raise UserError(f'rates={tuple(rates)} must rise from at least 1 to model.num_stages='
                    f'{m.num_stages}')
  teachers.check(config)
  if bits_per_stage(m) > 16:
    raise UserError(f'{m.num_stages} stages of {bits_per_stage(m)} bits: a token file holds at most 255 '
                    'stages of 16 bits; change model.num_stages or the levels')


def crop_samples(config: ConfigDict) -> int:
  """Samples of a training crop: `data.crop_seconds` rounded down to whole frames."""
  return int(round(config.data.crop_seconds * SAMPLE_RATE)) // HOP_LENGTH * HOP_LENGTH


def save_config(path: AnyPath, config: ConfigDict) -> None:
  """Writes the resolved configuration as JSON; the file appears whole or not at all.

  Raises:
    UserError: a place that cannot be written.
  """
  write_json(path, json.loads(config.to_json()))


def load_config(path: AnyPath) -> ConfigDict:
  """Reads what `save_config` wrote for a codec's run.

  Raises:
    UserError: no such file, or not the configuration of a codec.
  """
  advice = 'is this the workdir of a training run?'
  plain = schemas.read(path, schemas.Config, advice)
  config = ConfigDict(plain)
  for name, value in teachers.OLDER.items():
    config.teacher[name] = config.teacher.get(name, value)
  try:
    check_model(config)
  except UserError as e:
    raise UserError(f'{path}: {e}') from e
  return config
