"""Reads that fail as networks fail now and then, tried again."""

import errno
import os
import time

from affectcodec_jax.common.errors import UserError, brief, describe

PAUSES = (0.1, 0.5, 2.0)  # seconds before the second, third and last try

_NAMES = ('EIO', 'EAGAIN', 'EINTR', 'EBUSY', 'ETIMEDOUT', 'ESTALE', 'EREMOTEIO', 'ENOTCONN', 'ECONNRESET',
          'ECONNABORTED', 'ECONNREFUSED', 'EPIPE', 'ENETDOWN', 'ENETUNREACH', 'ENETRESET', 'EHOSTDOWN',
          'EHOSTUNREACH')  # not every system has all of them
_PASSING = {getattr(errno, name) for name in _NAMES if hasattr(errno, name)}


def is_transient(error):
  """Whether an `OSError`, or the one that caused an error, is of a kind that another try may not meet."""
  error = error if isinstance(error, OSError) else error.__cause__
  return isinstance(error, (TimeoutError, ConnectionError)) or (
      isinstance(error, OSError) and error.errno in _PASSING)


def named(error):
  """The `OSError` that the text of an error names, where it is one that passes; else the error."""
  number = next((n for n in _PASSING if os.strerror(n) in str(error)), None)
  return error if number is None else OSError(number, os.strerror(number))


def with_retries(read, *args):
  """`read(*args)`, tried again after each of `PAUSES` where it fails with an error that passes.

  All other errors are raised at once: no such file, no rights, damage.
  """
  for pause in PAUSES:
    try:
      return read(*args)
    except Exception as e:
      if not is_transient(e):
        raise
    time.sleep(pause)
  return read(*args)


def why_left_out(error, path):
  """What made a file unreadable (`errors.describe`), for the list of files that are left out.

  Raises:
    UserError: that may pass: it is of the network, not of the file, and nothing is said to be finished.
  """
  if is_transient(error):
    raise UserError(f'{path}: {brief(error)}; the same command goes on from here') from error
  return describe(error, path)
