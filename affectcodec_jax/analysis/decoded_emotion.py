"""Emotion in what a codec decodes from its emotion block alone.

The emotion decoder turns emotion digits back into the teacher's features. Two read emotion from these: the
teacher's own head, to which nothing is fitted, and a support vector machine fitted to their mean and
deviation over time, as to the features of judges (`emotion.judges.fit_svm`).
"""

import jax
import numpy as np

from affectcodec_jax.emotion.judges import fit_svm
from affectcodec_jax.emotion.teachers import teacher_logits
from affectcodec_jax.models.codec import Codec, make_codec
from affectcodec_jax.training.guide import moments

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
  network, variables = make_codec(codec.config), {'params': codec.params}

  def features(codes):
    latent = network.apply(variables, codes, method=Codec.lookup)
    return network.apply(variables, latent, method=Codec.emotion_features)  # [1, T, dim]

  moments_of = jax.jit(lambda codes, mask: moments(features(codes), mask))
  head_of = jax.jit(lambda codes, mask: jax.nn.softmax(
      teacher_logits(codec.config, codec.frozen, features(codes), mask)))

  def of_clips(function, clips):
    return np.concatenate([function(*_padded(clip.codes[:, :stages])) for clip in clips])

  x = [of_clips(moments_of, clips) for clips in (train, valid, test)]
  train_labels, valid_labels = (np.array([c.emotion for c in clips]) for clips in (train, valid))
  found = {'svm': fit_svm(x[0], train_labels, x[1], valid_labels)(x[2])}
  if 'head' in codec.frozen.get('teacher', {}):
    found['head'] = of_clips(head_of, test)
  return found


def _padded(codes):
  """Codes `[frames, stages]` and the last frame again and again, `[1, T, stages]`; the mask `[1, T]`."""
  frames = len(codes)
  size = -(-frames // _LENGTHS) * _LENGTHS
  return np.pad(codes, ((0, size - frames), (0, 0)), mode='edge')[None], (np.arange(size) < frames)[None]
