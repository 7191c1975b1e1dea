"""Makes the predictor of emotion from the tokens of one codec.

A logistic regression for one stage and for each rate of the codec. What it reads (the emotion block, the
acoustic block or both) is chosen by the accuracy on the validation split, how strongly it is regularised by
the likelihood there; all three are scored on the test split, beside what a block-diagonal codec decodes
from its emotion block alone (`decoded_emotion`) and judges of the audio. Splits must have different
speakers. Needs scikit-learn.
"""

import pathlib

import numpy as np

from affectcodec_jax.common.errors import UserError
from affectcodec_jax.common.labels import EMOTIONS
from affectcodec_jax.tokens import emotion as token_emotion

STRENGTHS = (1e-3, 3e-3, 1e-2)  # C, the inverse of regularisation
ABSENT = -1e4  # logit of an emotion that was not in the training data


def make_predictor(args):
  """Fits, scores and writes it; `args` are those of the command `analyse token_emotion`."""
  from affectcodec_jax.analysis import codes, decoded_emotion, probes
  from affectcodec_jax.api import load
  from affectcodec_jax.common.files import check_file, write_json
  from affectcodec_jax.data.folder import list_rows, select_rows
  probes.require_sklearn()
  for path in filter(None, (args.out, args.report)):  # before the long part
    check_file(path)
  rows = list_rows(args.data)
  check_speakers({split: {str(r.get('speaker') or '') for r in select_rows(rows, split, args.data)}
                  for split in ('train', 'valid', 'test')})
  codec = load(args.checkpoint)
  levels = codes.emotion_blocks(codec.config.model, args.checkpoint)
  train, valid = ([codes.encode_clip(codec, item)
                   for item in codes.read_items(args.data, split, labelled=True)]
                  for split in ('train', 'valid'))
  test, judgements = encode_and_judge(codec, codes.read_items(args.data, 'test', labelled=True))
  weights, scores = {}, {}
  for stages in sorted({1, *codec.config.rates}):
    scores[stages], fitted = fit_kinds(train, valid, test, levels, stages)
    weights[stages] = scores[stages]['chosen'], fitted[scores[stages]['chosen']]
    if codec.config.model.quantizer == 'bd_rfsq':
      decoded = decoded_emotion.classify(codec, train, valid, test, stages)
      scores[stages]['decoded'] = {name: score(test, p) for name, p in decoded.items()}
  predictor = token_emotion.Predictor(codec.fingerprint, levels, weights)
  token_emotion.save(args.out, predictor)
  results = {'fingerprint': codec.fingerprint.hex(), 'step': codec.step,
             'clips': {'train': len(train), 'valid': len(valid), 'test': len(test)},
             'test_speakers': len({c.speaker for c in test}), 'chance': 1 / len({c.emotion for c in test}),
             'stages': scores, 'from_audio': {name: score(test, p) for name, p in judgements.items()}}
  if args.report:
    write_json(args.report, results)
  print('\n'.join(table(results, codec.stage_kbps)))
  print(f'{args.out}: {pathlib.Path(args.out).stat().st_size / 1000:.0f} kB')


def encode_and_judge(codec, items):
  """Encodes items, and classifies them by the networks that need the audio.

  Returns:
    list of `Clip`; {name: probabilities `[clips, emotions]`}: of the teacher and the independent judge on
    the originals, of the judge on what is decoded at each rate.
  """
  from affectcodec_jax.analysis.codes import encode_clip
  from affectcodec_jax.emotion import judges
  judge, teacher = judges.network_judge(), judges.packaged_teacher()
  clips, judgements = [], []
  for item in items:
    clips.append(encode_clip(codec, item))
    judgements.append({'teacher on the original': teacher(item['audio']),
                       'judge on the original': judge(item['audio'])} | {
        f'judge on {codec.stage_kbps * m:g} kbps': judge(codec.decode(clips[-1].codes[:, :m]))
        for m in codec.config.rates})
  return clips, {name: np.stack([j[name] for j in judgements]) for name in judgements[0]}


def check_speakers(splits):
  """Refuses splits, {name: speakers}, that share one: a voice would be taken for an emotion.

  Raises:
    UserError: names one.
  """
  split_of = {}
  for split, speakers in splits.items():
    if not all(speakers):
      raise UserError(f'speakers of split {split} are not known; give a manifest that names them')
    for speaker in speakers:
      if split_of.setdefault(speaker, split) != split:
        raise UserError(f'speaker {speaker} is in splits {split_of[speaker]} and {split}; give splits that '
                        'share no speaker')


def fit_kinds(train, valid, test, levels, stages):
  """A regression of each kind on the first `stages` stages.

  Returns:
    {'chosen': kind, 'emotion_minus_acoustic': in accuracy on `test`, kind: {'C', 'valid_log_loss', 'valid',
    'test'}}, and {kind: `[1 + F, emotions]`}.
  """
  scores, fitted, predicted = {}, {}, {}
  for kind in token_emotion.KINDS:
    x = [np.stack([token_emotion.features(c.codes[:, :stages], levels, kind) for c in clips])
         for clips in (train, valid, test)]
    fits = [(c, fit(x[0], [clip.emotion for clip in train], c)) for c in STRENGTHS]
    losses = [log_loss(valid, token_emotion.apply(w, x[1])) for _, w in fits]
    c, fitted[kind] = fits[int(np.argmin(losses))]
    predicted[kind] = token_emotion.apply(fitted[kind], x[2])
    scores[kind] = {'C': c, 'valid_log_loss': min(losses), 'test': score(test, predicted[kind]),
                    'valid': score(valid, token_emotion.apply(fitted[kind], x[1]))}
  # By accuracy: the likelihood prefers the kind that is least sure of its mistakes.
  chosen = max(token_emotion.KINDS, key=lambda kind: scores[kind]['valid']['mean'])
  lead = difference(test, predicted['emotion'], predicted['acoustic'])
  return {'chosen': chosen, 'emotion_minus_acoustic': lead} | scores, fitted


def fit(x, labels, strength):
  """Weights `[1 + F, emotions]`, the intercept first, of a logistic regression on `[n, F]`.

  Inputs are standardised, which the weights undo, and emotions count alike. An emotion that is not among
  the labels has probability 0.

  Raises:
    UserError: fewer than two emotions.
  """
  from affectcodec_jax.analysis.probes import require_sklearn
  classifier, make_pipeline, scaler = require_sklearn()
  if len(set(labels)) < 2:
    raise UserError('the training split has one emotion only; give files of two or more')
  model = make_pipeline(scaler(), classifier(C=strength, class_weight='balanced', max_iter=1000))
  scale, regression = model.fit(x.astype(np.float32), labels)
  per_unit, intercept = regression.coef_ / scale.scale_, regression.intercept_  # [classes, F], [classes]
  if len(regression.classes_) == 2:  # then there is one row, for the second
    per_unit, intercept = np.stack([0 * per_unit[0], per_unit[0]]), np.array([0, intercept[0]])
  weights = np.zeros((1 + x.shape[1], len(EMOTIONS)), np.float32)
  weights[0] = ABSENT
  weights[1:, regression.classes_] = per_unit.T
  weights[0, regression.classes_] = intercept - per_unit @ scale.mean_
  return weights


def log_loss(clips, probabilities):
  """Mean over emotions of the mean -log of their clips' own probability, which counts as 1e-6 at least."""
  truth = np.array([c.emotion for c in clips])
  loss = -np.log(np.maximum(probabilities[np.arange(len(truth)), truth], 1e-6))
  return float(np.mean([loss[truth == e].mean() for e in np.unique(truth)]))


def score(clips, probabilities):
  """Unweighted accuracy of `[clips, emotions]` with its 95 % interval over speakers."""
  from affectcodec_jax.analysis.probes import recall_interval
  return recall_interval(np.array([c.emotion for c in clips]), probabilities.argmax(axis=1),
                         np.array([c.speaker for c in clips]))


def difference(clips, first, second):
  """Unweighted accuracy of one less that of the other, `[clips, emotions]` each, with its interval."""
  from affectcodec_jax.evaluation.statistics import Speakers
  truth = np.array([c.emotion for c in clips])
  speakers = Speakers([{'corpus': c.corpus, 'speaker': c.speaker} for c in clips])
  recall = [speakers.recall(truth, p.argmax(axis=1), macro=True) for p in (first, second)]
  return speakers.interval(recall[0] - recall[1])


def table(results, stage_kbps):
  """Lines that sum up `results`."""
  from affectcodec_jax.evaluation.statistics import text
  lines = [f'unweighted accuracy [95 % over {results["test_speakers"]} test speakers], '
           f'{results["clips"]["test"]} clips, chance {results["chance"]:.3f}; * is kept']
  for stages, kinds in results['stages'].items():
    for kind in token_emotion.KINDS:
      kept = ' *' if kind == kinds['chosen'] else ''
      lines.append(f'{stage_kbps * stages:5g} kbps  {kind:8} {text(kinds[kind]["test"], ".3f")}  '
                   f'validation {kinds[kind]["valid"]["mean"]:.3f}{kept}')
    lead = kinds['emotion_minus_acoustic']
    lines.append(f'             emotion block less acoustic block {text(lead, ".3f")}')
    lines += [f'             features of the emotion block, {name:4} {text(s, ".3f")}'
              for name, s in kinds.get('decoded', {}).items()]
  return lines + [f'{name:24} {text(s, ".3f")}' for name, s in results['from_audio'].items()]
