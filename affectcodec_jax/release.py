"""A codec as a folder of small files: what the package carries, and what to give to others.

  python -m affectcodec_jax.release RUN OUT

OUT then goes wherever a run goes for using the codec, and into `train --init_from OUT`:

  codec.json                 configuration, training steps, fingerprint of what is below
  codec.safetensors          the codec's parameters (the average over steps), float16
  discriminator.safetensors  the discriminator at that step, float16, for training on
  teacher.safetensors        the emotion teacher, float16, and student.safetensors where there is one

The optimisers' moments stay in the run: they are eight times as large, and with beta2 = 0.99 a hundred
steps make them anew.
"""

import argparse
import json
import pathlib
import sys

import numpy as np

from affectcodec_jax.errors import UserError, run_command

CONFIG, CODEC, DISCRIMINATOR = 'codec.json', 'codec.safetensors', 'discriminator.safetensors'


def main(argv=None):
  """Entry point; returns the exit status."""
  parser = argparse.ArgumentParser(prog='python -m affectcodec_jax.release', description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('run', help='workdir of a training run')
  parser.add_argument('out', help='folder to write')
  args = parser.parse_args(argv)

  def command():
    for path in save(pathlib.Path(args.run), pathlib.Path(args.out)):
      print(f'{path}: {path.stat().st_size / 1e6:.1f} MB')

  return run_command(command)


def save(run, out):
  """Writes the newest checkpoint of `run` to the folder `out`; returns the files' paths.

  Raises:
    UserError: no such run, or a place that holds a run or cannot be written.
  """
  import jax

  from affectcodec_jax import weights
  from affectcodec_jax.config import load_config
  from affectcodec_jax.files import make_folder, write_json
  from affectcodec_jax.training import checkpoints
  from affectcodec_jax.training.state import create_state

  config = load_config(run / 'config.json')
  if (out / 'config.json').exists() or (out / 'checkpoints').exists():
    raise UserError(f'{out}: holds a training run; give a folder of its own for the release')
  frozen = weights.load_frozen(config, run)
  audio = np.zeros((1, 3200), np.float32)
  fresh = jax.eval_shape(lambda a: create_state(config, jax.random.PRNGKey(0), frozen, a), audio)
  state = checkpoints.restore_state(run, fresh)
  out = make_folder(out)
  trees = {CODEC: state.ema, DISCRIMINATOR: state.disc_params}
  trees |= {f'{name}.safetensors': tree for name, tree in frozen.items()}
  for name, tree in trees.items():
    weights.save_params(out / name, tree, np.float16)
  config.data.path = config.teacher.path = ''  # of the machine it was trained on
  if config.teacher.student:
    config.teacher.student = 'student.safetensors'
  rounded, heard = weights.load_params(out / CODEC), weights.load_encoder_network(config, out)
  fingerprint = weights.fingerprint(config.model.to_dict(), rounded, heard).hex()
  card = {'step': int(state.step), 'fingerprint': fingerprint, 'config': config.to_dict()}
  write_json(out / CONFIG, card)
  return [out / name for name in (CONFIG, *trees)]


def find(name):
  """The folder that --init_from names: 'pretrained' is the package's.

  Raises:
    UserError: it holds no released codec.
  """
  from affectcodec_jax import weights
  path = weights.PACKAGED if name == 'pretrained' else pathlib.Path(name)
  if not is_release(path):
    raise UserError(f'--init_from {name}: not a released codec (no {CONFIG} there); make one by '
                    'python -m affectcodec_jax.release RUN OUT')
  return path


def is_release(path):
  """Whether a folder is one that `save` wrote."""
  return (pathlib.Path(path) / CONFIG).exists()


def load(path):
  """(configuration, parameters, what the encoder reads, step) of such a folder.

  Raises:
    UserError: a file is missing or not what was released.
  """
  from ml_collections import ConfigDict

  from affectcodec_jax import weights
  from affectcodec_jax.config import CODEC_FIELDS, require
  path = pathlib.Path(path)
  try:
    card = json.loads((path / CONFIG).read_text())
    step, fingerprint, config = card['step'], card['fingerprint'], ConfigDict(card['config'])
  except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
    raise UserError(f'{path}: not a released codec ({type(e).__name__}: {e}); make one by '
                    'python -m affectcodec_jax.release RUN OUT') from e
  require(config, CODEC_FIELDS, path / CONFIG)
  params, frozen = weights.load_params(path / CODEC), weights.load_encoder_network(config, path)
  if weights.fingerprint(config.model.to_dict(), params, frozen).hex() != fingerprint:
    raise UserError(f'{path}: its files are not those that were released (fingerprint {fingerprint}); '
                    'install or copy them again')
  return config, params, frozen, step


def initialise(state, config, path):
  """`state` of step 0, with codec and discriminator of a released folder in the place of untrained ones.

  Raises:
    UserError: a codec of other sizes than `config` has.
  """
  from affectcodec_jax import weights
  theirs, params, _, _ = load(path)
  fields = [(s, name) for s in ('model', 'discriminator') for name in config[s]]
  for section, name in [*fields, ('teacher', 'kind'), ('teacher', 'dim')]:
    value, ours = (json.dumps(c.to_dict()[section].get(name), sort_keys=True) for c in (theirs, config))
    if value != ours:
      raise UserError(f'--init_from {path}: that codec has {section}.{name}={value}, this configuration '
                      f'{ours}; give the same value')
  if theirs.teacher.student and not config.teacher.student:
    raise UserError(f'--init_from {path}: its encoder reads a student; give '
                    f'--config.teacher.student={path}/student.safetensors')
  # Two copies of the codec: a step gives the memory of both away.
  return state.replace(params=params, ema=weights.load_params(path / CODEC),
                       disc_params=weights.load_params(path / DISCRIMINATOR))


if __name__ == '__main__':
  sys.exit(main())
