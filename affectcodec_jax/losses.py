"""The codec's losses, one value an example, unreduced: `[batch]` unless said otherwise.

The family is DAC's: LSGAN, feature and mel terms *summed* over scales, to be weighted about
15 mel : 2 feature : 1 adversarial. Weights are the caller's.
"""

import jax
import jax.numpy as jnp

from affectcodec_jax.models.source_filter import class_of
from affectcodec_jax.spectral import log_mel

MEL_WINDOWS = (32, 64, 128, 256, 512, 1024, 2048)
MEL_BANDS = (5, 10, 20, 40, 80, 160, 320)
_PITCH_WIDTH = 1.2  # classes, of the Gaussian


def mel_targets(audio, floor=1e-5):
  """Log-mel spectrograms of `[batch, samples]` at every scale, to be compared with `mel_distance`.

  Magnitudes below `floor` count as `floor`. At the codec's level of -24 dBFS, 1e-3 is about where the
  pauses of a good recording lie; DAC's 1e-5 gives them most of the gradient.
  """
  return [log_mel(audio, w, w // 4, n, floor) for w, n in zip(MEL_WINDOWS, MEL_BANDS)]


def mel_floor(config):
  """The floor of the mel loss that a codec was trained with: DAC's before there was the field."""
  return config.loss.get('mel_floor', 1e-5)


def mel_distance(predicted, target):
  """Multi-scale mel loss (DAC, arXiv 2306.06546, section 3.4): sum over scales of L1 in log10."""
  return sum(jnp.mean(jnp.abs(p - t), axis=(1, 2)) for p, t in zip(predicted, target))


def waveform_l1(predicted, target):
  """Mean absolute error of `[batch, samples]`."""
  return jnp.mean(jnp.abs(predicted - target), axis=-1)


def pitch_distance(logits, f0, voiced):
  """Cross-entropy of pitch classes against a narrow Gaussian around the true one, over voiced frames.

  Args:
    logits: `[batch, frames, classes]`, see `models.source_filter`.
    f0: true fundamental in Hz, above 0, `[batch, frames]`.
    voiced: 1 where it counts, else 0, `[batch, frames]`.

  Returns:
    `[batch]`, the sum over voiced frames by the number of all frames.
  """
  away = (jnp.arange(logits.shape[-1]) - class_of(f0)[..., None]) / _PITCH_WIDTH
  target = jax.nn.softmax(-0.5 * away ** 2, axis=-1)
  return jnp.mean(-jnp.sum(target * jax.nn.log_softmax(logits), axis=-1) * voiced, axis=-1)


def voicing_distance(logits, voiced):
  """Binary cross-entropy of `[batch, frames]`: `[batch]`."""
  return jnp.mean(jax.nn.softplus(logits) - voiced * logits, axis=-1)


def discriminator_loss(real, fake):
  """LSGAN: sum over scales of (1 - D(x))^2 + D(x^)^2; both are `Discriminator` outputs."""
  return sum(_mean((1 - r[0]) ** 2) + _mean(f[0] ** 2) for r, f in zip(real, fake))


def adversarial_loss(fake):
  """LSGAN for the generator: sum over scales of (1 - D(x^))^2."""
  return sum(_mean((1 - logits) ** 2) for logits, _ in fake)


def feature_matching(real, fake):
  """Sum over scales and layers of the L1 distance of the discriminator's feature maps."""
  return sum(_mean(jnp.abs(jax.lax.stop_gradient(a) - b))
             for r, f in zip(real, fake) for a, b in zip(r[1], f[1]))


def emotion_l2(predicted, target):
  """Mean squared error of teacher features `[batch, frames, dim]`."""
  return jnp.mean((predicted - jax.lax.stop_gradient(target)) ** 2, axis=(1, 2))


def emotion_posterior(predicted, target):
  """Kullback-Leibler divergence of the emotions' probabilities, from logits `[batch, emotions]`: `[batch]`.

  Of the teacher's head on its features and on those that the emotion block holds. A squared error spends
  the block's few bits on whatever features vary most in, which is not emotion (docs/emotion.md).
  """
  p, q = jax.nn.log_softmax(jax.lax.stop_gradient(target)), jax.nn.log_softmax(predicted)
  return jnp.sum(jnp.exp(p) * (p - q), axis=-1)


def emotion_cycle(predicted, target):
  """Mean over frames of 1 - cos between teacher features of x^ and of x, `[batch, frames, dim]`."""
  target = jax.lax.stop_gradient(target)
  dot = jnp.sum(predicted * target, axis=-1)
  norms = jnp.sqrt(jnp.sum(predicted ** 2, -1) * jnp.sum(target ** 2, -1) + 1e-8)
  return jnp.mean(1 - dot / norms, axis=-1)


def _mean(x):
  return jnp.mean(x, axis=tuple(range(1, x.ndim)))
