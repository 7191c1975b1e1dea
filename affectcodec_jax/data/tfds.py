"""Speech from TensorFlow Datasets, read through its random-access data source, without TensorFlow.

  python -m affectcodec_jax prepare crema_d --data_dir DIR    # downloads and prepares a set

Preparing is the set's own code, and most sets use TensorFlow in it; reading never does.
"""

import importlib.util
import logging

import numpy as np
import soundfile
import tensorflow_datasets as tfds
from tensorflow_datasets.core.features import audio_feature, feature
from tensorflow_datasets.core.proto import feature_pb2

from affectcodec_jax.audio import resample, to_mono
from affectcodec_jax.common.constants import SAMPLE_RATE
from affectcodec_jax.common.errors import UserError
from affectcodec_jax.common.labels import emotion_index

_AUDIO, _EMOTION = ('audio', 'speech'), ('emotion', 'label')
_SPEAKER = ('speaker_id', 'speaker', 'client_id')


def _without_tensorflow():
  """Lets the stock audio feature be built, encoded and decoded where TensorFlow is not installed.

  It needs TensorFlow only to name a dtype and to open files. Installed at import of this module,
  which unpickling a source in a worker process imports too.
  """

  def init(self, file_format, np_dtype, shape):
    self._file_format, self._np_dtype, self._dtype = file_format, np_dtype, np_dtype
    self._shape, self._channels = shape, shape[1] if len(shape) > 1 else 1

  def encode_example(self, audio):
    if not isinstance(audio, (np.ndarray, list)):
      audio, _ = soundfile.read(audio, dtype='int16')
      audio = audio.astype(self._audio_decoder._np_dtype)
    return super(audio_feature.Audio, self).encode_example(audio)

  def to_json_content(self):
    return feature_pb2.AudioFeature(
        shape=feature.to_shape_proto(self._shape), dtype=np.dtype(self._dtype).name,
        file_format=self._file_format, sample_rate=self._sample_rate,
        encoding=self._encoding.name, lazy_decode=self._lazy_decode)

  audio_feature._AudioDecoder.__init__ = init
  audio_feature.Audio.to_json_content = to_json_content
  audio_feature.Audio.encode_example = encode_example


if importlib.util.find_spec('tensorflow') is None:
  _without_tensorflow()


class TfdsSource:
  """Random access to one split of a prepared TensorFlow data set.

  Args:
    name: e.g. 'crema_d', 'librispeech'.
    split: its split; 'valid' finds 'validation' too.
    data_dir: where the set was prepared; None is the default folder.
    min_seconds: shorter items are skipped when they are met.

  Raises:
    UserError: unknown or unprepared set, no such split, no audio field.
  """

  def __init__(self, name, split, data_dir=None, min_seconds=0.3):
    if not name:
      raise UserError('data.tfds_name is empty; set it to a data set, e.g. crema_d')
    self.name, self.skipped, self._unreadable = name, 0, set()
    self._min_samples = int(min_seconds * SAMPLE_RATE)
    builder = _builder(name, data_dir)
    splits = builder.info.splits
    if split == 'valid' and split not in splits:
      split = 'validation'
    if split.split('[')[0] not in splits:
      raise UserError(f"{name}: no split '{split}'; it has {', '.join(splits)} (data.train_split and "
                      "data.eval_split choose, e.g. 'train[:95%]')")
    features = builder.info.features
    self._audio = next((k for k in _AUDIO if k in features), None)
    if self._audio is None:
      raise UserError(f'{name}: has no audio; its fields are {", ".join(features)}')
    self._emotion = next((k for k in _EMOTION if k in features), None)
    self._speaker = next((k for k in _SPEAKER if k in features), None)
    self._label_names = getattr(features[self._emotion], 'names', None) if self._emotion else None
    self._rate = getattr(features[self._audio], 'sample_rate', None)
    if not self._rate:
      logging.warning('%s: does not say its sample rate, %d Hz is assumed; if that is wrong, build it with '
                      'tfds.features.Audio(sample_rate=…)', name, SAMPLE_RATE)
      self._rate = SAMPLE_RATE
    try:
      self._source = builder.as_data_source(split)
    except NotImplementedError as e:
      raise UserError(f'{name}: prepared in a format without random access; prepare it with '
                      f'{_how_to_prepare(name, data_dir)}') from e

    self._digest = f'{builder.info.full_name} {split} {len(self._source)}'

  def __len__(self):
    return len(self._source)

  def __getitem__(self, i):
    try:
      row = self._source[int(i)]
      audio = np.asarray(row[self._audio])
      if np.issubdtype(audio.dtype, np.integer):
        audio = audio / 32768.0  # 16-bit PCM, kept as int64 by most sets
      audio = resample(to_mono(audio, self.name), self._rate, SAMPLE_RATE)
    except (UserError, RuntimeError, ValueError) as e:  # array_record reports damage as RuntimeError
      return self._skip(i, _first_line(e))
    if len(audio) < self._min_samples:
      return self._skip(i, 'too short')
    return {'audio': audio, 'emotion': self._emotion_of(row), 'name': f'{self.name}/{i}',
            'speaker': _text(row[self._speaker]) if self._speaker else ''}

  def digest(self):
    """Tells other sets apart, by name, version, split and length."""
    return self._digest

  def _skip(self, i, reason):
    if i not in self._unreadable:
      self._unreadable.add(i)
      self.skipped += 1
      logging.warning('skipped (%d so far): %s item %d: %s', self.skipped, self.name, i, reason)

  def _emotion_of(self, row):
    if self._emotion is None:
      return -1
    value = row[self._emotion]
    return emotion_index(self._label_names[int(value)] if self._label_names else _text(value))


def _text(value):
  return value.decode() if isinstance(value, bytes) else str(value)


def _builder(name, data_dir):
  try:
    builder = tfds.builder(name, data_dir=data_dir, file_format='array_record')
  except tfds.core.DatasetNotFoundError as e:
    raise UserError(f'{name}: no such data set in tensorflow_datasets nor in {data_dir}') from e
  except (ValueError, ModuleNotFoundError, AssertionError) as e:
    raise UserError(f'{name}: {_first_line(e)}; prepare it with {_how_to_prepare(name, data_dir)}') from e
  if not builder.info.splits:
    raise UserError(f'{name}: not prepared in {builder.data_dir}; run '
                    f'{_how_to_prepare(name, data_dir)}')
  return builder


def _how_to_prepare(name, data_dir):
  folder = f' --data_dir {data_dir}' if data_dir else ''
  return f'python -m affectcodec_jax prepare {name}{folder}'


def _first_line(error):
  return (str(error).splitlines() or [type(error).__name__])[0]


def prepare(name, data_dir=None):
  """Downloads and prepares a set for random access; returns a line that says where, and its splits.

  Raises:
    UserError: it cannot be prepared.
  """
  try:
    builder = tfds.builder(name, data_dir=data_dir, file_format='array_record')
    builder.download_and_prepare()
  except tfds.core.DatasetNotFoundError as e:
    raise UserError(f'{name}: no such data set in tensorflow_datasets') from e
  except Exception as e:  # a download can fail in as many ways as there are sets
    hint = '; to prepare this set: pip install tensorflow' if 'tensorflow' in str(e) else ''
    raise UserError(f'{name}: {_first_line(e)}{hint}') from e
  return f'{builder.data_dir}: {", ".join(f"{k} {v.num_examples}" for k, v in builder.info.splits.items())}'
