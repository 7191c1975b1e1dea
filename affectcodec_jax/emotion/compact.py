"""The compact emotion teacher and the student: small speech emotion networks of this project's own.

Both read two log-mel spectrograms, a quick one for articulation and one fine enough in frequency to
show the harmonics of a voice (pitch is half of emotion), and run residual dilated convolutions at
the codec's 50 Hz. The teacher ends in features and an attentive head of emotions; the student ends
in a guess at some teacher's features, so that a codec can be used without that teacher.
"""

from flax import linen as nn
import jax
import jax.numpy as jnp

from affectcodec_jax.common.constants import HOP_LENGTH
from affectcodec_jax.common.labels import EMOTIONS
from affectcodec_jax.spectral import log_mel

_QUICK = (480, HOP_LENGTH // 2, 64)  # window, hop, mels: 30 ms every 10 ms, two of them a codec frame
_FINE = (960, HOP_LENGTH, 128)  # 60 ms every 20 ms: bins of 17 Hz
_DILATIONS = (1, 2, 4, 8)


def context(depth):
  """Frames on either side that a frame of a `SpeechNet` of so many residual layers depends on."""
  # Windows of up to 3 hops: one frame; the first kernel of 3: one; kernels of 5 at their dilations.
  return 2 + sum(2 * _DILATIONS[i % len(_DILATIONS)] for i in range(depth))


class SpeechNet(nn.Module):
  """Log-mels and `depth` residual convolutions: `[B, samples]` to `[B, samples / 320, width]`."""

  width: int
  depth: int
  dropout: float = 0.0

  @nn.compact
  def __call__(self, audio, mask=None, deterministic=True):
    b = audio.shape[0]
    quick, fine = log_mel(audio, *_QUICK), log_mel(audio, *_FINE)  # [B, 2T, 64], [B, T, 128]
    x = jnp.concatenate([quick.reshape(b, fine.shape[1], -1), fine], axis=-1)  # [B, T, 256]
    # log10 magnitudes of speech at the codec's level lie in [-5, 1]: about unit range after this.
    x = nn.gelu(nn.Conv(self.width, (3,))(_masked((x + 2.0) / 1.5, mask)))
    for i in range(self.depth):
      y = _masked(nn.LayerNorm()(x), mask)
      step = _DILATIONS[i % len(_DILATIONS)]
      y = nn.gelu(nn.Conv(self.width, (5,), kernel_dilation=(step,), padding=[(2 * step, 2 * step)])(y))
      x = x + nn.Dropout(self.dropout)(y, deterministic=deterministic)
    return x


class Teacher(nn.Module):
  """Features `dim` wide and the logits of `EMOTIONS`."""

  dim: int
  depth: int = 9
  dropout: float = 0.0

  def setup(self):
    self.net = SpeechNet(self.dim, self.depth, self.dropout)
    self.norm = nn.LayerNorm()
    self.attention = [nn.Dense(self.dim // 2), nn.Dense(1, use_bias=False)]
    self.drop = nn.Dropout(self.dropout)
    self.head = nn.Dense(len(EMOTIONS))

  def features(self, audio, mask=None, deterministic=True):
    """`[batch, samples]` at 16 kHz, a multiple of 320, to `[batch, samples / 320, dim]` float32."""
    return self.norm(self.net(audio, mask, deterministic))

  def pool(self, features, mask=None):
    """What a whole utterance is like, `[batch, 2 dim]`: weighted mean and deviation over frames.

    Attentive statistics pooling (arXiv 1803.10963) of features `[batch, T, dim]`, mask `[batch, T]`.
    """
    score = self.attention[1](jnp.tanh(self.attention[0](features)))[..., 0]  # [B, T]
    if mask is not None:
      score = jnp.where(mask, score, -jnp.inf)
    weights = jax.nn.softmax(score, axis=-1)
    mean = jnp.einsum('bt,btd->bd', weights, features)
    square = jnp.einsum('bt,btd->bd', weights, features ** 2)
    return jnp.concatenate([mean, jnp.sqrt(jnp.maximum(square - mean ** 2, 1e-5))], axis=-1)

  def logits(self, features, mask=None, deterministic=True):
    """Utterance logits `[batch, emotions]` from features `[batch, T, dim]`, mask `[batch, T]`."""
    return self.classify(self.pool(features, mask), deterministic)

  def classify(self, pooled, deterministic=True):
    """Logits `[batch, emotions]` from what `pool` gives."""
    return self.head(self.drop(pooled, deterministic=deterministic))

  def __call__(self, audio, mask=None, deterministic=True):
    return self.logits(self.features(audio, mask, deterministic), mask, deterministic)


class Student(nn.Module):
  """A guess at a teacher's features, `dim` wide, by a network of its own `width`."""

  dim: int
  width: int
  depth: int

  @nn.compact
  def __call__(self, audio, mask=None):
    """`[batch, samples]`, a multiple of 320, to `[batch, samples / 320, dim]` float32."""
    x = SpeechNet(self.width, self.depth)(audio, mask)
    return nn.Dense(self.dim)(nn.LayerNorm()(x))


def _masked(x, mask):
  """Frames `[B, T, C]` outside of mask `[B, T]` set to zero: what a convolution pads with."""
  return x if mask is None else x * mask[..., None]
