"""The program `affectcodec`, which is `python -m affectcodec_jax` too: finds the command and runs it."""

import argparse
import os
import sys

from affectcodec_jax.cli import analyse, codec, corpus, publish, teacher, training
from affectcodec_jax.common import progress
from affectcodec_jax.common.errors import UserError, run_command

GROUPS = {
    'Speech and token files': codec.COMMANDS,
    'Training and scores': training.COMMANDS | analyse.COMMANDS,
    'Corpora': corpus.COMMANDS,
    'Emotion teachers': teacher.COMMANDS,
    'Codecs for others': publish.COMMANDS,
}
COMMANDS = {name: command for commands in GROUPS.values() for name, command in commands.items()}


def main(argv=None):
  """Runs the command that the words `argv` name; returns the exit status."""
  words = list(sys.argv[1:] if argv is None else argv)
  return run_command(lambda: _run(words))


def _run(words):
  if not words or words[0] in ('-h', '--help', 'help'):
    print(overview(), file=sys.stdout if words else sys.stderr)
    return 0 if words else 2
  family = _family(words[0])
  if family and words[1:2] in ([], ['-h'], ['--help']):
    print(f'usage: {program()} {words[0]} COMMAND …\n\n' + _listed(family),
          file=sys.stdout if words[1:] else sys.stderr)
    return 0 if words[1:] else 2
  name, rest = find(words)
  rest = progress.take_options(rest)
  command, parser = COMMANDS[name], make_parser(name)
  if command.takes_config:
    if {'-h', '--help'} & set(rest):
      parser.print_help()
      return 0
    return command.run([parser.prog, *rest])
  args, left = parser.parse_known_args(rest)
  args.overrides = [w for w in left if command.takes_overrides and w.startswith('--config.')]
  unknown = [w for w in left if w not in args.overrides]
  if unknown:
    near = _nearest(unknown[0], {o: o for o in options(name)})
    parser.error(f'unrecognized argument {unknown[0]}{near}')
  return command.run(args)


def find(words):
  """The command's name and the words after it.

  Raises:
    UserError: no such command; says which is the nearest.
  """
  for count in (2, 1):
    name = ' '.join(words[:count])
    if name in COMMANDS:
      return name, words[count:]
  family = _family(words[0])
  if family:
    said, known = ' '.join(words[:2]), {name: name for name in family}
  else:
    said, known = words[0], {name.split()[-1]: name for name in COMMANDS}
    known |= {name.split()[0]: name.split()[0] for name in COMMANDS}
  raise UserError(f"no command '{said}'{_nearest(said, known)}; {program()} --help lists all")


def _family(word):
  """The commands of two words that begin with this one."""
  return [name for name in COMMANDS if name.startswith(word + ' ')]


def options(name):
  """The option strings of a command, such as '--checkpoint'."""
  return [o for action in make_parser(name)._actions for o in action.option_strings]


def make_parser(name):
  """The parser of a command's arguments."""
  command = COMMANDS[name]
  description = command.help[:1].upper() + command.help[1:] + '.'
  parser = argparse.ArgumentParser(
      prog=f'{program()} {name}', description='\n\n'.join(filter(None, (description, command.about))),
      epilog=f'example:\n  {program()} {command.example}',
      formatter_class=argparse.RawDescriptionHelpFormatter)
  command.add_options(parser)
  for names, text in progress.OPTIONS.items():  # `take_options` reads them
    parser.add_argument(*names, action='store_true', help=text)
  return parser


def overview():
  """The help of the program: every command, by group."""
  parts = [f'usage: {program()} COMMAND …', 'A neural speech codec that keeps the feeling.']
  parts += [f'{title}\n{_listed(commands)}' for title, commands in GROUPS.items()]
  return '\n\n'.join([*parts, f'{program()} COMMAND --help says more of one, with an example.'])


def _listed(names):
  return '\n'.join(f'  {name:24}{COMMANDS[name].help}' for name in names)


def program():
  """What the program is called by: its name where it is installed and called so, else the module."""
  called = os.path.basename(sys.argv[0]).startswith('affectcodec')
  return 'affectcodec' if called else 'python -m affectcodec_jax'


def _nearest(word, known):
  """The nearest key's value as a question, or nothing where none is near."""
  import difflib
  near = difflib.get_close_matches(word.split('=')[0], known, 1)
  return f" (did you mean '{known[near[0]]}'?)" if near else ''
