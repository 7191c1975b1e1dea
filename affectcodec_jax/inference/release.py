"""A codec as a folder of small files: what the package carries, and what to give to others.

  python -m affectcodec_jax release RUN OUT

OUT then goes wherever a run goes for using the codec, and into `train --init_from OUT`:

  codec.json                 configuration, training steps, fingerprint of what is below
  codec.safetensors          the codec's parameters (the average over steps), float16
  discriminator.safetensors  the discriminator at that step, float16, for training on
  teacher.safetensors        the emotion teacher, float16, and student.safetensors where there is one
  README.md                  a model card
"""

import json
import pathlib

from affectcodec_jax.common import packaged, run_files
from affectcodec_jax.common.errors import UserError

CONFIG, CODEC, DISCRIMINATOR = 'codec.json', 'codec.safetensors', 'discriminator.safetensors'


def find(name):
  """The folder that --init_from names: 'pretrained' is the package's, a bucket's is fetched.

  Raises:
    UserError: it holds no released codec.
  """
  path = packaged.FOLDER if name == 'pretrained' else run_files.local(name)
  if not is_release(path):
    raise UserError(f'--init_from {name}: not a released codec (no {CONFIG} there); make one by '
                    'python -m affectcodec_jax release RUN OUT')
  return path


def is_release(path):
  """Whether a folder holds a released codec."""
  return (pathlib.Path(path) / CONFIG).exists()


def read_card(path):
  """(configuration, fingerprint, step) of such a folder.

  Raises:
    UserError: its `CONFIG` is missing or does not fit together.
  """
  from ml_collections import ConfigDict

  from affectcodec_jax.common import schemas
  from affectcodec_jax.config import check_model
  card = schemas.read(path / CONFIG, schemas.Card, 'not a released codec; make one by '
                      'python -m affectcodec_jax release RUN OUT')
  config = ConfigDict(card['config'])
  try:
    check_model(config)
  except UserError as e:
    raise UserError(f'{path / CONFIG}: {e}') from e
  return config, card['fingerprint'], card['step']


def load(path):
  """(configuration, parameters, what the encoder reads, step) of such a folder.

  Raises:
    UserError: a file is missing or not what was released.
  """
  from affectcodec_jax.inference import weights
  from affectcodec_jax.models.params import load_params
  path = pathlib.Path(path)
  config, fingerprint, step = read_card(path)
  params, frozen = load_params(path / CODEC), weights.load_encoder_network(config, path)
  if weights.fingerprint(config.model.to_dict(), params, frozen).hex() != fingerprint:
    raise UserError(f'{path}: its files are not those that were released (fingerprint {fingerprint}); '
                    'install or copy them again')
  if path != packaged.FOLDER:  # whose fingerprint is known: half a second at every start
    weights.check_codec(config, params, path / CODEC)
  return config, params, frozen, step


def initialise(state, config, path):
  """`state` of step 0, with codec and discriminator of a released folder in the place of untrained ones.

  Raises:
    UserError: a codec of other sizes than `config` has.
  """
  from affectcodec_jax.emotion import teachers
  from affectcodec_jax.models.params import load_params
  theirs, params, _, _ = load(path)
  their_parts, our_parts = ({'model': c.model.to_dict(), 'discriminator': c.discriminator.to_dict(),
                             'teacher': teachers.identity(c)} for c in (theirs, config))
  for section, name in [(s, name) for s, fields in our_parts.items() for name in fields]:
    value, ours = (json.dumps(p[section].get(name), sort_keys=True) for p in (their_parts, our_parts))
    if value != ours:
      raise UserError(f'--init_from {path}: that codec has {section}.{name}={value}, this configuration '
                      f'{ours}; give the same value')
  if theirs.teacher.student and not config.teacher.student:
    raise UserError(f'--init_from {path}: its encoder reads a student; give '
                    f'--config.teacher.student={path}/student.safetensors')
  # Two copies of the codec: a step gives the memory of both away.
  return state.replace(params=params, ema=load_params(path / CODEC),
                       disc_params=load_params(path / DISCRIMINATOR))
