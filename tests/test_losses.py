"""Discriminator, adversarial and feature-matching losses against values by hand and a NumPy reference."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import scipy.signal

from affectcodec_jax import config as config_lib
from affectcodec_jax import losses
from affectcodec_jax.models.discriminator import Discriminator


def by_scale(*scales):
  """What a `Discriminator` gives: (logits `[batch, frames, bins]`, feature maps) of every scale."""
  return [(np.asarray(logits, np.float32), [np.asarray(m, np.float32) for m in maps])
          for logits, maps in scales]


# Two clips; the first scale has two patches a clip, the second one.
REAL = by_scale(([[[1, 0]], [[1, 1]]], []), ([[[3]], [[0]]], []))
FAKE = by_scale(([[[0, 2]], [[1, -1]]], []), ([[[0.5]], [[-0.5]]], []))


def test_the_shortest_crop_has_a_frame_of_every_mel_scale():
  assert losses.MEL_WINDOWS[-1] == max(losses.MEL_WINDOWS) == config_lib.MIN_CROP


def test_adversarial_losses_by_hand():
  """Means over a scale's patches, sums over scales; a clip's loss is of that clip alone."""
  # Real, (1 - D)^2: (0 + 1) / 2 and 4; 0 and 1. Fake, D^2: (0 + 4) / 2 and 0.25; (1 + 1) / 2 and 0.25.
  np.testing.assert_allclose(losses.discriminator_loss(REAL, FAKE), [0.5 + 4 + 2 + 0.25, 0 + 1 + 1 + 0.25])
  # The generator's, (1 - D)^2 of fakes: (1 + 1) / 2 and 0.25; (0 + 4) / 2 and 2.25.
  np.testing.assert_allclose(losses.adversarial_loss(FAKE), [1 + 0.25, 2 + 2.25])


def test_feature_matching_by_hand():
  """Means over a layer's map, whatever its size, and sums over layers and scales, without the logits."""
  real = by_scale(([[[9]], [[9]]], [[[1, 2], [3, 4]], [[0], [0]]]), ([[[9]], [[9]]], [[[5], [5]]]))
  fake = by_scale(([[[0]], [[0]]], [[[1, 0], [0, 0]], [[-3], [1]]]), ([[[0]], [[0]]], [[[5], [4.5]]]))
  # First clip: |2 - 0| / 2, |0 - -3| and 0; second: (3 + 4) / 2, 1 and 0.5.
  np.testing.assert_allclose(losses.feature_matching(real, fake), [1 + 3 + 0, 3.5 + 1 + 0.5])


def test_real_features_are_a_target_and_not_pulled():
  def loss(real, fake):
    return losses.feature_matching([(None, [real])], [(None, [fake])]).sum()

  to_real, to_fake = jax.grad(loss, (0, 1))(jnp.array([[1.0, 2.0]]), jnp.array([[3.0, 1.0]]))
  np.testing.assert_array_equal(to_real, [[0, 0]])
  np.testing.assert_allclose(to_fake, [[0.5, -0.5]])  # the sign of the difference, of a mean over two


def reference_conv(x, p, stride=1, dilation=1):
  """Weight-normalised convolution of `[batch, frames, bins, channels]` in float64, tap by tap."""
  v, g, b = (np.asarray(p[k], np.float64) for k in 'vgb')
  w = v * g / np.sqrt((v ** 2).sum((0, 1, 2)))  # each output channel's weight has the norm g
  height, width = w.shape[:2]
  reach = (height - 1) * dilation // 2, (width - 1) // 2
  padded = np.pad(x, ((0, 0), (reach[0],) * 2, (reach[1],) * 2, (0, 0)))
  out = np.zeros((*x.shape[:2], -(-x.shape[2] // stride), w.shape[3]))
  for i in range(height):
    for j in range(width):
      rows = padded[:, i * dilation:i * dilation + x.shape[1], j:j + x.shape[2]]
      out += rows[:, :, ::stride] @ w[i, j]
  return out + b


def reference_scale(params, audio, n_fft):
  """(logits, feature maps) of one scale, as EnCodec (arXiv 2210.13438, section 3.4) describes it."""
  hop = n_fft // 4
  before = (n_fft - hop) // 2
  padded = np.pad(audio.astype(np.float64), ((0, 0), (before, n_fft - hop - before)), mode='reflect')
  window = scipy.signal.get_window('hann', n_fft)
  _, _, z = scipy.signal.stft(padded, window=window, nperseg=n_fft, noverlap=n_fft - hop, boundary=None,
                              padded=False)
  z = z.transpose(0, 2, 1) * window.sum() / np.sqrt((window ** 2).sum())  # by the window's energy
  x, maps = np.stack([z.real, z.imag], axis=-1), []
  for i, options in enumerate([{}, *({'stride': 2, 'dilation': d} for d in (1, 2, 4)), {}]):
    x = reference_conv(x, params[f'Conv_{i}'], **options)
    x = np.where(x > 0, x, 0.2 * x)
    maps.append(x)
  return reference_conv(x, params['Conv_5']), maps


@functools.cache
def networks():
  """A discriminator of two scales, random parameters of it, two batches of sound and the references."""
  n_ffts, rng = (32, 64), np.random.default_rng(0)
  sounds = (0.1 * rng.normal(size=(2, 2, 256))).astype(np.float32)  # real and decoded, two clips each
  model = Discriminator(n_ffts, 3)
  shapes = jax.eval_shape(model.init, jax.random.key(0), sounds[0])['params']
  params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), shapes)
  expected = [[reference_scale(params[f'ScaleDiscriminator_{i}'], audio, n) for i, n in enumerate(n_ffts)]
              for audio in sounds]
  return jax.jit(lambda params, audio: model.apply({'params': params}, audio)), params, sounds, expected


def test_discriminator_equals_its_definition():
  """Logits and every feature map; 1e-5 of the largest, for float32 sums of a hundred terms."""
  discriminate, params, (audio, _), (expected, _) = networks()
  assert [[m.shape[2] for m in maps] for _, maps in expected] == [[17, 9, 5, 3, 3], [33, 17, 9, 5, 5]]
  for (logits, maps), (wanted, wanted_maps) in zip(discriminate(params, audio), expected, strict=True):
    for a, b in zip([logits, *maps], [wanted, *wanted_maps], strict=True):
      assert a.shape == b.shape and a.dtype == jnp.float32
      np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max())


def test_losses_of_sound_equal_the_reference_s():
  """All three, of two clips each; 1e-4, of means over squares of what is equal to 1e-5."""
  discriminate, params, sounds, (real, fake) = networks()
  ours, theirs = (discriminate(params, audio) for audio in sounds)
  mean = lambda x: x.mean((1, 2, 3))
  np.testing.assert_allclose(
      losses.discriminator_loss(ours, theirs),
      sum(mean((1 - r) ** 2) + mean(f ** 2) for (r, _), (f, _) in zip(real, fake)), rtol=1e-4)
  np.testing.assert_allclose(
      losses.adversarial_loss(theirs), sum(mean((1 - f) ** 2) for f, _ in fake), rtol=1e-4)
  np.testing.assert_allclose(
      losses.feature_matching(ours, theirs),
      sum(mean(np.abs(a - b)) for (_, r), (_, f) in zip(real, fake) for a, b in zip(r, f)), rtol=1e-4)
