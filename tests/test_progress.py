"""Progress bars and logs: quiet without a terminal and with --quiet, each warning once."""

import io
import logging
import subprocess
import sys

import pytest

from affectcodec_jax.cli import program
from affectcodec_jax.common import progress


class Terminal(io.StringIO):
  """Standard error that says that it is a terminal."""

  def isatty(self):
    return True


@pytest.fixture(autouse=True)
def _as_it_was():
  yield
  progress.set_verbosity()


@pytest.mark.parametrize('stream, quiet, shown', [(Terminal, False, True), (Terminal, True, False),
                                                  (io.StringIO, False, False)])
def test_bars_are_for_terminals_and_not_for_quiet(monkeypatch, stream, quiet, shown):
  said = stream()
  monkeypatch.setattr(sys, 'stderr', said)
  progress.set_verbosity(quiet=quiet)
  assert list(progress.bar([1, 2, 3], unit='file')) == [1, 2, 3]
  assert ('3/3' in said.getvalue() and 'file/s' in said.getvalue()) == shown
  assert bool(said.getvalue()) == shown


def test_a_bar_without_standard_error_is_none(monkeypatch):
  monkeypatch.setattr(sys, 'stderr', None)
  assert list(progress.bar(range(3))) == [0, 1, 2]


def test_options_are_taken_off_any_command():
  logger = logging.getLogger('affectcodec_jax')
  assert progress.take_options(['a', '-q', 'b']) == ['a', 'b'] and progress.is_quiet()
  assert logger.level == logging.NOTSET
  assert progress.take_options(['--verbose', 'a']) == ['a'] and not progress.is_quiet()
  assert logger.isEnabledFor(logging.INFO)
  assert progress.take_options(['a']) == ['a'] and logger.level == logging.NOTSET
  for name in program.COMMANDS:  # and every help lists them
    assert {'-q', '--quiet', '-v', '--verbose'} <= set(program.options(name))


def test_a_warning_is_said_once_in_a_command_and_information_when_asked_for():
  """In a process of its own: the test runner has handlers already."""
  code = ('import logging\n'
          'from affectcodec_jax.common import errors, progress\n'
          'log = logging.getLogger("affectcodec_jax.x")\n'
          'def command():\n'
          '  for i in (1, 1, 2):\n'
          '    logging.warning("%s: damaged", i)\n'
          '    log.info("read %s", i)\n'
          'progress.take_options(["-v"])\n'
          'errors.run_command(command)\n'
          'progress.take_options([])\n'
          'log.info("not asked for")\n')
  done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
  assert done.stderr.splitlines() == ['1: damaged', 'read 1', '2: damaged', 'read 2']
