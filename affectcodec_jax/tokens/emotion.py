"""Emotion predicted from tokens alone: neither the codec nor the sound is needed. NumPy only, no JAX.

An utterance is described by how often its codes and their changes occur, and a multinomial logistic
regression predicts the emotion from that. What codes mean differs from codec to codec, so a predictor
belongs to one fingerprint; `python -m affectcodec_jax analyse token_emotion` makes it.
"""

from collections.abc import Mapping, Sequence
import json
import math
import os
from typing import NamedTuple

import numpy as np
import safetensors
import safetensors.numpy

from affectcodec_jax.common import packaged
from affectcodec_jax.common.errors import UserError
from affectcodec_jax.common.files import AnyPath, parse_json, write_whole
from affectcodec_jax.common.labels import EMOTIONS, VALENCE_AROUSAL_DOMINANCE
from affectcodec_jax.tokens.afc import Tokens

Levels = Mapping[str, Sequence[int]]  # {'emotion': …, 'acoustic': …}: FSQ levels of the blocks

PACKAGED = packaged.TOKEN_EMOTION
KINDS = ('emotion', 'acoustic', 'both')
HOW_TO_MAKE = ('make one with python -m affectcodec_jax analyse token_emotion --checkpoint CODEC '
               '--data MANIFEST --out FILE; then give --predictor FILE')


class Predictor(NamedTuple):
  """Logistic regressions on the tokens of one codec.

  Attributes:
    fingerprint: 8 bytes, of the codec.
    levels: FSQ levels of the blocks, {'emotion': …, 'acoustic': …}.
    weights: {stages: (kind, `[1 + F, emotions]` float32)}, the intercept first: one regression for each
      number of stages, on `features` of that kind.
  """

  fingerprint: bytes
  levels: Levels
  weights: dict[int, tuple[str, np.ndarray]]

  def stages_used(self, stages: int) -> int:
    """The most stages, of `stages` that tokens have, that there is a regression for.

    Raises:
      UserError: there is none for so few.
    """
    fit = [m for m in self.weights if m <= stages]
    if not fit:
      raise UserError(f'this predictor needs {min(self.weights)} stages or more, the tokens have {stages}')
    return max(fit)

  def probabilities(self, codes: np.ndarray) -> np.ndarray:
    """Probabilities `[emotions]` of codes `[frames, stages]`; stages in between rates are left out.

    Raises:
      UserError: too few stages.
    """
    stages = self.stages_used(codes.shape[1])
    kind, weights = self.weights[stages]
    return apply(weights, features(codes[:, :stages], self.levels, kind))

  def predict(self, tokens: Tokens) -> np.ndarray:
    """The same of `Tokens`.

    Raises:
      UserError: tokens of another codec, or of too few stages.
    """
    if tokens.fingerprint != self.fingerprint:
      raise UserError(f'these tokens were made by model {tokens.fingerprint.hex()}, the predictor is for '
                      f'{self.fingerprint.hex()}; {HOW_TO_MAKE}')
    return self.probabilities(tokens.codes)


def apply(weights: np.ndarray, x: np.ndarray) -> np.ndarray:
  """Probabilities `[..., emotions]` of features `[..., F]` by a regression `[1 + F, emotions]`."""
  logits = weights[0] + x @ weights[1:]
  p = np.exp(logits - logits.max(axis=-1, keepdims=True))
  return p / p.sum(axis=-1, keepdims=True)


def features(codes: np.ndarray, levels: Levels, kind: str) -> np.ndarray:
  """Statistics of one utterance.

  Of the emotion block, by stage: how often each code occurs, and how often each follows each. Of the
  acoustic block, by stage and dimension: how often each level occurs, and the mean step in levels from
  frame to frame. Codes, not values, are counted: the mean of any dequantised dimension, of one stage or
  summed over stages, is a linear map of these.

  Args:
    codes: composite indices `[frames, stages]`, at least one frame.
    levels: {'emotion': …, 'acoustic': …}.
    kind: 'emotion', 'acoustic' or 'both'.

  Returns:
    `[F]` float64; each value but the steps in [0, 1]. Of a single frame nothing follows: zeros.
  """
  size = math.prod(levels['emotion'])
  parts = []
  if kind in ('emotion', 'both'):
    emotion = codes % size
    follows = emotion[:-1] * size + emotion[1:]  # [frames - 1, stages]
    parts += [_shares(emotion, size), _shares(follows, size ** 2)]
  if kind in ('acoustic', 'both'):
    acoustic = codes // size
    for n in levels['acoustic']:
      acoustic, digit = np.divmod(acoustic, n)
      steps = np.abs(np.diff(digit, axis=0)).sum(axis=0) / max(len(codes) - 1, 1)
      parts += [_shares(digit, n), steps]
  return np.concatenate([p.ravel() for p in parts])


def _shares(values: np.ndarray, size: int) -> np.ndarray:
  """How often each of 0 … size - 1 occurs in each column of `[n, stages]`: `[stages, size]`."""
  return np.stack([np.bincount(column, minlength=size) for column in values.T]) / max(len(values), 1)


def valence_arousal_dominance(probabilities: np.ndarray) -> dict[str, float]:
  """Ratings of the emotions' names (`common.labels`), 1 to 9, weighted by `[emotions]`: {'valence': …}.

  A mapping of the categories: nothing here was trained on ratings of valence, arousal or dominance.
  """
  return {name: float(np.dot(probabilities, values))
          for name, values in VALENCE_AROUSAL_DOMINANCE.items()}


def save(path: AnyPath, predictor: Predictor) -> None:
  """Writes a predictor as safetensors; the file appears whole or not at all.

  Raises:
    UserError: a place that cannot be written.
  """
  about = {'fingerprint': predictor.fingerprint.hex(), 'levels': json.dumps(predictor.levels),
           'emotions': ' '.join(EMOTIONS)}
  tensors = {f'{stages}/{kind}': w.astype(np.float32) for stages, (kind, w) in predictor.weights.items()}
  write_whole(path, safetensors.numpy.save(tensors, about))


def _read_levels(text: str) -> dict[str, list[int]]:
  levels = parse_json(text)
  for name in ('emotion', 'acoustic'):
    whole = isinstance(levels[name], list) and all(type(n) is int and 2 <= n <= 256 for n in levels[name])
    if not whole or math.prod(levels[name]) > 2 ** 16:
      raise ValueError(f'{name} levels {str(levels[name])[:60]}')
  return levels


def load(path: AnyPath | None = None) -> Predictor:
  """Reads a predictor; the packaged one by default.

  Raises:
    UserError: no such file, or not a predictor of this codec's emotions.
  """
  path = path or PACKAGED
  if not os.path.exists(path):
    what = 'no predictor is packaged' if path == PACKAGED else f'{path}: no such file'
    raise UserError(f'{what}; {HOW_TO_MAKE}')
  try:
    with safetensors.safe_open(path, 'numpy') as file:
      about = file.metadata()
      tensors = {name: file.get_tensor(name) for name in file.keys()}
    if about['emotions'] != ' '.join(EMOTIONS):
      raise ValueError(f'of other emotions: {about["emotions"]}')
    weights = {int(name.split('/')[0]): (name.split('/')[1], w) for name, w in tensors.items()}
    levels = _read_levels(about['levels'])
    for stages, (kind, w) in weights.items():
      if kind not in KINDS or not 1 <= stages <= 255:
        raise ValueError(f'counts of {kind} in {stages} stages')
      if not np.isfinite(w).all():
        raise ValueError('weights that are NaN or infinite')
      wanted = 1 + len(features(np.zeros((2, stages), np.int32), levels, kind)), len(EMOTIONS)
      if w.shape != wanted:
        raise ValueError(f'weights {w.shape} of {stages} stages, not {wanted}')
    if not weights:
      raise ValueError('no weights')
    return Predictor(bytes.fromhex(about['fingerprint']), levels, dict(sorted(weights.items())))
  except (safetensors.SafetensorError, OSError, ValueError, KeyError, TypeError, IndexError,
          AttributeError) as e:
    raise UserError(f'{path}: not a predictor of emotion from tokens ({e}); {HOW_TO_MAKE}') from e
