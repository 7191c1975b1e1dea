"""Transplants: the emotion block of one utterance with the acoustic block of another.

With block-diagonal projections each block has a residual of its own in every stage: its codes are a
function of its own part of the latent, and so is what they stand for. So the emotion codes of one utterance
and the acoustic codes of another, stage by stage, are tokens like any others, though no encoder wrote them.
"""

import functools
from typing import NamedTuple

import numpy as np

from affectcodec_jax.analysis.codes import encode_clip, frame_mels, read_items
from affectcodec_jax.common import progress
from affectcodec_jax.common.errors import UserError
from affectcodec_jax.common.evenly import evenly
from affectcodec_jax.common.labels import EMOTIONS
from affectcodec_jax.emotion import judges
from affectcodec_jax.evaluation.metrics import METRICS
from affectcodec_jax.evaluation.statistics import Speakers
from affectcodec_jax.models.blocks import block_levels, split_blocks
from affectcodec_jax.models.fsq import join_index

# What is decoded for a receiver B with a donor A of another emotion, both of one speaker.
VARIANTS = {
    'plain': 'B',
    'emotion': 'emotion block of A, acoustic block of B',
    'control': "emotion block of another utterance of B's speaker and emotion, acoustic block of B",
    'other_speaker': "emotion block of another speaker with A's emotion, acoustic block of B",
    'acoustic': 'emotion block of B, acoustic block of A',
    'donor': 'A',
}
OF_RECEIVER = ('plain', 'emotion', 'control', 'other_speaker')  # those that keep the acoustic block of B


class Quartet(NamedTuple):
  """Numbers of a receiver B and of the utterances whose emotion blocks it gets (see `VARIANTS`)."""

  receiver: int
  donor: int
  control: int
  other_speaker: int


def stretched(count, length):
  """Which of `count` frames stand for `length` frames: the nearest in relative position, `[length]`."""
  return (2 * np.arange(length) + 1) * count // (2 * length)


def compose(emotion, acoustic, levels):
  """Codes of the emotion block of one utterance and the acoustic block of another.

  The second keeps its length: frames of the first are repeated or left out, evenly.

  Args:
    emotion: composite indices `[frames, stages]` of the one.
    acoustic: `[other frames, stages]` of the other.
    levels: {block: FSQ levels}, the emotion block first.

  Returns:
    int32 `[other frames, stages]`.
  """
  of_emotion = split_blocks(emotion[stretched(len(emotion), len(acoustic))], levels)['emotion']
  codes = join_index(of_emotion, split_blocks(acoustic, levels)['acoustic'], levels['emotion'])
  return np.asarray(codes, np.int32)


def quartets(items):
  """A `Quartet` for each of `items` that has all three others.

  Of several that would do one is drawn, of those with the receiver's text where there are any.

  Args:
    items: dicts with `emotion`, `speaker` and `text`.

  Raises:
    UserError: none has.
  """
  rng, found = np.random.default_rng(0), []
  for b, receiver in enumerate(items):
    emotion, speaker = receiver['emotion'], receiver['speaker']
    if not speaker:  # then nobody is known to be the same
      continue
    theirs = [i for i, a in enumerate(items) if a['speaker'] == speaker and i != b]
    donor = _pick(rng, items, b, [i for i in theirs if items[i]['emotion'] != emotion])
    if donor is None:
      continue
    control = _pick(rng, items, b, [i for i in theirs if items[i]['emotion'] == emotion])
    target = items[donor]['emotion']
    other = _pick(rng, items, b, [i for i, a in enumerate(items)
                                  if a['speaker'] != speaker and a['emotion'] == target])
    if control is not None and other is not None:
      found.append(Quartet(b, donor, control, other))
  if not found:
    raise UserError('no utterance has three others to go with it: of its speaker with its emotion and with '
                    'another, and of another speaker with that one; give more files with emotions')
  return found


def _pick(rng, items, b, candidates):
  """One of `candidates` for receiver b, of the same text if possible; None if there is none."""
  text = items[b]['text']
  candidates = [i for i in candidates if text and items[i]['text'] == text] or candidates
  return int(rng.choice(candidates)) if candidates else None


def variants(quartet, codes, levels):
  """Codes of all `VARIANTS`, {name: `[frames, stages]`}; `codes(i)` are those of utterance i."""
  b, a = codes(quartet.receiver), codes(quartet.donor)
  return {'plain': b, 'emotion': compose(a, b, levels),
          'control': compose(codes(quartet.control), b, levels),
          'other_speaker': compose(codes(quartet.other_speaker), b, levels),
          'acoustic': compose(b, a, levels), 'donor': a}


def transplant(codec, data, split, limit, kbps=None):
  """Decodes all `VARIANTS` for at most `limit` receivers (0: all), evenly spread, and has them judged.

  Args:
    codec: a `Pretrained` codec with block-diagonal projections.
    data, split: files with emotions and speakers.
    limit: receivers.
    kbps: rate; None is the highest.

  Returns:
    What `summarise` returns, 'kbps', and 'absent': {measure: why it is}.

  Raises:
    UserError: another quantiser, or no utterances that go together.
  """
  model = codec.config.model
  if model.quantizer != 'bd_rfsq':
    raise UserError(f"the blocks of quantiser '{model.quantizer}' are not apart, so they cannot be "
                    'exchanged; give a run of bd_rfsq')
  stages, levels = codec.num_stages(kbps), block_levels(model)
  items = list(read_items(data, split, labelled=True))
  groups = quartets(items)
  groups = evenly(groups, limit)
  classifiers, absent = judges.available()
  cost_of, no_cost = costs()

  @functools.cache
  def codes(i):
    return encode_clip(codec, items[i]).codes[:, :stages]

  rows = []
  for group in progress.bar(groups, unit='pair', smoothing=0):
    receiver = items[group.receiver]
    audio = {v: codec.decode(c) for v, c in variants(group, codes, levels).items()}
    rows.append({
        'speaker': receiver['speaker'], 'file': receiver['name'],
        'receiver': receiver['emotion'], 'target': items[group.donor]['emotion'],
        'probabilities': {judge: {v: f(x) for v, x in audio.items()} for judge, f in classifiers.items()},
        'cost': {name: {v: f(receiver['audio'], audio['plain'], audio[v]) for v in OF_RECEIVER}
                 for name, f in cost_of.items()}})
  return {'kbps': codec.stage_kbps * stages} | summarise(rows) | {'absent': absent | no_cost}


def costs():
  """{measure: function of (original of B, B decoded, variant)}, and {measure: why it is absent}.

  Mean absolute differences of 80 log10 mel bands, each at the codec's level, and the cosine of speaker
  embeddings.
  """
  def mel(a, b):
    mels = [frame_mels(x) for x in (a, b)]
    frames = min(map(len, mels))
    return float(np.abs(mels[0][:frames] - mels[1][:frames]).mean())

  found = {'mel_to_plain': lambda original, plain, variant: mel(plain, variant),
           'mel_to_original': lambda original, plain, variant: mel(original, variant)}
  try:
    voice = METRICS['resemblyzer'].make()
  except UserError as e:
    return found, {'speaker': str(e)}
  return found | {'speaker': lambda original, plain, variant: voice(
      original, variant, None)['speaker_resemblyzer']}, {}


def summarise(rows):
  """Means over pairs with 95 % intervals over speakers.

  Args:
    rows: one dict a receiver: `speaker`, `file`, `receiver` and `target` (emotions of B and of A),
      `probabilities`: {judge: {variant: `[emotions]`}}, and `cost`: {measure: {variant: number}}.

  Returns:
    {'pairs', 'speakers', 'judges': {judge: {variant: {
      'target', 'receiver': probability of A's and of B's emotion, less that in B plain ('plain': itself),
      'predicted_target', 'predicted_receiver': how often that emotion is the likeliest}}},
      'net': {judge: the rise of A's emotion under 'emotion' less that under 'control'},
      'cost': {measure: {variant: mean}}}; each mean is {'mean', 'low', 'high'}.
  """
  speakers = Speakers(rows)
  label = {name: np.array([r[name] for r in rows]) for name in ('target', 'receiver')}
  pairs = np.arange(len(rows))
  judges, net = {}, {}
  for judge in rows[0]['probabilities']:
    posteriors = {v: np.array([r['probabilities'][judge][v] for r in rows])
                  for v in VARIANTS}  # [pairs, emotions]
    of = {v: {what: p[pairs, e] for what, e in label.items()} for v, p in posteriors.items()}
    judges[judge] = {
        v: {what: speakers.ratio(of[v][what] - (0 if v == 'plain' else of['plain'][what]))
            for what in label}
        | {f'predicted_{what}': speakers.ratio(posteriors[v].argmax(axis=1) == e)
           for what, e in label.items()}
        for v in VARIANTS}
    net[judge] = speakers.ratio(of['emotion']['target'] - of['control']['target'])
  cost = {measure: {v: speakers.ratio([r['cost'][measure][v] for r in rows])
                    for v in rows[0]['cost'][measure]} for measure in rows[0]['cost']}
  targets = np.bincount(label['target'], minlength=len(EMOTIONS))
  return {'pairs': len(rows), 'speakers': speakers.count, 'targets': dict(zip(EMOTIONS, targets.tolist())),
          'judges': judges, 'net': net, 'cost': cost}
