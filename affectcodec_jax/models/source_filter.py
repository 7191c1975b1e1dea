"""The lite backbone's decoder: a source, two filters, and their sum.

The trunk reads the latent and says, 50 times a second, how high the voice is, and 200 times a second how
a pulse train of that pitch and a white noise are to be filtered. Pitch, which a listener hears best, so
has 160 numbers of its own, and the phase of a voiced sound is the phase of the pulse train: a network that
predicts free phases, as an inverse-STFT head does, has to invent it. Source-filter synthesis by a neural
network: Wang et al., arXiv 1904.12088; harmonic and noise branches: Engel et al., arXiv 2001.04643.

The source is a function of a sample's absolute position: phases are 32-bit integers that wrap at a full
turn, noise is a hash of the sample's index. Whole recordings, pieces of them, streams and other
runtimes therefore make the same source. No gradient flows into it.
"""

from typing import NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from affectcodec_jax.common.constants import HIGHEST_PITCH, HOP_LENGTH, LOWEST_PITCH, SAMPLE_RATE
from affectcodec_jax.models.lite import ConvNeXtBlock
from affectcodec_jax.spectral import istft, stft

SUB_FRAMES = 4  # of 5 ms in a frame: how often the filters change
WINDOW, SUB_HOP = 320, HOP_LENGTH // SUB_FRAMES
BINS = WINDOW // 2 + 1

PITCH_CLASSES = 160  # log-spaced from the lowest pitch to the highest
_OCTAVES = np.log2(HIGHEST_PITCH / LOWEST_PITCH)
_NEIGHBOURS = 4  # classes on either side of the best one that share in the expectation
_TOP = 7600.0  # Hz: no harmonic above
# Increments lie on a grid of 1/1024 octave: rounding errors of the networks, which differ from machine to
# machine and with the length of a piece, would otherwise add up in the phase.
_STEPS = 1024
_MAX_LOG_GAIN = 4.0
CONTEXT = 2  # frames on either side that the source and the filters' transforms reach


class Controls(NamedTuple):
  """What the trunk says of `frames` frames.

  Attributes:
    pitch: logits of the classes, `[batch, frames, PITCH_CLASSES]`.
    voicing: logit of the frame being voiced, `[batch, frames]`; a training signal only.
    harmonic: log-gain of the pulse train's filter, `[batch, SUB_FRAMES * frames, BINS]`.
    phase: its phase in radians, the same shape.
    noise: log-gain of the noise's filter, the same shape.
  """

  pitch: jax.Array
  voicing: jax.Array
  harmonic: jax.Array
  phase: jax.Array
  noise: jax.Array


class Source(NamedTuple):
  """What the excitation of a piece of a recording depends on.

  Attributes:
    increments: of the phase a sample in the middle of each frame, int32 `[batch, frames]`.
    start: a frame of the piece, int32 `[batch]`.
    phase: of that frame's first sample, int32 `[batch]`; a full turn is 2**32.
    position: index of that sample in the recording, int32 `[batch]`.
  """

  increments: jax.Array
  start: jax.Array
  phase: jax.Array
  position: jax.Array


class SourceFilterDecoder(nn.Module):
  """Latent `[batch, frames, d]` to `Controls`; `render` makes audio of them."""

  width: int
  depth: int
  dtype: jnp.dtype = jnp.float32
  remat: bool = False  # recompute each block's activations in the backward pass

  @nn.compact
  def __call__(self, latent) -> Controls:
    x = nn.Conv(self.width, (7,), dtype=self.dtype)(latent)
    x = nn.LayerNorm(dtype=self.dtype)(x)
    block = nn.remat(ConvNeXtBlock) if self.remat else ConvNeXtBlock
    for i in range(self.depth):
      x = block(1 / self.depth, self.dtype, name=f'ConvNeXtBlock_{i}')(x)
    # A skip past the blocks, for what is linear in the latent.
    x = jnp.concatenate([nn.LayerNorm(dtype=self.dtype)(x), latent.astype(self.dtype)], axis=-1)

    def head(name, features, bias=0.0):
      y = nn.Dense(features, dtype=self.dtype, bias_init=nn.initializers.constant(bias), name=name)(x)
      return y.astype(jnp.float32)

    def sub_frames(y):
      return y.reshape(y.shape[0], -1, BINS)  # [B, T, sub-frames * bins] -> [B, sub-frames * T, bins]

    return Controls(head('pitch', PITCH_CLASSES), head('voicing', 1)[..., 0],
                    sub_frames(head('harmonic', SUB_FRAMES * BINS, -3.5)),
                    sub_frames(head('phase', SUB_FRAMES * BINS)),
                    sub_frames(head('noise', SUB_FRAMES * BINS, -4.5)))


def class_of(f0):
  """Fractional pitch class of a fundamental in Hz; the lowest is 0, the highest `PITCH_CLASSES` - 1."""
  return (PITCH_CLASSES - 1) * jnp.log2(f0 / LOWEST_PITCH) / _OCTAVES


def increments(pitch_class):
  """Fractional classes `[...]` to phase increments a sample, int32; a full turn is 2**32."""
  octaves = jnp.clip(pitch_class, 0, PITCH_CLASSES - 1) * (_OCTAVES / (PITCH_CLASSES - 1))
  step = jnp.round(octaves * _STEPS).astype(jnp.int32)
  return jnp.asarray(_INCREMENTS)[step]


# f0 / 16000 * 2**32 at each step of the grid: looked up, so the same on every machine.
_INCREMENTS = np.round(LOWEST_PITCH * 2 ** (np.arange(int(_OCTAVES * _STEPS) + 2) / _STEPS)
                       / SAMPLE_RATE * 2.0 ** 32).astype(np.int32)


def beginning(increments_):
  """The `Source` of a whole recording, from its increments `[batch, frames]`."""
  zero = jnp.zeros(len(increments_), jnp.int32)
  return Source(increments_, zero, zero, zero)


def predicted_class(logits):
  """Expectation over the classes near the best one: `[..., PITCH_CLASSES]` to `[...]`."""
  classes = jnp.arange(PITCH_CLASSES)
  near = jnp.abs(classes - jnp.argmax(logits, axis=-1, keepdims=True)) <= _NEIGHBOURS
  weights = jax.nn.softmax(jnp.where(near, logits, -jnp.inf), axis=-1)
  return jnp.sum(weights * classes, axis=-1)


def predicted_increments(logits):
  """Phase increments of the most likely pitch: `[..., PITCH_CLASSES]` to int32 `[...]`."""
  return increments(predicted_class(logits))


def phases(source):
  """Phase of every sample, a 32-bit integer that wraps at a full turn, and its increment.

  Increments belong to the middles of frames and are interpolated in between, by integers.

  Returns:
    int32 `[batch, frames * 320]` each.
  """
  batch = len(source.increments)
  a = extend(source.increments, 1)  # [B, T + 2]
  # A segment goes from the middle of a frame to the middle of the next one.
  slope = jax.lax.div(a[:, 1:] - a[:, :-1], np.int32(HOP_LENGTH))[..., None]  # [B, T + 1, 1]
  at = np.arange(HOP_LENGTH, dtype=np.int32)
  rate = a[:, :-1, None] + slope * at  # [B, T + 1, 320]
  within = a[:, :-1, None] * at + slope * (at * (at - 1) // 2)  # sum of the rates before; wraps
  whole = a[:, :-1, None] * np.int32(HOP_LENGTH) + slope * np.int32(HOP_LENGTH * (HOP_LENGTH - 1) // 2)
  before = jnp.cumsum(whole, axis=1, dtype=jnp.int32) - whole
  half = HOP_LENGTH // 2
  total, rate = ((x.reshape(batch, -1)[:, half:-half]) for x in (before + within, rate))  # [B, T * 320]
  offset = source.phase - jnp.take_along_axis(total, source.start[:, None] * HOP_LENGTH, axis=1)[:, 0]
  return total + offset[:, None], rate


def positions(source):
  """Index in the recording of every sample, int32 `[batch, frames * 320]`; it wraps."""
  # Frames are counted by a sum: exporters know the length of that, and not of an arange.
  frame = jnp.cumsum(jnp.ones_like(source.increments), axis=1, dtype=jnp.int32) - 1 - source.start[:, None]
  first = source.position[:, None] + frame * HOP_LENGTH  # [B, T]
  index = first[..., None] + np.arange(HOP_LENGTH, dtype=np.int32)
  return index.reshape(len(index), -1)  # [B, T, 320] -> [B, T * 320]


def extend(x, n):
  """`[batch, frames, …]` with n times its first and its last frame at the ends.

  By zeros and ones: exporters give a concatenation the length of its first part.
  """
  rest = [(0, 0)] * (x.ndim - 2)
  lead, tail = [(0, 0), (n, 0), *rest], [(0, 0), (0, n), *rest]
  zero = x * 0
  before = jnp.pad(jnp.pad(zero, lead, constant_values=1), tail)
  after = jnp.pad(jnp.pad(zero, lead), tail, constant_values=1)
  return jnp.pad(x, [(0, 0), (n, n), *rest]) + before * x[:, :1] + after * x[:, -1:]


def pulse_train(phase, rate):
  """Band-limited pulses of unit variance: sqrt(2/N) sum_{k<=N} cos(2 pi k phase), all below 7.6 kHz.

  In closed form, (sin((2N+1) pi phase) / sin(pi phase) - 1) / 2; the products are of integers and so exact.

  Args:
    phase: int32 `[...]`, of 2**32 a full turn.
    rate: int32 `[...]`, its increment a sample.
  """
  count = jax.lax.div(np.int32(_TOP / SAMPLE_RATE * 2.0 ** 32), rate)  # N
  # Pi times phase, of 2**32 a full turn. (Not a division by 2: exporters take that for a mean.)
  half = 2 * jax.lax.div(phase, np.int32(4))
  angle = lambda x: jnp.sin(x.astype(jnp.float32) * np.float32(2 * np.pi / 2.0 ** 32))
  odd = (2 * count + 1).astype(jnp.float32)
  below = angle(half)
  ratio = jnp.where(jnp.abs(below) < 1e-7, odd, angle(half * (2 * count + 1)) / below)
  return (ratio - 1) * jax.lax.rsqrt(2 * count.astype(jnp.float32))


def white_noise(index):
  """Uniform white noise of unit variance, a hash of the sample's index, int32 `[...]`."""
  x = index
  for shift, factor in ((15, 0x2C1B3C6D), (12, 0x297A2D39), (15, 0x2C1B3C6D)):
    x = x * np.int32(factor)
    # Products are of signed integers and shifts of unsigned ones: what ONNX has.
    x = x ^ (x.astype(jnp.uint32) >> np.uint32(shift)).astype(jnp.int32)
  return x.astype(jnp.float32) * np.float32(np.sqrt(12) / 2.0 ** 32)


def render(controls, source):
  """Audio `[batch, frames * 320]` of the `Controls` and the `Source` of `frames` frames."""
  phase, rate = phases(source)
  index = positions(source)
  pulses, noise = (jax.lax.stop_gradient(x) for x in (pulse_train(phase, rate), white_noise(index)))
  pr, pi = stft(pulses, WINDOW, SUB_HOP)  # [B, sub-frames * T, bins]
  nr, ni = stft(noise, WINDOW, SUB_HOP)
  gain, hiss = (jnp.exp(jnp.minimum(x, _MAX_LOG_GAIN)) for x in (controls.harmonic, controls.noise))
  cos, sin = gain * jnp.cos(controls.phase), gain * jnp.sin(controls.phase)
  return istft(pr * cos - pi * sin + hiss * nr, pr * sin + pi * cos + hiss * ni, WINDOW, SUB_HOP)


def phases_of_frames(increments_):
  """Phases of the frames' first samples by NumPy, int32 `[frames]` to `[frames + 1]`; that of frame 0 is 0.

  They are those of `phases`; the last entry is where the recording would go on.
  """
  a = np.pad(np.asarray(increments_, np.int64), 1, mode='edge')
  step = a[1:] - a[:-1]
  slope = np.sign(step) * (np.abs(step) // HOP_LENGTH)  # towards zero, as on the device
  half = HOP_LENGTH // 2
  # The second half of the segment into a frame's middle, and the first half of the one out of it.
  into = a[:-1] * half + slope * ((HOP_LENGTH * (HOP_LENGTH - 1) - half * (half - 1)) // 2)
  out = a[:-1] * half + slope * (half * (half - 1) // 2)
  return wrap(np.concatenate([[0], np.cumsum(into[:-1] + out[1:])]))


def wrap(x):
  """Integers to int32 as the device's arithmetic wraps, modulo 2**32, by NumPy."""
  return ((np.asarray(x, np.int64) + 2 ** 31) % 2 ** 32 - 2 ** 31).astype(np.int32)
