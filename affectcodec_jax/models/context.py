"""How far each network sees: the context with which a piece of a recording comes out as in the whole.

Counted from the layers (kernel, dilation, stride), in frames, the same on both sides and rounded up.
"""

import math

from affectcodec_jax.common.constants import HOP_LENGTH
from affectcodec_jax.models import dac, source_filter

_STFT = 2  # the lite encoder's longest window is 4 hops: 1.5 frames on either side of a frame
_CONVNEXT = 3  # kernel 7


def encoder_context(model):
  """Frames on either side that a frame of the acoustic encoder depends on.

  Args:
    model: the `model` section of a configuration.
  """
  if model.backbone == 'lite':
    return _STFT + _CONVNEXT * model.lite.encoder_depth
  reach, step = 3, 1  # in samples: the first kernel of 7
  for stride in model.strides:
    reach += step * (3 * sum(dac.DILATIONS) + 2 * stride)
    step *= stride
  return math.ceil((reach + step) / HOP_LENGTH)  # and the last kernel of 3


def decoder_context(model):
  """Frames on either side that a frame's samples depend on."""
  if model.backbone == 'lite':
    return 3 + _CONVNEXT * model.lite.decoder_depth + source_filter.CONTEXT
  reach, step = 3.0, 1.0  # in frames: the first kernel of 7
  for stride in reversed(model.strides):
    reach += step  # two input frames make each output of a transposed convolution
    step /= stride
    reach += step * 3 * sum(dac.DILATIONS)
  return math.ceil(reach + 3 * step)
