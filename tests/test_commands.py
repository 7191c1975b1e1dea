"""The program's commands: their help, what is said of unknown words, and every page that names one."""

import ast
import importlib
import pathlib
import re
import shlex
import subprocess
import sys

import pytest

from affectcodec_jax import __main__ as cli
from affectcodec_jax.cli import program
from affectcodec_jax.common.errors import UserError

ROOT = pathlib.Path(__file__).parent.parent
PAGES = sorted(p for pattern in (
    '*.md', 'docs/*.md', 'configs/*.py', 'launch/*', 'examples/*.py', 'benchmarks/*.py', 'web/*.js',
    'web/*.html', 'web/src/*', 'affectcodec_jax/**/*.py', 'affectcodec_jax/**/*.md')
               for p in ROOT.glob(pattern))
MODULE = re.compile(r'python -m affectcodec_jax((?:\.\w+)*)(?![\w.])([^\n`|;&<>]*)')
SHORT = re.compile(r'`(' + '|'.join(program.COMMANDS) + r')\b([^`]* --[^`]*)`')
PROGRAM = re.compile(r'(?:^\s*|`|\$ )affectcodec ([a-z-][^\n`|;&<>]*)', re.MULTILINE)


def test_help_lists_every_command_by_group(capsys):
  assert cli.main(['--help']) == 0
  said = capsys.readouterr().out
  for title, commands in program.GROUPS.items():
    assert title in said and all(f'\n  {name} ' in said for name in commands)
  assert cli.main([]) == 2 and capsys.readouterr().err == said
  assert cli.main(['teacher', '--help']) == 0
  assert capsys.readouterr().out.count('\n  teacher ') == 5
  assert cli.main(['teacher']) == 2


@pytest.mark.parametrize('name', program.COMMANDS)
def test_each_help_ends_with_an_example_that_parses(name, capsys):
  try:
    assert cli.main([*name.split(), '--help']) == 0
  except SystemExit as e:
    assert e.code == 0
  said = capsys.readouterr().out
  _, example = said.rstrip().split('\nexample:\n  ')
  assert example.startswith(f'{program.program()} {name} ')
  words = shlex.split(example.split(' < ')[0].replace('\\\n', ' '))[len(program.program().split()):]
  assert check_words(words) == name
  command, rest = program.COMMANDS[name], words[len(name.split()):]
  if not command.takes_config:
    program.make_parser(name).parse_args(rest)


def test_unknown_words_suggest_the_nearest(capsys):
  for words, near in ((['encod'], 'encode'), (['evalute', 'x'], 'evaluate'), (['techer'], 'teacher'),
                      (['distil'], 'teacher distil'), (['teacher', 'jugde'], 'teacher judge'),
                      (['analyse', 'leakge'], 'analyse leakage'), (['xyzzy'], None)):
    assert cli.main(words) == 2
    said = capsys.readouterr().err
    assert said.startswith('error: no command') and said.count('\n') == 1
    assert (f"did you mean '{near}'?" in said) if near else ('did you mean' not in said)
  with pytest.raises(SystemExit) as stopped:
    cli.main(['encode', 'a.wav', 'a.afc', '--chekpoint', 'run'])
  assert stopped.value.code == 2 and "did you mean '--checkpoint'?" in capsys.readouterr().err


def test_a_help_imports_little_and_nothing_heavy():
  """Importing is what a start takes: some 55 modules, and room for as many; JAX alone is 700."""
  code = ('import sys\n'
          'before = len(sys.modules)\n'
          'import affectcodec_jax.__main__ as m\n'
          'm.main(["--help"])\n'
          'assert len(sys.modules) - before < 110, len(sys.modules) - before\n'
          'assert not {"jax", "numpy", "absl", "soundfile", "multiprocessing"} & set(sys.modules)')
  subprocess.run([sys.executable, '-c', code], cwd=ROOT, check=True, capture_output=True)


def texts(path):
  """The texts of a page in which commands are looked for: of Python its strings, with {…} as X."""
  if path.suffix != '.py':
    return [path.read_text()]
  found, inside = [], set()
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.JoinedStr):
      inside |= {id(part) for part in node.values}
      found.append(''.join(part.value if isinstance(part, ast.Constant) else 'X' for part in node.values))
    elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside:
      found.append(node.value)
  return found


def commands(text):
  """[(module after `python -m affectcodec_jax`, words after it)] of the commands that a text names."""
  text = re.sub(r'\s*\\\n\s*', ' ', text)
  text = re.sub(r'`[^`\n]*\n[^`\n]*`', lambda span: span[0].replace('\n', ' '), text)  # broken over lines
  found = [(m[1], m[2]) for m in MODULE.finditer(text)]
  found += [('', m[1]) for m in PROGRAM.finditer(text)] + [('', m[1] + m[2]) for m in SHORT.finditer(text)]
  for module, rest in found:
    rest = rest.split(' #')[0]
    try:
      words = shlex.split(rest)
    except ValueError:  # half of a pair of quotes: of the text around
      words = rest.split()
    yield module, [w.strip('"\'(),.:') for w in words if w.strip('"\'(),.:')]


def fields(words):
  """The configuration that a command names, or the base."""
  file = next((words[i + 1] for i, w in enumerate(words[:-1]) if w == '--config'), 'configs/base.py')
  file = next((w.split('=')[1] for w in words if w.startswith('--config=')), file)
  file, _, variant = file.partition(':')
  if not (ROOT / file).is_file():
    file = 'configs/base.py'  # a placeholder
  module = importlib.import_module(file.removesuffix('.py').replace('/', '.'))
  return module.get_config(*([variant] if variant and not variant.isupper() else []))


def check_words(words):
  """The command that words name; fails where it, an option or a configuration's field does not exist."""
  name, rest = program.find(words)
  command, known = program.COMMANDS[name], program.options(name)
  for option in (w.split('=')[0] for w in rest if re.match('--[a-z]', w)):
    if option.startswith('--config.') and (command.takes_config or command.takes_overrides):
      value = fields(rest)
      for field in () if option == '--config.FIELD' else option.split('.')[1:]:
        assert field in value, f'{option}: no such field'
        value = value[field]
    else:
      assert option in known, f'{name}: no option {option}'
  return name


def test_every_page_names_commands_and_options_that_exist():
  named = []
  for path in PAGES:
    for text in texts(path):
      for module, words in commands(text):
        if module == '.train':
          words = ['train', *words]
        else:
          assert module == '', f'{path}: {module}'
        if not words or words[0] in ('--help', 'COMMAND') or words[0] == 'X':
          continue
        try:
          named.append(check_words(words))
        except (UserError, AssertionError) as e:
          raise AssertionError(f'{path}: {" ".join(words)}: {e}') from e
  documented = set(program.COMMANDS)
  assert documented <= set(named), f'no page names {documented - set(named)}'
  assert len(named) > 80  # there are so many: the patterns above still find them


def test_every_page_names_modules_that_exist():
  """`affectcodec_jax.a.b.c`: a module of the package, and at most a name in it; `a/b.py`: a file."""
  package = ROOT / 'affectcodec_jax'
  for path in PAGES:
    for dotted in re.findall(r'(?<![\w/])affectcodec_jax((?:\.\w+)+)', path.read_text()):
      place, names = package, dotted.split('.')[1:]
      while names and (place / names[0]).is_dir():
        place = place / names.pop(0)
      module = place / f'{names[0]}.py' if names and (place / f'{names[0]}.py').is_file() else None
      rest = names[1:] if module else names
      if rest and rest[0] in ('egg', 'safetensors'):
        continue
      source = (module or place / '__init__.py').read_text()
      assert not rest or re.search(rf'\b{rest[0]}\b', source), f'{path}: affectcodec_jax{dotted}'
    if path.suffix == '.md':
      for file in re.findall(r'`([a-z_0-9/]+/[a-z_0-9]+\.py)`', path.read_text()):
        assert (ROOT / file).is_file() or (package / file).is_file(), f'{path}: {file}'
