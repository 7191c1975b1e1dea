"""The emotion teacher: a small speech emotion network whose features the codec protects.

Any teacher is two pure functions of frozen parameters: `features(params, audio)` gives
`[batch, frames, dim]` at the codec's 50 Hz, differentiable in the audio, and `logits` gives the
utterance's emotion. This one is a log-mel front end and dilated convolutions with an attention-
pooled head, 0.69 M parameters. Being convolutional it sees about 1.3 s around a frame.
"""

from flax import linen as nn
import jax

from affectcodec_jax.emotions import EMOTIONS
from affectcodec_jax.models.conditioning import AttentionPool
from affectcodec_jax.spectral import log_mel

_WINDOW, _HOP, _MELS = 480, 160, 64  # 30 ms every 10 ms: two mel frames a codec frame
_DILATIONS = (1, 2, 4, 8, 1, 2, 4, 8)


class Teacher(nn.Module):
  """Log-mel convolutional emotion network; `dim` is the width of its features."""

  dim: int
  dropout: float = 0.0

  def setup(self):
    self.stem = nn.Conv(self.dim, (3,), strides=(2,), padding=[(0, 1)])
    self.convs = [nn.Conv(self.dim, (5,), kernel_dilation=(d,), padding=[(2 * d, 2 * d)])
                  for d in _DILATIONS]
    self.norms = [nn.LayerNorm() for _ in _DILATIONS]
    self.final_norm = nn.LayerNorm()
    self.drop = nn.Dropout(self.dropout)
    self.pool = AttentionPool()
    self.head = nn.Dense(len(EMOTIONS))

  def features(self, audio, deterministic=True):
    """`[batch, samples]` at 16 kHz, a multiple of 320, to `[batch, samples / 320, dim]` float32."""
    # log10 magnitudes of speech at the codec's level lie in [-5, 1]: about unit range after this.
    x = (log_mel(audio, _WINDOW, _HOP, _MELS) + 2.0) / 1.5  # [B, samples / 160, mels]
    x = nn.gelu(self.stem(x))  # [B, T, dim]
    for conv, norm in zip(self.convs, self.norms):
      x = x + self.drop(nn.gelu(conv(norm(x))), deterministic=deterministic)
    return self.final_norm(x)

  def logits(self, features, mask, deterministic=True):
    """Utterance logits `[batch, emotions]` from features `[batch, T, dim]`, mask `[batch, T]`."""
    pooled = self.drop(self.pool(features, mask), deterministic=deterministic)
    return self.head(pooled)

  def __call__(self, audio, mask, deterministic=True):
    return self.logits(self.features(audio, deterministic), mask, deterministic)


def teacher_features(params, audio, dim):
  """Features `[batch, frames, dim]` of a frozen teacher; differentiable in `audio`."""
  return Teacher(dim).apply({'params': jax.lax.stop_gradient(params)}, audio,
                            method=Teacher.features)
