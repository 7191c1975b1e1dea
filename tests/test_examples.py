"""The examples run as their documentation says, on token shards of random codes."""

import argparse
import functools
import json
import pathlib
import re

import jax
import numpy as np
import pytest
import soundfile

from affectcodec_jax.common.files import write_json
from affectcodec_jax.tokens import lm
from affectcodec_jax.tokens import shards as token_shards
from affectcodec_jax.tokens.afc import Tokens
from configs import base, lite
from examples import language_model, read_grain
from tests.conftest import tiny, untrained_release


def write_shards(folder, kinds, model='00' * 8, clips=12, frames=60):
  """A folder as `tokenize` makes it, of `clips` clips in two shards; returns their codes by path."""
  rng, codes = np.random.default_rng(0), {}
  for shard in range(2):
    part = []
    for i in range(shard * clips // 2, (shard + 1) * clips // 2):
      path, length = f's{i % 3}/{i}.wav', frames - i
      codes[path] = rng.integers(0, 32768, (length, 2), dtype=np.int32)
      tokens = Tokens(codes[path], 320 * length, -1.5, bytes.fromhex(model))
      row = {'speaker': f's{i % 3}', 'emotion': ('happy', 'sad')[i % 2],
             'split': ('train', 'train', 'test', 'valid')[i % 4]}
      part.append(token_shards.make_clip(tokens, path, row))
    for kind in kinds:
      token_shards.write_shard(folder / token_shards.shard_name(shard, 2, kind), part)
  settings = {'shards': 2, 'formats': list(kinds), 'model': model, 'stages': 2}
  write_json(folder / token_shards.INDEX, {'settings': settings, 'shards': {'0': {}, '1': {}}})
  return codes


def test_notebooks_hold_no_outputs_and_name_fields_that_exist():
  """The workflow runs them; here is what it would find last."""
  notebooks = sorted((pathlib.Path(__file__).parents[1] / 'examples').glob('*.ipynb'))
  assert [path.name for path in notebooks] == ['quickstart.ipynb', 'train_on_tpu.ipynb']
  named = []
  for path in notebooks:
    for cell in json.loads(path.read_text())['cells']:
      assert not cell.get('outputs') and cell.get('execution_count') is None
      named += re.findall(r'--config\.([\w.]+)=', ''.join(cell['source']))
  for field in named:
    value = lite.get_config()
    for part in field.split('.'):
      assert part in value, field
      value = value[part]
  assert len(named) > 10


def test_grain_batches_are_the_clips_in_the_delay_pattern(tmp_path):
  codes = write_shards(tmp_path, ['arrayrecord'])
  vocabulary = lm.codes_vocabulary(2)
  batch = read_grain.batches(tmp_path, vocabulary, batch_size=3, frames=60, split='train')
  seen = []
  for _ in range(2):  # 6 clips are for training
    ids, mask = next(batch)
    assert ids.shape == (3, 63, 4) and mask.shape == (3, 63)
    seen += [lm.join(vocabulary.to_codes(lm.undelay(row))) for row in lm.unpad(ids, mask)]
  wanted = [c for i, c in enumerate(codes.values()) if i % 4 < 2]
  assert len(wanted) == len(seen) == 6
  for clip in seen:
    assert any(np.array_equal(clip, w) for w in wanted)
  assert len({clip.tobytes() for clip in seen}) == 6  # each once an epoch


def test_grain_batches_go_on_from_a_state_and_windows_are_random(tmp_path):
  codes = write_shards(tmp_path, ['arrayrecord'])
  make = lambda: read_grain.batches(tmp_path, lm.codes_vocabulary(1), batch_size=4, frames=20, seed=1)
  first, second = make(), make()
  next(first)
  state = first.get_state()
  following = next(first)
  second.set_state(state)
  np.testing.assert_array_equal(next(second)[0], following[0])
  assert following[0].shape == (4, 21, 2) and following[1].all()
  starts = []
  for row in following[0]:
    window = lm.join(lm.undelay(row) - lm.codes_vocabulary(1).offsets)[:, 0]
    found = [(c, s) for c in codes.values() for s in range(len(c) - 19) if (c[s:s + 20, 0] == window).all()]
    assert len(found) == 1
    starts.append(found[0][1])
  assert max(starts) > 0


def test_datasets_batches_are_the_clips_as_sequences(tmp_path):
  pytest.importorskip('datasets')
  from examples import read_datasets
  codes = write_shards(tmp_path, ['parquet'])
  vocabulary = lm.codes_vocabulary(2, divided=False)
  batches = list(read_datasets.batches(tmp_path, vocabulary, batch_size=4, split='train'))
  assert [len(ids) for ids, _ in batches] == [4, 2]
  seen = [vocabulary.to_codes(lm.from_sequence(row, 2)) for ids, _ in batches for row in ids]
  wanted = [c for i, c in enumerate(codes.values()) if i % 4 < 2]
  for clip in wanted:
    assert any(np.array_equal(clip, s) for s in seen)


def test_a_continuation_is_what_the_model_says_at_once():
  """The likeliest at each step, from the cache, is the likeliest where the model reads the whole."""
  vocabulary = lm.codes_vocabulary(1)
  model = language_model.LanguageModel(vocabulary, width=16, layers=1, heads=2, longest=16)
  params = jax.jit(model.init)(jax.random.PRNGKey(0), np.zeros((1, 4, 2), np.int32))['params']
  prompts = np.random.default_rng(0).integers(0, 32768, (3, 5, 1))
  options = argparse.Namespace(seed=0, top_k=1, temperature=1.0)
  continued = language_model.continue_prompts(model, params, prompts, 12, options)
  np.testing.assert_array_equal(continued[:, :5], prompts)
  ids = np.stack([lm.delay(vocabulary.to_ids(lm.split(codes))) for codes in continued])  # [3, 13, 2]
  logits = jax.jit(model.apply)({'params': params}, language_model.with_start(ids)[:, :-1])
  for k, of_column in enumerate(logits):
    likeliest = vocabulary.offsets[k] + of_column.argmax(axis=-1)  # [3, 13]
    made = np.s_[:, 5 + k:12 + k]  # rows of this column that are no prompt
    np.testing.assert_array_equal(likeliest[made], ids[:, :, k][made])


def test_agreement_by_hand():
  clips = [{'speaker': s, 'file': str(i)} for i, s in enumerate('aabb')]
  prompt, made, labels = np.array([0, 1, 2, 2]), np.array([0, 0, 2, 1]), np.array([0, 1, 2, 3])
  rates = language_model.agreement(clips, prompt, made, labels)
  assert rates['own']['mean'] == pytest.approx(2 / 4)
  # Others' prompts: 0 of 3, 1 of 3, 1 of 3, 1 of 3; of the same speaker: 0, 1, 1, 0 of one.
  assert rates['any']['mean'] == pytest.approx(3 / 3 / 4)
  assert rates['same_speaker']['mean'] == pytest.approx(2 / 4)
  assert rates['own_minus_any']['mean'] == pytest.approx(1 / 4)
  assert rates['label']['mean'] == pytest.approx(2 / 4) and rates['prompt_with_label']['mean'] == 3 / 4
  alone = language_model.agreement([c | {'speaker': c['file']} for c in clips], prompt, made, labels)
  assert alone['same_speaker'] is None


def test_the_language_model_trains_continues_and_judges(tmp_path, monkeypatch, capsys):
  """Two steps of a small one. Prompts are judged, by their length, as happy, all else as neutral."""
  network = lambda audio: np.eye(8)[2 if len(audio) == 20 * 320 else 0]
  monkeypatch.setattr(language_model.judges, 'available',
                      lambda: ({'network': network}, {'svm': 'opensmile is not installed'}))
  monkeypatch.setattr(language_model, 'LanguageModel', functools.partial(
      language_model.LanguageModel, width=16, layers=1, heads=2))
  codec, tokens, out = tmp_path / 'codec', tmp_path / 'tokens', tmp_path / 'out'
  for folder in (codec, tokens):
    folder.mkdir()
  config = tiny(base.get_config())
  untrained_release(config, codec)
  write_shards(tokens, ['arrayrecord'], json.loads((codec / 'codec.json').read_text())['fingerprint'])
  args = [str(tokens), str(out), '--checkpoint', str(codec), '--steps', '2', '--frames', '30',
          '--batch-size', '2', '--prompt-seconds', '0.4', '--seconds', '1']
  assert language_model.main(args) == 0
  line = json.loads((out / 'metrics.jsonl').read_text())
  assert line['step'] == 2 and len(line['bits']) == 4 and 2 < line['bits'][0] < 8 < line['bits'][1] < 16
  results = json.loads((out / 'results.json').read_text())
  assert results['clips'] == 3 and results['long_clips'] == 3
  assert list(results['judges']) == ['network'] and 'svm: absent' in capsys.readouterr().out
  scores = results['judges']['network']
  for rates in (scores['model'], scores['real']):
    assert [rates[k]['mean'] for k in ('own', 'any', 'label', 'prompt_with_label')] == [0, 0, 0, 1]
  assert soundfile.info(out / 's2_2.wav').frames == 50 * 320
  assert language_model.main([*args, '--prompt-seconds', '9', '--seconds', '10']) == 2
  assert 'fewer than two' in capsys.readouterr().err
