"""How well both judges, and the packaged teacher beside them, tell emotion in labelled speech."""

import numpy as np

from affectcodec_jax.common import progress
from affectcodec_jax.common.files import make_folder, write_json
from affectcodec_jax.data.folder import FolderSource
from affectcodec_jax.emotion import judges
from affectcodec_jax.evaluation import statistics


def score_judges(data, out):
  """Fits the machine to the functionals of `data` and writes the scores of all three to the folder `out`.

  Args:
    data: a manifest with emotions and the splits train, valid and test.
    out: folder for results.json and egemaps.npz.

  Raises:
    UserError: a split without labelled clips, or a package that is not installed.
  """
  functionals, network, teacher = judges.egemaps(), judges.network_judge(), judges.packaged_teacher()
  out = make_folder(out)
  clips, features, truth = {}, {}, {}
  for split in ('train', 'valid', 'test'):
    clips[split] = judges.labelled(FolderSource(data, split))
    shown = progress.bar(clips[split], desc=split, unit='clip')
    features[split] = np.stack([functionals(c['audio']) for c in shown])
    truth[split] = [c['emotion'] for c in clips[split]]
  svm = judges.fit_svm(features['train'], truth['train'], features['valid'], truth['valid'])
  test = clips['test']
  predicted = {'egemaps_svm': svm(features['test']).argmax(axis=1),
               'network': np.array([network(c['audio']).argmax() for c in test]),
               'teacher': np.array([teacher(c['audio']).argmax() for c in test])}
  results = {name: judges.score(test, p) for name, p in predicted.items()}
  right, groups = np.array(truth['test']), statistics.speaker_groups(test)

  def lead(i):
    return (judges.unweighted_accuracy(right[i], predicted['teacher'][i])
            - judges.unweighted_accuracy(right[i], predicted['egemaps_svm'][i]))

  results['teacher_minus_svm'] = {
      'over_speakers': statistics.bootstrap(groups, lead),
      'over_clips': statistics.bootstrap([np.array([i]) for i in range(len(test))], lead)}
  # The functionals are kept, not the machine: fitting takes seconds, and a pickle is not to be trusted.
  np.savez(out / 'egemaps.npz', train=features['train'], train_labels=truth['train'],
           valid=features['valid'], valid_labels=truth['valid'])
  write_json(out / 'results.json', results)
  for name in predicted:
    result = results[name]
    print(f'{name:12} unweighted accuracy on test speakers {result["accuracy"]:.3f}; '
          + ', '.join(f'{k} {v:.3f}' for k, v in result['corpora'].items()))
  for kind, m in results['teacher_minus_svm'].items():
    print(f'teacher - egemaps_svm: {m["mean"]:+.3f} [{m["low"]:+.3f}, {m["high"]:+.3f}] {kind}')
