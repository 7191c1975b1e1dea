"""The excitation and the decoder around it, against direct computation in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from affectcodec_jax.common.constants import HIGHEST_PITCH, HOP_LENGTH, LOWEST_PITCH, SAMPLE_RATE
from affectcodec_jax.models import source_filter as sf


def _increments(batch=2, frames=40, seed=0):
  f0 = np.random.default_rng(seed).uniform(60, 500, size=(batch, frames)).astype(np.float32)
  return f0, np.asarray(sf.increments(sf.class_of(f0)))


def test_increments_are_pitch_on_a_grid():
  f0, increments = _increments()
  cents = 1200 * np.log2(increments / 2 ** 32 * SAMPLE_RATE / f0)
  assert np.abs(cents).max() < 0.6  # half a step of 1200 / 1024, and float32


def test_increments_stay_within_the_range():
  low, high = np.asarray(sf.increments(jnp.asarray([-5.0, 500.0]))) / 2 ** 32 * SAMPLE_RATE
  np.testing.assert_allclose([low, high], [LOWEST_PITCH, HIGHEST_PITCH], rtol=1e-3)


def test_phase_is_the_sum_of_its_increments():
  _, increments = _increments()
  phase, rate = map(np.asarray, sf.phases(sf.beginning(increments)))
  expected = np.cumsum(np.pad(rate.astype(np.int64), ((0, 0), (1, 0))), axis=1)[:, :-1]
  np.testing.assert_array_equal(phase, sf.wrap(expected))  # integers: exactly
  assert phase.shape == (2, 40 * HOP_LENGTH)
  for b in range(2):
    np.testing.assert_array_equal(sf.phases_of_frames(increments[b])[:-1], phase[b, ::HOP_LENGTH])
    # In the middle of a frame it moves as the frame says; in between monotonously from one to the next.
    np.testing.assert_array_equal(rate[b, HOP_LENGTH // 2::HOP_LENGTH], increments[b])
  flat = np.sort(np.stack([increments[:, :-1], increments[:, 1:]]), axis=0)
  between = rate[:, HOP_LENGTH // 2:-HOP_LENGTH // 2].reshape(2, 39, HOP_LENGTH)
  assert (between >= flat[0][..., None]).all() and (between <= flat[1][..., None]).all()


def test_pulses_are_a_sum_of_cosines():
  _, increments = _increments()
  phase, rate = sf.phases(sf.beginning(increments))
  pulses = np.asarray(sf.pulse_train(phase, rate))
  phase, rate = np.asarray(phase), np.asarray(rate, np.int64)
  count = int(7600 / 16000 * 2 ** 32) // rate
  direct = sum(np.where(k <= count, np.cos(2 * np.pi * k * (phase / 2 ** 32)), 0)
               for k in range(1, count.max() + 1)) * np.sqrt(2 / count)
  # Float32's sine of angles that are exact: 1e-7, times at most 137 harmonics / sqrt(2 * 137).
  np.testing.assert_allclose(pulses, direct, atol=5e-6)
  assert abs(pulses.var() - 1) < 0.02


def test_pulses_at_a_full_turn_are_finite():
  phase = jnp.asarray([0, 1, -1, 2 ** 31 - 1, -2 ** 31], jnp.int32)
  pulses = np.asarray(sf.pulse_train(phase, jnp.full(5, 2 ** 25, jnp.int32)))
  count = 2040109465 // 2 ** 25
  np.testing.assert_allclose(pulses[:3], np.sqrt(2 * count), rtol=1e-5)  # all harmonics together
  assert np.abs(pulses[3:]).max() < 1.01 * np.sqrt(2 / count)


def test_noise_is_white():
  noise = np.asarray(sf.white_noise(jnp.arange(-1000, 130072, dtype=jnp.int32)))
  n = len(noise)
  assert abs(noise.mean()) < 4 / np.sqrt(n) and abs(noise.var() - 1) < 4 * np.sqrt(0.8 / n)
  for lag in (1, 2, 3, 7, 160, 320, 640, 65536):
    part = noise[:-lag] * noise[lag:]
    assert abs(part.mean()) < 4 / np.sqrt(len(part)), lag
  power = np.abs(np.fft.rfft(noise))[1:] ** 2 / n
  bands = power[:2 ** 16].reshape(64, -1).mean(axis=1)  # each a mean of 1024 exponential values
  np.testing.assert_allclose(bands, 1, atol=5 / np.sqrt(1024))


def test_source_does_not_depend_on_how_a_recording_is_cut():
  """Phase and position of a piece's first frame, and what lies before it, give the whole's excitation."""
  _, increments = _increments(1, 30)
  whole = sf.beginning(increments)
  phase, _ = sf.phases(whole)
  frames = sf.phases_of_frames(increments[0])
  piece = sf.Source(increments[:, 9:21], np.array([3], np.int32), frames[12][None],
                    sf.wrap([12 * HOP_LENGTH]))
  got, _ = sf.phases(piece)
  # But for the half frames at the ends, where the piece does not know how pitch goes on.
  inner = slice(HOP_LENGTH // 2, -HOP_LENGTH // 2)
  np.testing.assert_array_equal(got[0, inner], phase[0, 9 * HOP_LENGTH:21 * HOP_LENGTH][inner])


def test_pitch_of_logits():
  classes = np.array([3.0, 80.4, 156.2])
  logits = -0.5 * ((np.arange(sf.PITCH_CLASSES) - classes[:, None]) / 1.2) ** 2
  logits[0, 120] = logits[0].max() - 0.01  # a second voice far away has no say
  np.testing.assert_allclose(sf.predicted_class(jnp.asarray(logits)), classes, atol=0.05)


def test_filters_shape_the_source():
  """A gain of the pulse train's filter at all bins is a gain of the pulse train; its phase a delay."""
  frames = 12
  _, increments = _increments(1, frames)
  shape = (1, sf.SUB_FRAMES * frames, sf.BINS)
  delay = 5  # samples
  turn = -2 * np.pi * np.arange(sf.BINS) * delay / sf.WINDOW
  controls = sf.Controls(None, None, jnp.full(shape, np.log(0.3)), jnp.broadcast_to(turn, shape),
                         jnp.full(shape, -30.0))
  source = sf.beginning(increments)
  audio = np.asarray(sf.render(controls, source))[0]
  pulses = np.asarray(sf.pulse_train(*sf.phases(source)))[0]
  inner = slice(2 * HOP_LENGTH, -2 * HOP_LENGTH)
  # A delay within a window moves its content against the window: right up to its slope, 5 of 640.
  np.testing.assert_allclose(audio[inner], 0.3 * np.roll(pulses, delay)[inner],
                             atol=0.03 * np.abs(pulses).max())


@pytest.mark.parametrize('scale', [0.0, 1.0])
def test_no_gradient_enters_the_source(scale):
  frames = 4
  decoder = sf.SourceFilterDecoder(8, 1)
  latent = scale * jax.random.normal(jax.random.PRNGKey(1), (1, frames, 6))
  params = jax.jit(decoder.init)(jax.random.PRNGKey(0), latent)

  def loss(params):
    controls = decoder.apply(params, latent)
    return jnp.sum(sf.render(controls, sf.beginning(sf.predicted_increments(controls.pitch))) ** 2)

  grads = jax.jit(jax.grad(loss))(params)['params']
  assert all(bool(jnp.all(g == 0)) for g in jax.tree.leaves(grads['pitch']))
  assert float(jnp.abs(grads['harmonic']['bias']).max()) > 0
  assert all(bool(jnp.isfinite(g).all()) for g in jax.tree.leaves(grads))
