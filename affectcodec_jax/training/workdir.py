"""The folder of a codec's run: made, or found with a run that this configuration may go on with."""

from flax import traverse_util

from affectcodec_jax import config as config_lib
from affectcodec_jax.common.errors import UserError
from affectcodec_jax.common.files import make_folder
from affectcodec_jax.inference import release


def open_run(config, workdir, folder):
  """Creates the folder; refuses to continue a run there with another model.

  Args:
    config: the configuration.
    workdir: where the run is, for what is said.
    folder: where its files are.

  Returns:
    what else differs from the run there, as `section.name=value (was value)`.

  Raises:
    UserError: it holds a released codec, or a run of another model.
  """
  if release.is_release(folder):
    raise UserError(f'{workdir} holds a released codec; give another --workdir')
  path = make_folder(folder) / 'config.json'
  if not path.exists():
    return []
  old = config_lib.load_config(path)
  before, now = (traverse_util.flatten_dict(c.to_dict(), sep='.') for c in (old, config))
  changed = [name for name in now if _plain(before.get(name)) != _plain(now[name])]
  copied = {'teacher.path'} if config.teacher.path in ('', old.teacher.path) else set()
  if not config.teacher.path:  # so that the command with it will do again
    config.teacher.path = old.teacher.path
  for name in changed:
    if name.split('.')[0] in ('model', 'discriminator', 'teacher') and name not in copied:
      raise UserError(f'{workdir} holds a run with {name}={before.get(name)}, now {now[name]}; '
                      'give another --workdir or the same value')
  return [f'{name}={now[name]} (was {before.get(name)})' for name in changed if name not in copied]


def _plain(value):
  return list(value) if isinstance(value, (list, tuple)) else value
