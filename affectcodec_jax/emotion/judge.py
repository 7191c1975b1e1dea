"""A network that judges emotion and never teaches it: other layers, front end and training.

Log-mels, dilated convolutions and attention pooling, 0.69 M parameters. A codec trained to please the
teacher must not be scored by it.
"""

from flax import linen as nn
import jax.numpy as jnp

from affectcodec_jax.common.labels import EMOTIONS
from affectcodec_jax.models.conditioning import AttentionPool
from affectcodec_jax.spectral import log_mel

WIDTH = 128
_WINDOW, _HOP, _MELS = 480, 160, 64  # 30 ms every 10 ms
_DILATIONS = (1, 2, 4, 8, 1, 2, 4, 8)


class Judge(nn.Module):
  """Logits of `EMOTIONS` for `[batch, samples]`, a multiple of 320.

  `mask` `[batch, samples / 320]` is False on padding; none is no padding.
  """

  def setup(self):
    self.stem = nn.Conv(WIDTH, (3,), strides=(2,), padding=[(0, 1)])
    self.convs = [nn.Conv(WIDTH, (5,), kernel_dilation=(d,), padding=[(2 * d, 2 * d)])
                  for d in _DILATIONS]
    self.norms = [nn.LayerNorm() for _ in _DILATIONS]
    self.final_norm = nn.LayerNorm()
    self.pool = AttentionPool()
    self.head = nn.Dense(len(EMOTIONS))

  def __call__(self, audio, mask=None):
    x = (log_mel(audio, _WINDOW, _HOP, _MELS) + 2.0) / 1.5  # [B, samples / 160, mels]
    x = nn.gelu(self.stem(x))  # [B, T, width]
    for conv, norm in zip(self.convs, self.norms):
      x = x + nn.gelu(conv(norm(x)))
    mask = jnp.ones(x.shape[:2], bool) if mask is None else mask
    return self.head(self.pool(self.final_norm(x), mask))
