"""Compiled programs, kept from one start to the next."""

import jax

from affectcodec_jax.common.places import cache_folder


def use_compilation_cache() -> None:
  """Keeps programs that JAX compiles in the user's cache folder, so that a second start is quick."""
  option = 'jax_compilation_cache_dir'
  folder = cache_folder('jax')
  if folder and getattr(jax.config, option) is None:
    jax.config.update(option, folder)
