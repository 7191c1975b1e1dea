"""Choices by platform, made when a program is lowered and not by the machine that traces it.

A program that is lowered for a TPU on a host without one is then the TPU's.
"""

import contextlib
import contextvars

import jax

_portable = contextvars.ContextVar('portable', default=False)


@contextlib.contextmanager
def portable():
  """Within it, programs are traced without choices: of simple operations only, for any runtime."""
  token = _portable.set(True)
  try:
    yield
  finally:
    _portable.reset(token)


def by_platform(*args, default, portable=None, **platforms):
  """Calls the function that is named after the platform ('cpu', 'tpu', 'cuda', …), or `default`.

  All of them give the same shapes and dtypes. In a program for any runtime it is `portable`, or `default`
  where that is None.
  """
  if _portable.get():
    return (portable or default)(*args)
  return jax.lax.platform_dependent(*args, default=default, **platforms)
