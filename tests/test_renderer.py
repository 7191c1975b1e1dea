"""Analysis of the source-filter decoder: a fit comes nearer to clips, and the table says by how much."""

import json

import numpy as np
import pytest
from scipy.signal import lfilter
import soundfile as sf

from affectcodec_jax import __main__ as cli
from affectcodec_jax.analysis import renderer
from affectcodec_jax.models import source_filter
from affectcodec_jax.spectral import log_mel
from configs.base import get_config
from tests.conftest import tiny, untrained_release


@pytest.fixture
def lite_release(tmp_path):
  config = tiny(get_config())
  config.model.backbone = 'lite'
  config.rates = (3,)
  (tmp_path / 'lite').mkdir()
  untrained_release(config, tmp_path / 'lite')
  return tmp_path / 'lite'


def test_controls_are_fitted_to_what_source_and_filters_can_say(one_mel_scale):
  """A clip that was rendered: from flat filters the fit finds most of the way back, whatever the noise."""
  rng = np.random.default_rng(0)
  shape = (1, source_filter.SUB_FRAMES * 20, source_filter.BINS)
  pitch = np.zeros((1, 20, source_filter.PITCH_CLASSES), np.float32)
  pitch[..., 60] = 20.0
  flat = source_filter.Controls(pitch, pitch[..., 0], np.full(shape, -3.5, np.float32),
                                np.zeros(shape, np.float32), np.full(shape, -4.5, np.float32))
  shaped = flat._replace(harmonic=(flat.harmonic + rng.normal(size=(*shape[:2], 1))).astype(np.float32))
  source = source_filter.beginning(source_filter.predicted_increments(pitch))
  clip = np.asarray(source_filter.render(shaped, source))
  distance = lambda audio: float(renderer.losses.mel_distance(
      renderer.losses.mel_targets(audio), renderer.losses.mel_targets(clip))[0])
  before = distance(np.asarray(source_filter.render(flat, source)))
  assert distance(renderer.fit(flat, ('harmonic', 'noise', 'phase'), clip, 1e-5, 60)) < before / 3


def test_world_makes_a_steady_voice_again():
  """Pulses at 120 Hz through two resonances: its spectrum to 3 dB, in the mean over mel bands."""
  t = np.arange(16_000)
  pulses = (np.floor(t * 120 / 16_000) > np.floor((t - 1) * 120 / 16_000)).astype(np.float64)
  for hertz in (500, 1500):
    a = 2 * 0.97 * np.cos(2 * np.pi * hertz / 16_000)
    pulses = lfilter([1.0], [1.0, -a, 0.97 ** 2], pulses)
  clip = (0.05 * pulses / pulses.std()).astype(np.float32)
  copy = renderer.world_copy(clip)
  assert copy.shape == clip.shape and copy.dtype == np.float32
  a, b = (np.asarray(log_mel(x[None, 2000:-2000], 1024, 256, 40)).mean(axis=1) for x in (clip, copy))
  assert np.abs(a - b).mean() < 0.15  # of log10


def test_command(lite_release, untrained, tmp_path, capsys, one_mel_scale):
  rng = np.random.default_rng(0)
  (tmp_path / 'speech').mkdir()
  for i in range(2):
    sf.write(tmp_path / 'speech' / f'{i}.wav', 0.1 * rng.normal(size=20_000), 16_000)
  args = ['analyse', 'renderer', '--data', str(tmp_path / 'speech'), '--split', 'train', '--seconds', '1',
          '--steps', '2', '--out', str(tmp_path / 'out')]
  assert cli.main([*args, '--checkpoint', str(lite_release)]) == 0
  results = json.loads((tmp_path / 'out' / 'renderer.json').read_text())
  names = [f'3 stages, {how}' for how in ('rounded', 'not rounded', 'refined')]
  assert [row['name'] for row in results['rows']] == [*names, *renderer.FITS, renderer.WORLD]
  assert all(np.isfinite(row['mel']) for row in results['rows'])
  for more, message in ((['--checkpoint', str(untrained)], 'only lite has a source'),
                        (['--checkpoint', str(lite_release), '--seconds', '3'], 'give fewer --seconds')):
    assert cli.main([*args, *more]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
