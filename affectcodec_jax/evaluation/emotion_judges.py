"""How well the judges, and a compact teacher beside them, tell emotion in labelled speech."""

import numpy as np

from affectcodec_jax.common import progress
from affectcodec_jax.common.files import make_folder, write_json
from affectcodec_jax.data.folder import FolderSource
from affectcodec_jax.emotion import accuracy, judges
from affectcodec_jax.evaluation import statistics
from affectcodec_jax.inference import weights

_PRINCIPAL = 96  # of Whisper's 768 features: as good as all of them, and a megabyte in place of four


def score_judges(data, out, judge, teacher):
  """Fits the SVMs to the features of `data` and writes the scores of all to the folder `out`.

  Args:
    data: a manifest with emotions and the splits train, valid and test.
    out: folder for results.json, egemaps.npz and whisper_tiny.npz.
    judge, teacher: files of a network judge and of a compact teacher.

  Raises:
    UserError: a split without labelled clips, or a package that is not installed.
  """
  makers = {'egemaps_svm': judges.egemaps(), 'whisper_svm': judges.whisper_features()}
  network, compact = judges.network_judge(weights.load_judge(judge)), judges.compact_teacher(teacher)
  out = make_folder(out)
  clips, features, truth = {}, {name: {} for name in makers}, {}
  for split in ('train', 'valid', 'test'):
    clips[split] = accuracy.labelled(FolderSource(data, split))
    truth[split] = [c['emotion'] for c in clips[split]]
    for name, of_clip in makers.items():
      shown = progress.bar(clips[split], desc=f'{split}, {name}', unit='clip')
      features[name][split] = np.stack([of_clip(c['audio']) for c in shown])
  judges.keep_svm(out / judges.EGEMAPS, features['egemaps_svm'], truth)
  judges.keep_svm(out / judges.WHISPER, features['whisper_svm'], truth, _PRINCIPAL)
  test = clips['test']
  predicted = {name: judges.svm_posteriors(out, file)(features[name]['test']).argmax(axis=1)
               for name, file in (('egemaps_svm', judges.EGEMAPS), ('whisper_svm', judges.WHISPER))}
  predicted |= {'network': np.array([network(c['audio']).argmax() for c in test]),
                'teacher': np.array([compact(c['audio']).argmax() for c in test])}
  results = {name: accuracy.score(test, p) for name, p in predicted.items()}
  right = np.array(truth['test'])
  groups = statistics.speaker_groups([{'speaker': c['speaker'], 'file': c['name']} for c in test])

  def lead(i):
    return (accuracy.unweighted_accuracy(right[i], predicted['teacher'][i])
            - accuracy.unweighted_accuracy(right[i], predicted['egemaps_svm'][i]))

  results['teacher_minus_svm'] = {
      'over_speakers': statistics.bootstrap(groups, lead),
      'over_clips': statistics.bootstrap([np.array([i]) for i in range(len(test))], lead)}
  write_json(out / 'results.json', results)
  for name in predicted:
    result = results[name]
    print(f'{name:12} unweighted accuracy on test speakers {result["accuracy"]:.3f}; '
          + ', '.join(f'{k} {v:.3f}' for k, v in result['corpora'].items()))
  for kind, m in results['teacher_minus_svm'].items():
    print(f'teacher - egemaps_svm: {m["mean"]:+.3f} [{m["low"]:+.3f}, {m["high"]:+.3f}] {kind}')
