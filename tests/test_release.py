"""Released codecs: the same tokens as the run's, whole or refused, and a start for training."""

import functools
import importlib.util
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from affectcodec_jax import __main__ as cli
from affectcodec_jax import load, losses, train
from affectcodec_jax.audio import read_audio, write_audio
from affectcodec_jax.common import packaged
from affectcodec_jax.common.errors import UserError
from affectcodec_jax.data.synthetic import SyntheticSource
from affectcodec_jax.emotion import teachers
from affectcodec_jax.inference import release, weights
from affectcodec_jax.models.params import load_params, save_params
from affectcodec_jax.training import checkpoints, parallel
from affectcodec_jax.training.state import create_state
from configs import finetune, lite
from tests.conftest import run_until, tiny


def config(seed=0):
  c = tiny(lite.get_config())  # which compiles soonest
  c.data.source, c.data.path, c.loss.adversarial = 'synthetic', '', 1.0
  c.train.steps, c.train.adversarial_start, c.seed = 2, 0, seed
  return c


@pytest.fixture(scope='module', autouse=True)
def _still_steps():
  """Steps that only count: at a rate of 0 the real one would do no more, after a minute of compiling."""
  def train_step(state, frozen, batch, **options):
    return state.replace(step=state.step + 1), {'loss/mel': jnp.float32(1), 'finite': jnp.float32(1)}

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(parallel, 'train_step', train_step)
    yield


@pytest.fixture(scope='module')
def released(tmp_path_factory):
  """(workdir of a run with two steps, the folder released of it)."""
  run, out = tmp_path_factory.mktemp('run'), tmp_path_factory.mktemp('released')
  train.train(config(seed=1), run)
  assert cli.main(['release', str(run), str(out)]) == 0
  return run, out


def test_a_released_codec_is_the_run_in_float16(released):
  """Parameters within float16's rounding, 2^-11; what it encodes it decodes; its tokens are its own."""
  run, out = released
  ours, theirs = load(out), load(run)
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=2 ** -11, atol=1e-7),
               ours.params, theirs.params)
  audio = SyntheticSource(1)[0]['audio']
  tokens = ours.encode(audio, 16000)
  assert ours.decode(tokens).shape == audio.shape
  with pytest.raises(UserError, match='made by model'):
    theirs.decode(tokens)
  assert ours.step == 2 and str(run) not in (out / 'codec.json').read_text()


def test_a_released_folder_is_a_repository_with_a_model_card(released, tmp_path):
  """YAML on top that the Hub knows, the licence of the packaged teacher, a table of what is there."""
  yaml = pytest.importorskip('yaml')
  run, out = released
  text = (out / 'README.md').read_text()
  _, metadata, body = text.split('---\n', 2)
  about = yaml.safe_load(metadata)
  assert about['library_name'] == 'affectcodec_jax' and about['license'] == 'cc-by-nc-sa-4.0'
  assert about['pipeline_tag'] == 'audio-to-audio' and 'arxiv:2605.23373' in about['tags']
  assert load(out).fingerprint.hex() in body and 'of 0.75, 1.5, 2.25 kbps' in body
  named = set(re.findall(r'^\| `([\w.]+\.(?:json|safetensors))` \|', body, re.M))
  assert named == {p.name for p in out.iterdir()} - {'README.md'}
  if importlib.util.find_spec('huggingface_hub'):
    from huggingface_hub import ModelCard
    assert ModelCard.load(out / 'README.md').data.to_dict()['tags'] == about['tags']
  shutil.copytree(out, tmp_path / 'again')
  (tmp_path / 'again' / 'README.md').write_text('precious')
  assert cli.main(['release', str(run), str(tmp_path / 'again')]) == 0
  assert (tmp_path / 'again' / 'README.md').read_text() == 'precious'


def test_the_card_has_the_packaged_teachers_licence_for_its_values_alone(released, tmp_path):
  """Not by the name of a file: another teacher may lie where the package's was copied."""
  run, _ = released
  shutil.copytree(run, tmp_path / 'run')
  teacher = load_params(run / 'teacher.safetensors')
  teacher['head']['bias'] += 0.5
  save_params(tmp_path / 'run' / 'teacher.safetensors', teacher)
  assert cli.main(['release', str(tmp_path / 'run'), str(tmp_path / 'out')]) == 0
  card = (tmp_path / 'out' / 'README.md').read_text()
  assert 'license: cc' not in card and 'Not said yet' in card


def test_changed_files_are_refused(released, tmp_path):
  _, out = released
  for name in ('codec.safetensors', 'teacher.safetensors'):
    folder = tmp_path / name
    folder.mkdir()
    for file in out.iterdir():
      (folder / file.name).write_bytes(file.read_bytes())
    data = bytearray((folder / name).read_bytes())
    data[-2] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(UserError, match='not those that were released'):
      load(folder)
    (folder / name).unlink()
    with pytest.raises(UserError, match='no such file'):
      load(folder)


def test_training_starts_from_a_released_codec_and_then_resumes(released, tmp_path, capsys):
  """What is saved after a step that changes nothing is what was released."""
  _, out = released
  c = config()
  run_until(c, tmp_path, 1, init_from=str(out))
  state = checkpoints.restore_state(tmp_path, jax.eval_shape(lambda: fresh_state(c)))
  wanted = load(out).params
  for tree in (state.params, state.ema):
    jax.tree.map(np.testing.assert_array_equal, tree, wanted)
  jax.tree.map(np.testing.assert_array_equal, state.disc_params,
               load_params(out / 'discriminator.safetensors'))
  assert 'starting from' in capsys.readouterr().out
  # The run's own checkpoint comes first; what it began from need not be there any more.
  train.train(c, tmp_path, init_from=str(tmp_path / 'moved'))
  printed = capsys.readouterr().out
  assert 'resumed at step 1' in printed and 'starting from' not in printed


def fresh_state(c):
  frozen = {'teacher': weights.load_teacher(c)}
  return create_state(c, jax.random.PRNGKey(0), frozen, np.zeros((1, 3200), np.float32))


def test_a_codec_of_other_sizes_is_refused(released, tmp_path):
  _, out = released
  c = config()
  c.model.adapter_dim += 8
  with pytest.raises(UserError, match=r'model\.adapter_dim=.*give the same value'):
    train.train(c, tmp_path, init_from=str(out))
  with pytest.raises(UserError, match='not a released codec'):
    train.train(config(), tmp_path / 'b', init_from=str(tmp_path))
  assert not (tmp_path / 'b').exists()  # before anything is made


def test_a_codec_of_another_teacher_is_refused(released):
  """By its depth here; of Whisper by its layer, which says nothing of others. Older runs lack both."""
  _, out = released
  c = config()
  c.teacher.depth = 8
  with pytest.raises(UserError, match=r'teacher\.depth=9, this configuration 8'):
    release.initialise(None, c, out)
  c = config()
  same = teachers.identity(c)
  c.teacher.layer = 2
  assert teachers.identity(c) == same
  c.teacher.update(kind='whisper_base', dim=512)
  second = teachers.identity(c)
  c.teacher.layer = 3
  assert teachers.identity(c) != second
  third = teachers.identity(c)
  del c.teacher.layer
  assert teachers.identity(c) == third


def test_the_packaged_codec_encodes_speech():
  """Small enough, fit for configs/finetune.py, and trained: closer to the sound at the higher rates.

  A mel distance of 1.2, of what is above the floor of training, is that of a codec of some hundred steps.
  (From 3 to 6 kbps only real speech gains.)
  """
  assert sum(f.stat().st_size for f in packaged.FOLDER.iterdir()) < 25e6
  codec = load()
  assert codec.config.model.to_dict() == finetune.get_config().model.to_dict() | {
      name: list(v) for name, v in finetune.get_config().model.to_dict().items() if isinstance(v, tuple)}
  audio = np.concatenate([SyntheticSource(4)[i]['audio'] for i in range(4)])
  tokens = codec.encode(audio, 16000)
  floor = codec.config.loss.mel_floor
  target = losses.mel_targets(audio[None], floor)
  decoded = [losses.mel_targets(codec.decode(tokens, kbps)[None], floor) for kbps in (1.5, 3, 6)]
  distance = [float(losses.mel_distance(d, target)[0]) for d in decoded]
  assert max(distance[1:]) < distance[0] < 1.2


def test_one_line_each_encodes_and_decodes_without_a_checkpoint(tmp_path, capsys):
  speech, tokens, out = tmp_path / 'in.wav', tmp_path / 'in.afc', tmp_path / 'out.wav'
  write_audio(speech, SyntheticSource(1)[0]['audio'])
  assert cli.main(['encode', str(speech), str(tokens), '--kbps', '1.5']) == 0
  assert cli.main(['decode', str(tokens), str(out)]) == 0
  assert cli.main(['info']) == 0 and cli.main(['info', str(tokens)]) == 0
  assert len(read_audio(out)) == len(read_audio(speech))
  assert f'model       {load().fingerprint.hex()}' in capsys.readouterr().out
