"""What a command is, and the options that several have."""

from collections.abc import Callable
from typing import NamedTuple


class Command(NamedTuple):
  """One command of the program.

  Attributes:
    help: what it does, in one line.
    example: the words after the program's name, by which its help ends.
    add_options: a function that adds its arguments to a parser.
    run: a function of the parsed arguments; gives the exit status, or None for 0.
    about: what its help says besides.
    takes_config: it reads `--config FILE --config.FIELD=VALUE …` by itself: `run` gets the words, with the
      program's name before them.
    takes_overrides: `--config.FIELD=VALUE …` are left for it in `args.overrides`.
  """

  help: str
  example: str
  add_options: Callable
  run: Callable
  about: str = ''
  takes_config: bool = False
  takes_overrides: bool = False


def add_checkpoint(parser, text='workdir of a training run, released codec, or org/name on the '
                   'Hugging Face Hub (default: the packaged codec)'):
  parser.add_argument('--checkpoint', default='pretrained', help=text)


def add_kbps(parser):
  parser.add_argument('--kbps', type=float, help='bit rate: a multiple of that of one stage of '
                      'the codec, such as 1.5, 3 or 6 (default: the highest)')


def add_refine(parser):
  parser.add_argument('--refine', type=int, default=0, metavar='STEPS',
                      help='search for codes that decode nearer to the recording, by so many steps of '
                      "gradient descent: 20 are enough, and slow on a CPU (default 0: the encoder's codes)")


def add_config(parser, file, folder=None):
  """The options of commands that take a configuration, for their help: `config.parse_args` reads them.

  `folder` is the default of --workdir, None for commands without.
  """
  parser.add_argument('--config', required=True, metavar='FILE', help=f'configuration, such as {file}')
  if folder:
    parser.add_argument('--workdir', metavar='DIR', help=f'folder of the run (default: {folder})')
  parser.add_argument('--config.FIELD', metavar='VALUE',
                      help='any field of the configuration, e.g. --config.train.steps=100')
