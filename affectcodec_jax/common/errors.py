"""The one exception a user is meant to read, and how commands show it."""

import importlib
import os
import pathlib
import sys
import traceback

from affectcodec_jax.common import progress


class UserError(Exception):
  """A problem the user can fix: one line that says what is wrong and what to do.

  Commands print it after `error:` and exit with status 2, without a traceback.
  """


def brief(error, limit=200):
  """What an error says, on one line of at most so many characters; None for all of it."""
  return ' '.join(str(error).split())[:limit]


def describe(error, path=''):
  """`brief` behind the kind of an error that is no `UserError`; without `path`, nor advice to the user.

  For lists of files that were left out, where the path stands beside it.
  """
  text = brief(error, None).removeprefix(f'{path}: ').removeprefix(f'{pathlib.Path(path)}: ')
  if isinstance(error, UserError):
    return text.split('; give')[0]
  return f'{type(error).__name__}: {text[:200]}'.removesuffix(': ')


def run_command(command):
  """Calls `command()`; returns the exit status: what it returns, 0 for None, 2 after a `UserError`.

  130 after Ctrl-C and 141 after a closed pipe, as shells have it.
  """
  progress.log_to_stderr()
  if hasattr(sys.stdout, 'reconfigure'):
    sys.stdout.reconfigure(errors='backslashreplace')  # names of files need not be UTF-8
  try:
    status = command() or 0
    if sys.stdout is not None:
      sys.stdout.flush()  # here a full disk behind it can be reported
    return status
  except BrokenPipeError:  # whoever read standard output, such as head, has enough
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes once more
    return 141  # as shells have it: 128 + SIGPIPE
  except (UserError, OSError) as e:  # OSError: a full disk, a folder without rights
    print(f'error: {progress.escape_control(str(e))}', file=sys.stderr)
    return 2
  except (RuntimeError, AssertionError) as e:
    if not traceback.extract_tb(e.__traceback__)[-1].filename.endswith('xla_bridge.py'):
      raise  # JAX looks for its devices there
    from affectcodec_jax.common.places import no_device
    print(f'error: {no_device(e)}', file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    print('stopped', file=sys.stderr)
    return 130


def require_extra(module, package=None, extras='requirements-eval.txt'):
  """Imports and returns a module that only some commands need; `package` where it has another name.

  Raises:
    UserError: it is not installed.
  """
  try:
    return importlib.import_module(module)
  except ImportError as e:
    raise UserError(f'{package or module} is not installed; {extras} in the repository says how') from e
