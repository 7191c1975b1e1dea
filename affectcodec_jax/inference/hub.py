"""Released codecs from the Hugging Face Hub, by the package huggingface_hub where it is installed."""

import pathlib
import re

from affectcodec_jax.common.errors import UserError, describe
from affectcodec_jax.common.files import AnyPath

_NAME = re.compile(r'[\w.-]+/[\w.-]+')
_FILES = ['codec.json', '*.safetensors', 'README.md']


def is_name(path: AnyPath) -> bool:
  """Whether text can name a repository, 'org/name', and no folder here is called 'org'."""
  return isinstance(path, str) and bool(_NAME.fullmatch(path)) and not pathlib.Path(path).parent.exists()


def fetch(name: str) -> pathlib.Path:
  """Folder with the released codec 'org/name': fetched, or without a network as it was fetched before.

  Raises:
    UserError: no such codec there, or it cannot be fetched.
  """
  try:
    import huggingface_hub
  except ImportError as e:
    raise UserError(f'{name}: no such folder; for a codec of that name on the Hugging Face Hub pip install '
                    'huggingface_hub') from e
  try:
    folder = pathlib.Path(huggingface_hub.snapshot_download(name, allow_patterns=_FILES))
  except Exception as e:  # its own kinds, those of its HTTP client, which differs by version, and OSError
    raise UserError(f'{name}: no such folder here, and none could be fetched from the Hugging Face Hub '
                    f'({describe(e)}); check the name and the network') from e
  if not (folder / 'codec.json').exists():
    raise UserError(f'{name}: that repository holds no released codec (no codec.json); make one by '
                    'python -m affectcodec_jax release RUN OUT')
  return folder
