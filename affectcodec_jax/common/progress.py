"""Progress of long work in one style, and how much a command says: its options --quiet and --verbose."""

import logging
import re
import sys

OPTIONS = {('-q', '--quiet'): 'no progress bars', ('-v', '--verbose'): 'say what is loaded and done, too'}
_quiet = False


def take_options(words):
  """`words` of a command line without --quiet and --verbose, which take effect."""
  quiet, verbose = OPTIONS
  set_verbosity(not set(quiet).isdisjoint(words), not set(verbose).isdisjoint(words))
  return [w for w in words if w not in quiet + verbose]


def set_verbosity(quiet=False, verbose=False):
  """Whether bars are hidden, and whether what the package does is logged."""
  global _quiet
  _quiet = quiet
  logging.getLogger('affectcodec_jax').setLevel(logging.INFO if verbose else logging.NOTSET)


def is_quiet():
  """Whether --quiet was given."""
  return _quiet


def is_hidden():
  """Whether bars are hidden: by --quiet, or because standard error is not a terminal."""
  return _quiet or sys.stderr is None or not sys.stderr.isatty()


def bar(items=None, total=None, unit='it', **more):
  """A `tqdm` bar on standard error with count, rate and time left, where it is not hidden.

  Args:
    items: an iterable to go through; None for a bar that is moved by `update`.
    total: how many items, where `items` does not know.
    unit: what one is.
    **more: of `tqdm.tqdm`.
  """
  import tqdm
  return tqdm.tqdm(items, total=total, unit=unit, dynamic_ncols=True, disable=is_hidden(), **more)


def log_to_stderr():
  """Sends what is logged to standard error, each message once; nothing where a program has its own way."""
  handler = logging.StreamHandler()
  handler.addFilter(Once())
  handler.setFormatter(_Lines('%(message)s'))
  logging.basicConfig(level=logging.WARNING, handlers=[handler])


def escape_control(text):
  """`text` with control characters as `\\x0a`: names of files may hold line breaks and more."""
  return re.sub(r'[\x00-\x1f\x7f]', lambda found: f'\\x{ord(found[0]):02x}', text)


class _Lines(logging.Formatter):
  """A line a message."""

  def formatMessage(self, record):  # noqa: N802
    return escape_control(super().formatMessage(record))


class Once(logging.Filter):
  """Lets each message of a log through once."""

  def __init__(self):
    super().__init__()
    self._seen = set()

  def filter(self, record):
    """False for a message that was let through before."""
    said = record.levelno, record.getMessage()
    new = said not in self._seen
    self._seen.add(said)
    return new
