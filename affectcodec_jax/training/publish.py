"""Makes of a training run the folder of small files that a released codec is (`inference.release`).

With its README.md, a model card, it is a repository for the Hugging Face Hub as it stands.

The optimisers' moments stay in the run: they are eight times as large, and with beta2 = 0.99 a hundred
steps make them anew.
"""

import logging

import numpy as np

from affectcodec_jax.common import packaged, run_files
from affectcodec_jax.common.errors import UserError

README = 'README.md'


def save(run, out):
  """Writes the newest checkpoint of `run`, a folder or the address of one, to the folder `out`.

  Returns:
    the files' paths.

  Raises:
    UserError: no such run, or a place that holds a run or cannot be written.
  """
  import jax

  from affectcodec_jax.common.files import make_folder, write_json, write_whole
  from affectcodec_jax.config import load_config
  from affectcodec_jax.inference import release, weights
  from affectcodec_jax.models.params import load_params, save_params
  from affectcodec_jax.training import checkpoints, model_card
  from affectcodec_jax.training.state import create_state

  files = run_files.local(run)
  config = load_config(files / 'config.json')
  if (out / 'config.json').exists() or (out / 'checkpoints').exists():
    raise UserError(f'{out}: holds a training run; give a folder of its own for the release')
  out = make_folder(out)
  frozen = weights.load_frozen(config, files)
  audio = np.zeros((1, 3200), np.float32)
  fresh = jax.eval_shape(lambda a: create_state(config, jax.random.PRNGKey(0), frozen, a), audio)
  state = checkpoints.restore_state(run, fresh)
  trees = {release.CODEC: state.ema, release.DISCRIMINATOR: state.disc_params}
  trees |= {f'{name}.safetensors': tree for name, tree in frozen.items()}
  for name, tree in trees.items():
    save_params(out / name, tree, np.float16)
  # By its values, whatever file or configuration says it is.
  teachers = frozen['teacher'], load_params(packaged.TEACHER)
  packaged_teacher = len({weights.fingerprint({}, params, {}) for params in teachers}) == 1
  config.data.path = config.data.tfds_dir = config.teacher.path = ''  # of the machine it was trained on
  if config.teacher.student:
    config.teacher.student = 'student.safetensors'
  rounded, network = load_params(out / release.CODEC), weights.load_encoder_network(config, out)
  fingerprint = weights.fingerprint(config.model.to_dict(), rounded, network).hex()
  card = {'step': int(state.step), 'fingerprint': fingerprint, 'config': config.to_dict()}
  write_json(out / release.CONFIG, card)
  names = [release.CONFIG, *trees]
  if (out / README).exists():  # perhaps with what its maker has written into it
    logging.warning('%s: was there and is kept; step and fingerprint in it may be of another release',
                    out / README)
  else:
    text = model_card.text(config, card['step'], fingerprint, names, out.resolve().name, packaged_teacher)
    write_whole(out / README, text.encode())
  return [out / name for name in (*names, README)]
