"""The paper's leakage probe: what the emotion digits of a frame tell of its log-mel spectrum.

The digits of the first m stages go through a linear regression to the 80-band log10 mel spectrum of the
original at the same frame. It is fitted to the frames of half of the speakers and scored on the other
half's, and the other way round. Beside it: the same digits with frames shuffled (about 0, less by what the
means of the two halves differ) and the acoustic digits (what is there to be predicted).

R^2 counts whatever emotion features and spectrum have in common by themselves, loudness and pauses above
all, besides what the quantiser mixes in: compare runs of one teacher and one training.
"""

import hashlib

import numpy as np

from affectcodec_jax.analysis import probes
from affectcodec_jax.common.errors import UserError
from affectcodec_jax.models.blocks import block_digits

MIN_SPEAKERS = 4


def design(digits, levels):
  """Digits `[frames, K, f]` as inputs of a linear map, `[frames, K * c]`, stage after stage.

  A dimension of two levels is one column of -1 and 1, one of more levels a column a level.
  """
  columns = []
  for i, n in enumerate(levels):
    of_dim = digits[..., i, None]
    columns.append(2.0 * of_dim - 1 if n == 2 else np.equal(of_dim, np.arange(n)).astype(np.float64))
  return np.concatenate(columns, axis=-1).reshape(len(digits), -1)


def hash_order(names):
  """Names in an order that depends on each name alone and on nothing that names follow."""
  return sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())


def halves(clips):
  """Half, 0 or 1, of each speaker: {speaker: half}, each corpus divided evenly.

  Raises:
    UserError: too few speakers.
  """
  corpora = {}
  for clip in clips:
    corpora.setdefault(clip.corpus, set()).add(clip.speaker)
  order = [s for corpus in sorted(corpora) for s in hash_order(corpora[corpus])]
  order = list(dict.fromkeys(order))  # who speaks in two corpora is one speaker
  if len(order) < MIN_SPEAKERS:
    raise UserError(f'{len(order)} speakers: the probe fits half of them and scores the other half; '
                    f'give files of {MIN_SPEAKERS} or more')
  return {speaker: i % 2 for i, speaker in enumerate(order)}


def leakage(clips, levels):
  """R^2 of the probe.

  Args:
    clips: list of `Clip` with log-mels.
    levels: {block: FSQ levels}.

  Returns:
    {'frames', 'speakers', 'emotion': R^2 with interval, 'stages': the same from the first 1 … K stages,
    'bands': of each mel band, 'shuffled', 'acoustic': R^2 with intervals}.
  """
  half = halves(clips)
  by_speaker = {s: [c for c in clips if c.speaker == s] for s in half}
  mels = [np.concatenate([c.mel for c in of]) for of in by_speaker.values()]
  digits = [block_digits(np.concatenate([c.codes for c in of]), levels) for of in by_speaker.values()]
  fold = list(half.values())
  inputs = [design(d['emotion'], levels['emotion']) for d in digits]
  emotion = [probes.moments(x, y) for x, y in zip(inputs, mels)]
  stages = digits[0]['emotion'].shape[1]
  width = inputs[0].shape[1] // stages
  prefixes = [probes.two_fold([m.first(width * k) for m in emotion], fold) for k in range(1, stages + 1)]
  acoustic = [probes.moments(design(d['acoustic'], levels['acoustic']), y) for d, y in zip(digits, mels)]
  ends = np.cumsum([len(x) for x in inputs])
  shuffled = np.random.default_rng(0).permutation(np.concatenate(inputs))
  control = [probes.moments(x, y) for x, y in zip(np.split(shuffled, ends[:-1]), mels)]
  return {
      'frames': int(ends[-1]), 'speakers': len(half),
      'emotion': prefixes[-1].interval(),
      'stages': [p.interval() for p in prefixes],
      'bands': prefixes[-1].r_squared(bands=True).tolist(),
      'shuffled': probes.two_fold(control, fold).interval(),
      'acoustic': probes.two_fold(acoustic, fold).interval(),
  }
