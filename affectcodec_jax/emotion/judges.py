"""Emotion classifiers that are independent of the teacher, and how well any classifier does.

Two judges: a packaged network (`emotion/judge.py`), and eGeMAPS functionals with a support vector
machine, fitted to the packaged functionals of the same training speech, or to other speech by
`python -m affectcodec_jax teacher judge`, which scores both beside the packaged teacher. The second needs
opensmile (its own licence, free for research) and scikit-learn.
"""

import pathlib

from affectcodec_jax.common import packaged
from affectcodec_jax.common.constants import SAMPLE_RATE
from affectcodec_jax.common.errors import UserError, require_extra
from affectcodec_jax.common.labels import EMOTIONS


def network_judge():
  """A function of audio `[samples]` at 16 kHz to probabilities `[emotions]`, by the packaged judge."""
  from affectcodec_jax.emotion.judge import Judge
  from affectcodec_jax.models.params import load_params
  return _classifier(Judge(), load_params(packaged.JUDGE))


def packaged_teacher():
  """The same by the packaged teacher, for comparison: it must not judge a codec that it taught."""
  from affectcodec_jax.emotion.teachers import make_compact
  from affectcodec_jax.models.params import load_params
  params = load_params(packaged.TEACHER)
  return _classifier(make_compact(params), params)


def _classifier(network, params):
  import jax
  import numpy as np
  apply = jax.jit(lambda audio, mask: jax.nn.softmax(network.apply({'params': params}, audio, mask)[0]))
  return lambda audio: np.asarray(apply(*padded_clip(audio)))


def padded_clip(audio, seconds=6):
  """The first `seconds` of audio at the codec's level, `[1, samples]`, and the mask `[1, frames]`."""
  from affectcodec_jax.audio import at_codec_level, pad_to_frames
  padded, mask = pad_to_frames(at_codec_level(audio[:seconds * SAMPLE_RATE]), seconds * 50)
  return padded[None], mask[None]


def egemaps():
  """A function of audio `[samples]` at 16 kHz to the 88 eGeMAPSv02 functionals, at the codec's level.

  Raises:
    UserError: opensmile is not installed.
  """
  opensmile = require_extra('opensmile')
  from affectcodec_jax.audio import at_codec_level
  smile = opensmile.Smile(feature_set=opensmile.FeatureSet.eGeMAPSv02,
                          feature_level=opensmile.FeatureLevel.Functionals)
  return lambda audio: smile.process_signal(at_codec_level(audio), SAMPLE_RATE).to_numpy()[0]


def fit_svm(features, labels, valid_features, valid_labels):
  """An RBF support vector machine on standardised functionals `[clips, 88]`.

  C is the best of five on the validation clips. Returns a function of `[n, 88]` to probabilities
  `[n, emotions]`: a softmax of one-against-rest scores, for comparing an original with its copy.

  Raises:
    UserError: scikit-learn is not installed.
  """
  require_extra('sklearn', 'scikit-learn')
  import numpy as np
  from scipy.special import softmax
  from sklearn.metrics import balanced_accuracy_score
  from sklearn.pipeline import make_pipeline
  from sklearn.preprocessing import StandardScaler
  from sklearn.svm import SVC
  fitted = [make_pipeline(StandardScaler(), SVC(C=c, class_weight='balanced')).fit(features, labels)
            for c in (0.3, 1, 3, 10, 30)]
  best = max(fitted, key=lambda m: balanced_accuracy_score(valid_labels, m.predict(valid_features)))

  def probabilities(x):
    out = np.zeros((len(x), len(EMOTIONS)))
    out[:, best.classes_] = softmax(best.decision_function(x), axis=1)
    return out

  return probabilities


def svm_posteriors(folder=packaged.FOLDER):
  """A function of functionals `[n, 88]` to probabilities `[n, emotions]`: the machine kept in `folder`.

  Raises:
    UserError: nothing kept there, or scikit-learn is not installed.
  """
  import numpy as np
  path = pathlib.Path(folder) / 'egemaps.npz'
  try:
    with np.load(path) as kept:
      return fit_svm(*(kept[k] for k in ('train', 'train_labels', 'valid', 'valid_labels')))
  except (OSError, ValueError, KeyError) as e:
    raise UserError(f'{path}: cannot be read; make it with python -m affectcodec_jax teacher judge') from e


def score(items, predicted):
  """How well emotions `predicted` `[n]` fit `items` with `emotion` and `corpus`.

  Returns:
    unweighted accuracy (mean recall over the emotions present), of all and of each corpus, with the
    count of clips and the confusion table `[true][predicted]`.
  """
  import numpy as np
  truth = np.array([item['emotion'] for item in items])
  corpora = np.array([item.get('corpus', '') for item in items])
  confusion = np.zeros((len(EMOTIONS), len(EMOTIONS)), np.int64)
  np.add.at(confusion, (truth, predicted), 1)
  return {'accuracy': unweighted_accuracy(truth, predicted), 'clips': len(items),
          'corpora': {c: unweighted_accuracy(truth[corpora == c], predicted[corpora == c])
                      for c in sorted(set(corpora))},
          'confusion': confusion.tolist()}


def unweighted_accuracy(truth, predicted):
  """Mean recall over the emotions that occur in `truth`."""
  import numpy as np
  return float(np.mean([np.mean(predicted[truth == e] == e) for e in np.unique(truth)]))


def labelled(source):
  """The items of a source that can be read and have a known emotion.

  Raises:
    UserError: there are none.
  """
  items = [item for item in (source[i] for i in range(len(source)))
           if item is not None and item['emotion'] >= 0]
  if not items:
    raise UserError('no clip of this split has a known emotion')
  return items
