"""Emotion in what a codec decodes from its emotion block alone.

The emotion decoder turns emotion digits back into the teacher's features. Two read emotion from these: the
teacher's own head, to which nothing is fitted, and a support vector machine fitted to their mean and
deviation over time, as to the features of judges (`emotion.judges.fit_svm`).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from affectcodec_jax.emotion.judges import fit_svm
from affectcodec_jax.emotion.teachers import teacher_logits
from affectcodec_jax.models.codec import Codec, make_codec

_LENGTHS = 50  # frames: of which all clips are padded to a multiple, so that there is little to compile


def classify(codec, train, valid, test, stages):
  """Probabilities `[len(test), emotions]` from the emotion block of the first `stages` stages.

  Args:
    codec: with a block-diagonal quantiser: acoustic digits say nothing here.
    train, valid, test: lists of `codes.Clip` with a known emotion.
    stages: how many.

  Returns:
    {'head': …, 'svm': …}; without 'head' where the codec comes without the teacher or that has none.
  """
  has_head = 'teacher' in codec.frozen and 'head' in codec.frozen['teacher']
  read = _reader(codec, has_head)
  outputs = [[read(*_padded(clip.codes[:, :stages])) for clip in clips] for clips in (train, valid, test)]
  moments = [np.concatenate([np.asarray(m) for m, _ in some]) for some in outputs]
  train_labels, valid_labels = (np.array([c.emotion for c in clips]) for clips in (train, valid))
  found = {'svm': fit_svm(moments[0], train_labels, moments[1], valid_labels)(moments[2])}
  if has_head:
    found['head'] = np.concatenate([np.asarray(p) for _, p in outputs[2]])
  return found


def _reader(codec, has_head):
  """A function of codes `[1, T, stages]` and mask `[1, T]` to moments `[1, 2 dim]` and probabilities."""
  network, variables = make_codec(codec.config), {'params': codec.params}

  @jax.jit
  def read(codes, mask):
    latent = network.apply(variables, codes, method=Codec.lookup)
    features = network.apply(variables, latent, method=Codec.emotion_features)  # [1, T, dim]
    weight = mask[..., None] / mask.sum()
    mean = jnp.sum(weight * features, axis=1)
    deviation = jnp.sqrt(jnp.sum(weight * (features - mean[:, None]) ** 2, axis=1))
    head = functools.partial(teacher_logits, codec.config, codec.frozen)
    return (jnp.concatenate([mean, deviation], axis=-1),
            jax.nn.softmax(head(features, mask)) if has_head else None)

  return read


def _padded(codes):
  """Codes `[frames, stages]` and the last frame again and again, `[1, T, stages]`; the mask `[1, T]`."""
  frames = len(codes)
  size = -(-frames // _LENGTHS) * _LENGTHS
  return np.pad(codes, ((0, size - frames), (0, 0)), mode='edge')[None], (np.arange(size) < frames)[None]
