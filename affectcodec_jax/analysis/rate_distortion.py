"""Rate and distortion of the emotion block alone, over its dimensions and levels.

The emotion path of the codec by itself, adapter, emotion block, emotion decoder, is trained on the frozen
teacher's features for each number of dimensions d and of levels L, with the same batches and the same
number of steps. Bits a frame are K d log2 L; distortion is the squared error of the teacher's features on
held-out frames over their variance.
"""

import math

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from affectcodec_jax import losses
from affectcodec_jax.analysis.codes import padded_to_multiple, read_items
from affectcodec_jax.common.constants import FRAME_RATE
from affectcodec_jax.common.errors import UserError
from affectcodec_jax.emotion.teachers import teacher_features
from affectcodec_jax.models.bd_rfsq import BDRFSQ
from affectcodec_jax.models.conditioning import Adapter, EmotionDecoder
from affectcodec_jax.models.layers import Conv, whiten

# Of the commitment, beside the features' mean squared error. The codec's weights balance other losses: with
# them a training this short is over before the features are learned, and with 0.25 a block of one bit
# settles on a single code.
COMMITMENT = 0.05


class EmotionPath(nn.Module):
  """Teacher features to themselves through the emotion block of a codec.

  Attributes:
    config: the `model` section of a configuration.
    feature_dim: width of the teacher's features.
    levels: FSQ levels of the block, one a dimension.
    num_stages: K.
  """

  config: dict
  feature_dim: int
  levels: tuple
  num_stages: int

  def setup(self):
    c = self.config
    self.adapter = Adapter(c.adapter_dim, c.adapter_layers, c.adapter_kernel)
    self.to_emotion = Conv(c.emotion_dim, (1,))
    self.quantizer = BDRFSQ((c.emotion_dim,), (self.levels,), self.num_stages)
    self.emotion_decoder = EmotionDecoder(self.feature_dim, c.adapter_dim)

  def analyse(self, features):
    """U_e `[B, T, emotion_dim]` of features `[B, T, feature_dim]`."""
    return self.to_emotion(self.adapter(features))

  def __call__(self, features):
    """Features decoded `[B, T, feature_dim]` and commitment `[K, B]`."""
    quantized = self.quantizer(self.analyse(features))
    return self.emotion_decoder(self.quantizer.latent(quantized.values)), quantized.commitment

  def calibrate(self, u):
    """Quantiser parameters fitted to a first U_e (see `BDRFSQ.calibrate`)."""
    return self.quantizer.calibrate(u)


def load_features(config, frozen, data, split, limit):
  """The teacher's features of the files of a split: list of `[frames, teacher.dim]`."""
  apply = jax.jit(lambda audio, mask: teacher_features(config, frozen, audio, mask)[0])
  features = []
  for item in read_items(data, split, limit):
    audio, mask = padded_to_multiple(item['audio'])
    features.append(np.asarray(apply(audio[None], mask[None]))[mask])
  return features


def windows(features, frames):
  """All whole, disjoint windows of files `[T, D]`: `[n, frames, D]`.

  Raises:
    UserError: every file is shorter.
  """
  cut = [f[i:i + frames] for f in features for i in range(0, len(f) - frames + 1, frames)]
  if not cut:
    raise UserError(f'no file is {frames / FRAME_RATE:g} s long; give longer files or a smaller --seconds')
  return np.stack(cut)


def batches(features, batch_size, frames, steps, seed):
  """Yields `steps` random batches `[batch_size, frames, D]`, the same for the same seed."""
  long = [f for f in features if len(f) >= frames]
  rng = np.random.default_rng(seed)
  for _ in range(steps):
    chosen = [long[i] for i in rng.integers(len(long), size=batch_size)]
    starts = [rng.integers(len(f) - frames + 1) for f in chosen]
    yield np.stack([f[s:s + frames] for f, s in zip(chosen, starts)])


def init_path(path, first, seed):
  """Parameters of an `EmotionPath`, fitted to a first batch as a codec's are.

  U_e gets zero mean and unit variance a channel, and the quantiser's affine the spread of its inputs.
  """
  params = path.init(jax.random.PRNGKey(seed), first)['params']
  u = path.apply({'params': params}, first, method=EmotionPath.analyse)
  (conv,), u = whiten([params['to_emotion']], u)
  params = params | {'to_emotion': conv}
  return params | {'quantizer': path.apply({'params': params}, u, method=EmotionPath.calibrate)}


def train_cell(model, levels, num_stages, train, test, *, steps, batch_size, seed, lr=5e-3):
  """Trains one cell; returns the squared error on `test` over the variance of `test`.

  Args:
    model: the `model` section of a configuration, for the sizes of the path.
    levels: FSQ levels of the emotion block.
    num_stages: K.
    train: features, list of `[T, D]`.
    test: held-out windows `[n, frames, D]`.
    steps: Adam steps, the learning rate falling by a cosine.
    batch_size: windows a step.
    seed: of the weights and of the batches.
    lr: highest learning rate.
  """
  frames, width = test.shape[1:]
  path = EmotionPath(model, width, tuple(levels), num_stages)
  optimizer = optax.adam(optax.cosine_decay_schedule(lr, steps, 0.05))

  def loss_fn(params, batch):
    decoded, commitment = path.apply({'params': params}, batch)
    return losses.emotion_l2(decoded, batch).mean() + COMMITMENT * commitment.mean()

  @jax.jit
  def step_fn(params, opt_state, batch):
    updates, opt_state = optimizer.update(jax.grad(loss_fn)(params, batch), opt_state, params)
    return optax.apply_updates(params, updates), opt_state

  @jax.jit
  def error_fn(params, batch):
    return jnp.sum((path.apply({'params': params}, batch)[0] - batch) ** 2, axis=(1, 2))  # [B]

  params = opt_state = None
  for batch in batches(train, batch_size, frames, steps, seed):
    if params is None:
      params = jax.jit(lambda x: init_path(path, x, seed))(batch)
      opt_state = optimizer.init(params)
    params, opt_state = step_fn(params, opt_state, batch)
  error = 0.0
  for start in range(0, len(test), batch_size):
    part = test[start:start + batch_size]
    filled = np.resize(part, (batch_size, *part.shape[1:]))  # one shape, one program
    error += float(np.asarray(error_fn(params, filled))[:len(part)].sum(dtype=np.float64))
  return error / float(((test - test.mean(axis=(0, 1))) ** 2).sum(dtype=np.float64))


def bits_per_frame(levels, num_stages):
  """K times the sum of log2 L over the dimensions."""
  return num_stages * sum(math.log2(n) for n in levels)


def lower_hull(bits, errors):
  """Numbers of the points on the lower convex hull, from the fewest bits to the least error."""
  hull = []
  for i in sorted(range(len(bits)), key=lambda i: (bits[i], errors[i])):
    if hull and errors[i] >= errors[hull[-1]]:
      continue  # no fewer bits and no less error
    while len(hull) > 1 and _slope(bits, errors, hull[-2], hull[-1]) >= _slope(bits, errors, hull[-2], i):
      hull.pop()
    hull.append(i)
  return hull


def _slope(bits, errors, i, j):
  return (errors[j] - errors[i]) / (bits[j] - bits[i])


def knee(bits, errors):
  """The point of the hull furthest below the line between the hull's ends, both axes scaled to 1."""
  hull = lower_hull(bits, errors)
  if len(hull) < 3:
    return hull[-1]
  x, y = (np.array([values[i] for i in hull], np.float64) for values in (bits, errors))
  below = (x[-1] - x) / (x[-1] - x[0]) - (y - y[-1]) / (y[0] - y[-1])
  return hull[int(below.argmax())]
