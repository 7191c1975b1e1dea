"""Where caches go, and what to say without a device: what a machine may lack."""

import os

from affectcodec_jax.common.errors import brief


def cache_folder(name):
  """A folder in the user's cache, made; None without a home folder, or where it cannot be written."""
  root = os.environ.get('XDG_CACHE_HOME', '')
  if not os.path.isabs(root):  # relative ones are to be ignored
    root = os.path.expanduser('~/.cache')
  if not os.path.isabs(root):  # neither HOME nor an entry in passwd
    return None
  folder = os.path.join(root, 'affectcodec_jax', name)
  try:
    os.makedirs(folder, exist_ok=True)
  except OSError:
    return None
  return folder if os.access(folder, os.W_OK) else None


def no_device(error):
  """One line for what JAX raises without a device."""
  variable = next((v for v in ('JAX_PLATFORMS', 'JAX_PLATFORM_NAME') if os.environ.get(v)), 'JAX_PLATFORMS')
  reason = brief(error) or 'it is not installed for that'
  wanted = os.environ.get(variable, '')
  return f"JAX finds no device for {variable}='{wanted}' ({reason}); unset it, or set it to cpu"
