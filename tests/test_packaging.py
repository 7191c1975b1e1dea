"""What is installed: extras as the requirements files say, and a wheel that holds all that is tracked."""

import pathlib
import shutil
import subprocess
import sys
import tomllib
import zipfile

from packaging.requirements import Requirement
import pytest

ROOT = pathlib.Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
EXTRAS = PROJECT['optional-dependencies']
DEVICES = {'tpu': 'tpu', 'cuda': 'cuda12'}  # extras without a requirements file, and jax's for them


def requirements(name):
  """(files included, requirements) of a requirements file."""
  lines = [line.split('#')[0].strip() for line in (ROOT / name).read_text().splitlines()]
  included = [line.removeprefix('-r').strip() for line in lines if line.startswith('-r')]
  return included, [Requirement(line) for line in lines if line and not line.startswith('-r')]


@pytest.mark.parametrize('extra', [name for name in EXTRAS if name not in DEVICES])
def test_an_extra_is_its_requirements_file(extra):
  included, wanted = requirements(f'requirements-{extra}.txt')
  assert included == ['requirements.txt']  # a package's own dependencies, which an extra adds to
  assert sorted(map(str, map(Requirement, EXTRAS[extra]))) == sorted(map(str, wanted))


def test_every_requirements_file_is_an_extra_or_of_several():
  files = {path.stem.removeprefix('requirements-') for path in ROOT.glob('requirements-*.txt')}
  assert files == EXTRAS.keys() - DEVICES.keys() | {'parity'}
  included, _ = requirements('requirements-parity.txt')
  assert sorted(included) == ['requirements-dev.txt', 'requirements-eval.txt', 'requirements-export.txt',
                              'requirements-gcs.txt', 'requirements-lm.txt']


@pytest.mark.parametrize('extra, of_jax', DEVICES.items())
def test_jax_for_an_accelerator_is_of_the_same_versions(extra, of_jax):
  jax, = (r for r in requirements('requirements.txt')[1] if r.name == 'jax')
  found, = map(Requirement, EXTRAS[extra])
  assert found.extras == {of_jax} and (found.name, found.specifier) == (jax.name, jax.specifier)


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
  """{name: content} of the wheel built from what is tracked, and nothing else, without a network."""
  if not (ROOT / '.git').exists():
    pytest.skip('not a git checkout')
  folder = tmp_path_factory.mktemp('wheel')
  for name in tracked():
    target = folder / 'checkout' / name
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(ROOT / name, target)
  build = [sys.executable, '-m', 'pip', '--disable-pip-version-check', 'wheel', '--quiet']
  offline = ['--no-deps', '--no-build-isolation', '--no-index']
  subprocess.run([*build, *offline, '--wheel-dir', folder, folder / 'checkout'], check=True)
  path, = folder.glob('*.whl')
  with zipfile.ZipFile(path) as file:
    return {name: file.read(name) for name in file.namelist()}


def tracked(*folders):
  """Paths of the files of a clean checkout, in these folders, from the repository's root."""
  command = ['git', 'ls-files', '-z', '--', *folders]
  listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
  return [name for name in listed.stdout.decode().split('\0') if name and (ROOT / name).exists()]


def test_a_wheel_holds_every_file_of_the_package(wheel):
  """Modules of every room, weights with their cards, the report's page and the marker of types."""
  names = tracked('affectcodec_jax')
  assert {'affectcodec_jax/py.typed', 'affectcodec_jax/evaluation/report.html'} <= set(names)
  assert sorted(n for n in wheel if n.startswith('affectcodec_jax/')) == sorted(names)
  assert [n for n in names if wheel[n] != (ROOT / n).read_bytes()] == []
  top = {n.split('/')[0] for n in wheel}
  assert top == {'affectcodec_jax', f'affectcodec_jax-{version()}.dist-info'}  # no tests, no configs


def test_a_wheel_says_what_it_needs(wheel):
  text = wheel[f'affectcodec_jax-{version()}.dist-info/METADATA'].decode()
  extras = [line.split(': ')[1] for line in text.splitlines() if line.startswith('Provides-Extra: ')]
  assert sorted(extras) == sorted(EXTRAS)
  needs = [Requirement(line.split(': ', 1)[1]) for line in text.splitlines()
           if line.startswith('Requires-Dist: ')]
  always = [str(r) for r in needs if not r.marker]
  assert sorted(always) == sorted(map(str, requirements('requirements.txt')[1]))


def version():
  import affectcodec_jax
  return affectcodec_jax.__version__


def test_citation_and_changelog_are_of_this_version():
  assert f'\nversion: {version()}\n' in (ROOT / 'CITATION.cff').read_text()
  assert f'## [{version()}]' in (ROOT / 'CHANGELOG.md').read_text()
