"""The README and the documentation site: every page has its place, every link in them leads somewhere."""

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
DOCS = ROOT / 'docs'
README = ROOT / 'README.md'


def test_the_readme_is_read_in_two_minutes():
  """Under 120 lines, with the commands that install and run the main job and the tests, word for word."""
  lines = README.read_text().splitlines()
  assert len(lines) < 120
  for command in (
      'python3 -m venv .venv && . .venv/bin/activate && pip install -q -r requirements.txt && python -m '
      'affectcodec_jax.train --config configs/base.py --workdir runs/base',
      'python3 -m venv .venv-test && . .venv-test/bin/activate && pip install -q -r '
      'requirements-dev.txt && python -m pytest'):
    assert command in lines


@pytest.mark.parametrize('page', [README, *sorted(DOCS.glob('*.md'))], ids=lambda p: p.name)
def test_links_within_the_repository_lead_somewhere(page):
  for target in re.findall(r'\]\(([^)\s]+)\)', page.read_text()):
    if not re.match('[a-z]+:', target):
      path, _, anchor = target.partition('#')
      file = page.parent / path if path else page
      assert file.exists(), f'{page.name}: {target}'
      if anchor and file.suffix == '.md':
        headings = re.findall(r'^#+ (.+)$', file.read_text(), re.M)
        slugs = {re.sub(r'[^\w -]', '', h.lower()).replace(' ', '-') for h in headings}
        assert anchor in slugs, f'{page.name}: {target}'


def test_the_site_has_every_page_once():
  """In the order of mkdocs.yml, which is made by hand."""
  listed = re.findall(r'^\s+- .+: (\S+\.md)$', (ROOT / 'mkdocs.yml').read_text(), re.M)
  assert sorted(listed) == sorted(p.name for p in DOCS.glob('*.md'))
