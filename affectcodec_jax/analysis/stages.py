"""What emotion and what speaker each stage's emotion and acoustic bits carry.

An utterance is described by how often each code of some stages occurs in it. A linear classifier predicts
the emotion of speakers it has not seen, and tells speakers of one set apart on files it has not seen.
Where corpora differ in their recordings, telling speakers apart is partly telling corpora apart.
"""

import numpy as np

from affectcodec_jax.analysis import probes
from affectcodec_jax.analysis.leakage import hash_order
from affectcodec_jax.common import progress
from affectcodec_jax.common.errors import UserError
from affectcodec_jax.models.blocks import block_digits, split_blocks

KINDS = ('emotion', 'emotion_joint', 'acoustic')  # the joint one: codes of the whole emotion block


def histograms(clip, levels):
  """How often each level of each digit, and each emotion code, occurs: {kind: `[K, columns]`}."""
  out = {}
  for block, digits in block_digits(clip.codes, levels).items():  # [T, K, f]
    out[block] = np.concatenate(
        [np.equal(digits[..., i, None], np.arange(n)).mean(axis=0) for i, n in enumerate(levels[block])],
        axis=-1)
  codes = split_blocks(clip.codes, levels)['emotion']  # [T, K]
  out['emotion_joint'] = np.equal(codes[..., None], np.arange(np.prod(levels['emotion']))).mean(axis=0)
  return out


def speaker_halves(clips):
  """Two lists of row numbers: the files of each speaker with two or more, half and half.

  Raises:
    UserError: fewer than two such speakers.
  """
  files = {}
  for i, clip in enumerate(clips):
    files.setdefault(clip.speaker, {})[clip.name] = i
  files = {speaker: of for speaker, of in files.items() if len(of) > 1}
  if len(files) < 2:
    raise UserError(f'{len(files)} speakers with two files or more: telling speakers apart takes two; '
                    'give more files')
  order = [[of[name] for name in hash_order(of)] for of in files.values()]
  return [i for of in order for i in of[::2]], [i for of in order for i in of[1::2]]


def stage_probes(train, test, levels):
  """Linear probes of every stage, alone and with all before it.

  Args:
    train: list of `Clip`, of other speakers than `test`.
    test: list of `Clip`.
    levels: {block: FSQ levels}.

  Returns:
    {'emotion': {'chance', KIND: {'alone': [score a stage], 'up_to': [score a stage]}}, 'speaker': the
    same}; a score is {'mean', 'low', 'high'}: mean recall of the emotions, and of the speakers.

  Raises:
    UserError: no labelled files, too few speakers, or speakers on both sides.
  """
  both = {c.speaker for c in train} & {c.speaker for c in test}
  if both:
    raise UserError(f'{len(both)} speakers are in both splits, such as {min(both)}; the probe for emotion '
                    'needs other speakers to fit than to score')
  labelled = {name: np.array([i for i, c in enumerate(clips) if c.emotion >= 0], int)
              for name, clips in (('train', train), ('test', test))}
  emotion = {name: np.array([clips[i].emotion for i in labelled[name]])
             for name, clips in (('train', train), ('test', test))}
  for name, labels in emotion.items():
    if len(set(labels)) < 2:
      raise UserError(f'{name}: {len(labels)} files with a known emotion, of {len(set(labels))} emotions; '
                      'the probe needs two or more emotions')
  groups = np.array([test[i].speaker for i in labelled['test']])
  fit, score = speaker_halves(test)
  speakers = np.array([c.speaker for c in test])
  stacked = {name: [histograms(c, levels) for c in clips]
             for name, clips in (('train', train), ('test', test))}
  results = {'emotion': {'chance': 1 / len(set(emotion['test'])), 'files': len(groups)},
             'speaker': {'chance': 1 / len(set(speakers[score])), 'files': len(score)}}
  for kind in KINDS:
    x = {name: np.stack([h[kind] for h in of]) for name, of in stacked.items()}  # [files, K, columns]
    stages = x['test'].shape[1]
    for task in results.values():
      task[kind] = {'alone': [], 'up_to': []}
    for k in progress.bar(range(stages), desc=kind, unit='stage'):
      for what, part in (('alone', slice(k, k + 1)), ('up_to', slice(0, k + 1))):
        if what == 'up_to' and k == 0:
          for task in results.values():
            task[kind]['up_to'].append(task[kind]['alone'][0])
          continue
        flat = {name: v[:, part].reshape(len(v), -1) for name, v in x.items()}
        predicted = probes.logistic(flat['train'][labelled['train']], emotion['train'],
                                    flat['test'][labelled['test']])
        results['emotion'][kind][what].append(
            probes.recall_interval(emotion['test'], predicted, groups))
        predicted = probes.logistic(flat['test'][fit], speakers[fit], flat['test'][score])
        results['speaker'][kind][what].append(probes.recall_over_classes(speakers[score], predicted))
  return results
