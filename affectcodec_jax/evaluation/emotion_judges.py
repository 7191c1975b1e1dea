"""How well the judges, and a compact teacher beside them, tell emotion in labelled speech."""

import numpy as np

from affectcodec_jax.common import packaged, progress
from affectcodec_jax.common.files import make_folder, write_json
from affectcodec_jax.data.folder import FolderSource
from affectcodec_jax.emotion import accuracy, judges
from affectcodec_jax.evaluation.statistics import Speakers, text
from affectcodec_jax.inference import weights
from affectcodec_jax.models.params import save_params

_PRINCIPAL = 96  # of Whisper's 768 features: as good as all of them, and a megabyte in place of four


def score_judges(data, out, judge, teacher):
  """Fits the SVMs to the features of `data` and writes the scores of all to the folder `out`.

  Args:
    data: a manifest with emotions and the splits train, valid and test.
    out: folder for results.json and the judges: egemaps.npz, whisper_tiny.npz and judge.safetensors.
    judge, teacher: files of a network judge, which is copied, and of a compact teacher.

  Raises:
    UserError: a file of another network, a split without labelled clips, or a package that is not
      installed.
  """
  makers = {'svm': judges.egemaps(), 'whisper_svm': judges.whisper_features()}
  params, compact = weights.load_judge(judge), judges.compact_teacher(weights.load_compact(teacher))
  out = make_folder(out)
  save_params(out / packaged.JUDGE.name, params)
  network = judges.network_judge(out / packaged.JUDGE.name)
  clips, features, truth = {}, {name: {} for name in makers}, {}
  for split in ('train', 'valid', 'test'):
    clips[split] = accuracy.labelled(FolderSource(data, split))
    truth[split] = [c['emotion'] for c in clips[split]]
    for name, of_clip in makers.items():
      shown = progress.bar(clips[split], desc=f'{split}, {name}', unit='clip')
      features[name][split] = np.stack([of_clip(c['audio']) for c in shown])
  judges.keep_svm(out / judges.EGEMAPS, features['svm'], truth)
  judges.keep_svm(out / judges.WHISPER, features['whisper_svm'], truth, _PRINCIPAL)
  test = clips['test']
  predicted = {name: judges.svm_posteriors(out / file)(features[name]['test']).argmax(axis=1)
               for name, file in (('svm', judges.EGEMAPS), ('whisper_svm', judges.WHISPER))}
  predicted |= {'network': np.array([network(c['audio']).argmax() for c in test]),
                'teacher': np.array([compact(c['audio']).argmax() for c in test])}
  results = {name: accuracy.score(test, p) for name, p in predicted.items()}
  right = np.array(truth['test'])

  def lead(rows):
    draws = Speakers(rows)
    recall = {name: draws.recall(right, predicted[name], macro=True) for name in ('teacher', 'svm')}
    return draws.interval(recall['teacher'] - recall['svm'])

  results['teacher_minus_svm'] = {
      'over_speakers': lead([{'corpus': c['corpus'], 'speaker': c['speaker'], 'file': c['name']}
                             for c in test]),
      'over_clips': lead([{'speaker': c['name']} for c in test])}
  write_json(out / 'results.json', results)
  for name in predicted:
    result = results[name]
    print(f'{name:12} unweighted accuracy on test speakers {result["accuracy"]:.3f}; '
          + ', '.join(f'{k} {v:.3f}' for k, v in result['corpora'].items()))
  for kind, m in results['teacher_minus_svm'].items():
    print(f'teacher - svm: {text(m, "+.3f")} {kind}')
