"""The README and the documentation site: every page has its place, every link in them leads somewhere."""

import importlib
import json
import pathlib
import re

import pytest

from affectcodec_jax.emotion import teachers
from affectcodec_jax.models import context

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


def test_the_readmes_table_is_what_its_log_says():
  """Every cell within half a unit of its last digit, which is a hundredth or a per cent."""
  codec = {'**this**': 'affectcodec', '**this, refined**': 'refined', 'Codec 2': 'codec2', 'Opus': 'opus',
           'AMR-WB': 'amrwb'}
  metrics = ('pesq', 'estoi', 'visqol', 'distillmos', 'f0_correlation', 'speaker_resemblyzer', 'wer',
             'all_agreement', 'network_agreement', 'svm_agreement', 'whisper_svm_agreement')
  test, refined = (json.loads((DOCS / 'logs' / 'evaluation' / f'{name}.json').read_text())['systems']
                   for name in ('test-0.6.0', 'refined-0.8.0'))
  measured = [*test.values(), *(r | {'system': 'refined'} for r in refined.values())]
  rows = [[c.strip() for c in line.strip('|').split('|')] for line in README.read_text().splitlines()]
  rows = [cells for cells in rows if cells[0] in codec]
  assert len(rows) == 11
  for name, kbps, *values in rows:
    scores, = (r['scores'] for r in measured
               if r['system'] == codec[name] and abs(r['measured_kbps'] - float(kbps)) < 0.06)
    for metric, value in zip(metrics, values, strict=True):
      number, per_cent = re.fullmatch(r'([\d.]+)( %)?', value).groups()
      shown = float(number) / 100 if per_cent else float(number)
      assert abs(scores[metric]['mean'] - shown) <= 0.005 + 1e-6, (name, kbps, metric)


def test_the_latencies_are_those_of_the_configurations():
  """The first table of docs/streaming.md, by their contexts: chunks of 10 frames, whole lookahead."""
  rows = re.findall(r'^\| `(configs/\w+)\.py`[^|]*\|(.+)\|$', (DOCS / 'streaming.md').read_text(), re.M)
  assert [name for name, _ in rows] == ['configs/lite', 'configs/base', 'configs/paper']
  for name, cells in rows:
    config = importlib.import_module(name.replace('/', '.')).get_config()
    encoder, decoder = context.encoder_context(config.model), context.decoder_context(config.model)
    emotion = teachers.emotion_context(config, {})
    latencies = 20 * (10 + max(encoder, emotion)), 20 * (10 + decoder - 1)
    shown = [int(n) for n in re.findall(r'\d+', cells)]
    assert shown == [encoder, emotion, decoder, *latencies, sum(latencies)], name


@pytest.mark.parametrize('page', [README, DOCS / 'logs' / 'index.md', *sorted(DOCS.glob('*.md'))],
                         ids=lambda p: p.name)
def test_links_within_the_repository_lead_somewhere(page):
  page = page.resolve()  # some pages of the site are files that lie elsewhere
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
  assert sorted(listed) == sorted(str(p.relative_to(DOCS)) for p in DOCS.rglob('*.md'))
