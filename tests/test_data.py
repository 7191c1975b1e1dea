"""The data layer: determinism, resuming, shards, formats, damage, messages."""

import json
import logging

from ml_collections import ConfigDict
import numpy as np
import pytest
import soundfile

from affectcodec_jax.common.errors import UserError
from affectcodec_jax.common.labels import EMOTIONS, emotion_index
from affectcodec_jax.data import perturb, pipeline, pitch
from affectcodec_jax.data.folder import FolderSource
from affectcodec_jax.data.synthetic import SyntheticSource
from configs.base import get_config


class Counting:
  """Items that tell their index by their length."""

  def __init__(self, n, missing=()):
    self.n, self.missing = n, missing

  def __len__(self):
    return self.n

  def __getitem__(self, i):
    if i in self.missing:
      return None
    return {'audio': np.full(1000, 0.1, np.float32), 'emotion': i, 'speaker': '', 'name': str(i)}


def _iterator(source, seed=0, batch_size=4, crop_samples=640, **kwargs):
  data = ConfigDict({'gain_db': 3.0, 'speed': 0.0, 'equalise_db': 0.0})
  return pipeline.make_iterator(source, data, batch_size=batch_size, crop_samples=crop_samples, seed=seed,
                                **kwargs)


def _take(iterator, n):
  return [next(iterator) for _ in range(n)]


def test_same_seed_same_batches_other_seed_others():
  a, b, c = (_take(_iterator(SyntheticSource(8), seed=s), 4) for s in (0, 0, 1))
  for x, y in zip(a, b):
    np.testing.assert_array_equal(x['audio'], y['audio'])
  assert any(np.any(x['audio'] != y['audio']) for x, y in zip(a, c))
  assert a[0]['audio'].shape == (4, 640) and a[0]['audio'].dtype == np.float32


def test_every_epoch_covers_all_in_another_order():
  batches = _take(_iterator(Counting(12)), 6)
  first = np.concatenate([b['emotion'] for b in batches[:3]])
  second = np.concatenate([b['emotion'] for b in batches[3:]])
  assert sorted(first) == sorted(second) == list(range(12))
  assert list(first) != list(second)


@pytest.mark.parametrize('workers', [0, 2])
def test_resumed_iterator_continues_exactly(workers):
  source = SyntheticSource(16)
  iterator = _iterator(source, num_workers=workers)
  _take(iterator, 3)
  state = iterator.get_state()
  expected = _take(iterator, 3)
  fresh = _iterator(source, num_workers=workers)
  fresh.set_state(state)
  for x, y in zip(expected, _take(fresh, 3)):
    np.testing.assert_array_equal(x['audio'], y['audio'])


def test_shards_are_disjoint_and_cover():
  parts = [np.concatenate([b['emotion'] for b in _take(
      _iterator(Counting(24), process_index=i, process_count=3), 2)]) for i in range(3)]
  assert sorted(np.concatenate(parts)) == list(range(24))


def test_unreadable_items_are_left_out_and_all_unreadable_ends():
  seen = np.concatenate([b['emotion'] for b in _take(_iterator(Counting(8, missing=(3,))), 7)])
  assert 3 not in seen and set(seen) == {0, 1, 2, 4, 5, 6, 7}
  with pytest.raises(UserError, match='could not be read'):
    next(_iterator(Counting(4, missing=range(4))))


def test_crops_are_at_the_codec_level():
  """Quiet and loud files alike come out within gain_db of -24 dBFS, and never clip."""
  rng = np.random.default_rng(0)
  levels = {}
  for scale in (1e-4, 1e-2, 0.3):
    audio = np.clip(rng.normal(size=4000) * scale, -1, 1).astype(np.float32)

    class One(Counting):
      def __getitem__(self, i, audio=audio):
        return {'audio': audio, 'emotion': 0, 'speaker': '', 'name': ''}

    batch = next(_iterator(One(1)))['audio']
    assert np.abs(batch).max() <= 1
    levels[scale] = 20 * np.log10(np.std(batch))
  assert all(abs(v + 24) < 3.5 for v in levels.values()), levels


def _write(path, seconds, rate=16000, channels=1, **kwargs):
  path.parent.mkdir(parents=True, exist_ok=True)
  t = np.arange(int(seconds * rate)) / rate
  audio = 0.3 * np.sin(2 * np.pi * 440 * t)
  soundfile.write(path, np.stack([audio] * channels, 1), rate, **kwargs)


@pytest.mark.parametrize('suffix, rate, channels', [
    ('wav', 8000, 1), ('flac', 22050, 2), ('ogg', 44100, 1), ('mp3', 48000, 2), ('wav', 16000, 1)])
def test_formats_and_rates(tmp_path, suffix, rate, channels):
  """A 440 Hz tone is a 440 Hz tone of the same length at 16 kHz."""
  _write(tmp_path / f'a.{suffix}', 1.0, rate, channels)
  audio = FolderSource(tmp_path)[0]['audio']
  assert abs(len(audio) - 16000) < 1200  # MP3 pads by up to two of its frames
  spectrum = np.abs(np.fft.rfft(audio * np.hanning(len(audio))))
  assert abs(spectrum.argmax() * 16000 / len(audio) - 440) < 2
  np.testing.assert_array_equal(FolderSource(tmp_path / f'a.{suffix}')[0]['audio'], audio)


def test_bad_files_are_skipped_with_one_counted_warning(tmp_path, caplog):
  _write(tmp_path / 'anna' / 'good.wav', 1.0)
  _write(tmp_path / 'short.wav', 0.1)
  (tmp_path / 'text.wav').write_text('hello')
  (tmp_path / 'notes.txt').write_text('not looked at')
  with caplog.at_level(logging.WARNING):
    source = FolderSource(tmp_path)
  assert len(source) == 1 and source.skipped == 2 and source[0]['speaker'] == 'anna'
  assert len(caplog.records) == 1 and 'skipped 2 of 3' in caplog.text
  (tmp_path / 'anna' / 'good.wav').write_bytes(b'gone bad')
  assert source[0] is None and source.skipped == 3


def test_directory_split_is_never_empty(tmp_path):
  for i in range(5):
    _write(tmp_path / f'{i}.wav', 0.5)
  names = {s: {FolderSource(tmp_path, s)[i]['name'] for i in range(len(FolderSource(tmp_path, s)))}
           for s in ('train', 'valid', 'test')}
  assert all(names.values()) and sum(map(len, names.values())) == 5
  assert len(set.union(*names.values())) == 5


def test_directory_split_stays_when_files_are_added(tmp_path):
  splits = ('train', 'valid', 'test')
  of = lambda: {FolderSource(tmp_path, s)[i]['name']: s for s in splits
                for i in range(len(FolderSource(tmp_path, s)))}
  for i in range(100):
    _write(tmp_path / f'{i}.wav', 0.4)
  before = of()
  for i in range(100, 130):
    _write(tmp_path / f'{i}.wav', 0.4)
  after = of()
  assert len(after) == 130 and all(after[name] == split for name, split in before.items())


def test_manifest(tmp_path, caplog):
  for name in 'ab':
    _write(tmp_path / f'{name}.wav', 0.5)
  rows = [{'path': 'a.wav', 'emotion': 'anger', 'speaker': 7, 'split': 'train'},
          {'path': 'b.wav', 'emotion': 'read', 'split': 'test'},
          {'path': 'missing.wav', 'split': 'train'}]
  manifest = tmp_path / 'm.jsonl'
  manifest.write_text('\n'.join(map(json.dumps, rows)))
  source = FolderSource(manifest, 'train')
  assert len(source) == 1 and source.skipped == 1
  assert source[0]['emotion'] == EMOTIONS.index('angry') and source[0]['speaker'] == '7'
  assert 'unlabelled' not in caplog.text
  assert FolderSource(manifest, 'test')[0]['emotion'] == -1
  assert "1 of 1 files count as unlabelled: their emotion ('read') is none of neutral" in caplog.text
  with pytest.raises(UserError, match="no row of split 'valid'; it has test, train"):
    FolderSource(manifest, 'valid')
  manifest.write_text('{"path": "a.wav"}\n{"path": \n')
  with pytest.raises(UserError, match='line 2'):
    FolderSource(manifest)


def test_long_files_are_read_by_window(tmp_path):
  _write(tmp_path / 'long.wav', 40.0)
  source = FolderSource(tmp_path)
  read = []
  whole = source.read
  source.read = lambda i, start=0.0, seconds=None: read.append(seconds) or whole(i, start, seconds)
  next(_iterator(source))
  assert read and set(read) == {30.0}
  crop = next(_iterator(source, crop_samples=16000 * 35))['audio']
  assert max(read) > 35
  ends = np.abs(np.concatenate([crop[:, None, :8000], crop[:, None, -8000:]], axis=1))  # [4, 2, 8000]
  assert ends.max(axis=2).min() > 0  # no silence around any


@pytest.mark.parametrize('field, value, message', [
    ('source', 'disk', 'data.source'), ('path', '/nowhere', '/nowhere')])
def test_source_messages(field, value, message):
  config = get_config().data
  config.source = 'folder'
  config[field] = value
  with pytest.raises(UserError, match=message):
    pipeline.make_source(config, 'train', 0)


def test_emotion_names():
  assert [emotion_index(n) for n in ('neutral', 'Fear', 'ANG', 'happiness')] == [0, 5, 4, 2]
  assert emotion_index('read') == emotion_index(None) == -1


@pytest.mark.parametrize('stock', [False, True])
def test_tfds_reads_a_prepared_set(tmp_path, stock, caplog):
  """A tiny set of our own, with the stock audio feature and with a plain tensor."""
  tfds = pytest.importorskip('tensorflow_datasets')
  from affectcodec_jax.data.tfds import TfdsSource
  audio = (10000 * np.sin(np.arange(8000) * 0.1)).astype(np.int16)
  if stock:
    feature = tfds.features.Audio(sample_rate=8000)
  else:
    feature = tfds.features.Tensor(shape=(None,), dtype=np.int16, encoding='bytes')

  with tfds.core.registered.skip_registration():
    class TinySpeech(tfds.core.GeneratorBasedBuilder):
      VERSION = tfds.core.Version('1.0.0')

      def _info(self):
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict({
            'audio': feature, 'label': tfds.features.ClassLabel(names=['SAD', 'ANG']),
            'speaker_id': tfds.features.Text()}))

      def _split_generators(self, _):
        return {'train': self._generate_examples(), 'validation': self._generate_examples()}

      def _generate_examples(self):
        for i in range(3):
          data = audio.astype(np.int64) if stock else audio
          yield i, {'audio': data, 'label': i % 2, 'speaker_id': f's{i}'}

  TinySpeech.name = 'tiny_speech_stock' if stock else 'tiny_speech'
  builder = TinySpeech(data_dir=tmp_path, file_format='array_record')
  builder.download_and_prepare()
  source = TfdsSource(TinySpeech.name, 'valid', tmp_path)
  assert len(source) == 3 and ('16000 Hz is assumed' in caplog.text) == (not stock)
  items = [source[i] for i in range(3)]
  assert sorted(x['emotion'] for x in items) in ([3, 3, 4], [3, 4, 4])
  assert {x['speaker'] for x in items} == {'s0', 's1', 's2'}
  expected = 16000 if stock else 8000  # the stock feature knows its rate: 8 kHz becomes 16
  assert all(len(x['audio']) == expected for x in items)
  assert all(0.28 < np.abs(x['audio']).max() < 0.34 for x in items)
  batch = next(_iterator(source))
  assert batch['audio'].shape == (4, 640)
  with pytest.raises(UserError, match="no split 'dev'"):
    TfdsSource(TinySpeech.name, 'dev', tmp_path)


def test_tfds_messages(tmp_path):
  pytest.importorskip('tensorflow_datasets')
  from affectcodec_jax.data.tfds import TfdsSource, prepare
  with pytest.raises(UserError, match='no such data set'):
    TfdsSource('no_such_set_at_all', 'train', tmp_path)
  with pytest.raises(UserError, match='no such data set in tensorflow_datasets$'):
    prepare('no_such_set_at_all', tmp_path)
  with pytest.raises(UserError, match='python -m affectcodec_jax prepare crema_d'):
    TfdsSource('crema_d', 'train', tmp_path)
  with pytest.raises(UserError, match='data.tfds_name'):
    TfdsSource('', 'train')


def test_synthetic_is_deterministic_and_bounded():
  a, b = SyntheticSource(16, seed=1), SyntheticSource(16, seed=1)
  for i in (0, 7, 15):
    np.testing.assert_array_equal(a[i]['audio'], b[i]['audio'])
    assert np.isfinite(a[i]['audio']).all() and np.abs(a[i]['audio']).max() <= 1
    assert np.any(a[i]['audio'] != SyntheticSource(16, seed=2)[i]['audio'])
    assert np.any(a[i]['audio'] != SyntheticSource(16, seed=1, split='valid')[i]['audio'])


def test_synthetic_emotions_sound_different():
  """Means over 16 clips: anger is louder and higher than sadness, as in acted speech."""
  source = SyntheticSource(16 * len(EMOTIONS))

  def mean(emotion, of):
    start = EMOTIONS.index(emotion)
    return np.mean([of(i) for i in range(start, len(source), len(EMOTIONS))])

  level = lambda i: 10 * np.log10(np.mean(source[i]['audio'] ** 2))
  pitch = lambda i: np.mean(source.pitch(i)[source.pitch(i) > 0])
  assert mean('angry', level) > mean('sad', level) + 6
  assert mean('angry', pitch) > 1.15 * mean('sad', pitch)


def test_synthetic_pitch_is_as_drawn():
  """Autocorrelation finds the drawn F0, within 5 % in the median frame of a clip."""
  source = SyntheticSource(8)
  errors = []
  for i in range(8):
    audio, f0 = source[i]['audio'], source.pitch(i)
    for k in range(10, len(f0) - 10, 5):
      if f0[k - 4:k + 5].min() <= 0:
        continue
      x = audio[k * 80 - 320:k * 80 + 320] * np.hanning(640)
      r = np.correlate(x, x, 'full')[639:]
      lag = 32 + r[32:230].argmax()
      errors.append(abs(16000 / lag / f0[k] - 1))
  assert len(errors) > 50 and np.median(errors) < 0.05


def _vowel(f0, seconds=1.0, after=0.3):
  """Pulses through a resonance, then silence: `[samples]`."""
  t = np.arange(int(seconds * 16000)) / 16000
  voice = sum(np.cos(2 * np.pi * k * f0 * t) / k for k in range(1, int(4000 / f0)))
  return np.concatenate([0.05 * voice, 1e-4 * np.random.default_rng(0).normal(size=int(after * 16000))]
                        ).astype(np.float32)


class VowelSource(SyntheticSource):
  """Items that are one vowel at 120 Hz and a pause."""

  def __getitem__(self, i):
    return super().__getitem__(i) | {'audio': _vowel(120.0)}


def test_pitch_of_a_crop_is_that_of_the_recording(tmp_path, monkeypatch):
  """Where it is voiced, the known 120 Hz times the speed; other frames continue the nearest voiced one."""
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  recording = _vowel(120.0)
  f0, voiced = pitch.crop_pitch(recording, start=0.5, speed=1.1, samples=320 * 35)
  assert f0.shape == voiced.shape == (35,) and set(np.unique(voiced)) == {0.0, 1.0}
  np.testing.assert_allclose(f0[voiced == 1][:-1], 132.0, rtol=0.01)  # the last holds the vowel's end
  ends = int((1.0 - 0.5) / 1.1 * 50)  # the frame in which the vowel ends
  assert voiced[:ends - 2].all() and not voiced[ends + 3:].any()
  np.testing.assert_allclose(f0[ends + 3:], f0[voiced == 1][-1])


def test_pitch_is_tracked_once_and_read_then(tmp_path, monkeypatch):
  """Of recordings that end on the grid of 5 ms and beside it."""
  recording = _vowel(200.0)
  many = [recording[:n] for n in (16080, 16081, 18080, 5000)]
  for x in (recording, *many):
    (tmp_path / str(len(x))).mkdir()
  first, *others = [pitch.cached_track(x, tmp_path / str(len(x))) for x in (recording, *many)]
  monkeypatch.setattr(pitch, 'track', lambda audio: pytest.fail('tracked again'))
  for x, values in zip((recording, *many), (first, *others)):
    np.testing.assert_array_equal(pitch.cached_track(x, tmp_path / str(len(x))), values)
  tmp_path = tmp_path / str(len(recording))
  file, = tmp_path.iterdir()
  file.write_bytes(file.read_bytes()[:7])  # damaged: as good as absent
  monkeypatch.undo()
  np.testing.assert_array_equal(pitch.cached_track(recording, tmp_path), first)
  file.unlink()

  def full(path, data):
    raise UserError('No space left on device')

  monkeypatch.setattr(pitch, 'write_whole', full)  # a cache is not needed
  np.testing.assert_array_equal(pitch.cached_track(recording, tmp_path).astype(np.float16), first)


def test_silence_has_a_pitch_and_no_voice():
  f0, voiced = pitch.at_frames(np.zeros(50, np.float32), 0.0, 1.0, 10)
  assert (f0 > 0).all() and not voiced.any()


def test_speed_changes_pitch_and_length():
  audio = np.sin(2 * np.pi * 300 * np.arange(17600) / 16000).astype(np.float32)
  faster = perturb.change_speed(audio, 1.1, 16000)
  assert faster.shape == (16000,)
  spectrum = np.abs(np.fft.rfft(faster * np.hanning(16000)))
  assert abs(np.argmax(spectrum) - 330) <= 1  # Hz
  np.testing.assert_array_equal(perturb.change_speed(audio, 1.0, 16000), audio[:16000])


def test_equaliser_has_the_gains_it_is_given():
  noise = np.random.default_rng(0).normal(size=32000).astype(np.float32)
  out = perturb.equalise(noise, np.array([0, 0, 0, 6.0, 6.0, 6.0]))
  gain = 20 * np.log10(np.abs(np.fft.rfft(out)) / np.abs(np.fft.rfft(noise)))
  frequency = np.fft.rfftfreq(32000, 1 / 16000)
  np.testing.assert_allclose(gain[(frequency > 100) & (frequency < 700)], 0, atol=0.01)
  np.testing.assert_allclose(gain[frequency > 1800], 6, atol=0.01)


def test_varied_crops_carry_their_pitch(tmp_path, monkeypatch):
  """Batches with random speed: pitch and audio agree, by the crop's own autocorrelation."""
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  data = ConfigDict({'gain_db': 3.0, 'speed': 0.2, 'equalise_db': 6.0})
  batches = pipeline.make_iterator(VowelSource(8), data, batch_size=4, crop_samples=320 * 20, seed=0,
                                   pitch=pitch.crop_pitch)
  seen = []
  for _ in range(4):
    batch = next(batches)
    for audio, f0, voiced in zip(batch['audio'], batch['f0'], batch['voiced']):
      if voiced.all():
        lag = np.arange(80, 200)
        power = [np.dot(audio[:-200], audio[n:len(audio) - 200 + n]) for n in lag]
        np.testing.assert_allclose(16000 / lag[np.argmax(power)], np.median(f0), rtol=0.02)
        seen.append(float(np.median(f0)))
  assert len(seen) > 3 and max(seen) - min(seen) > 10  # not all of one speed
