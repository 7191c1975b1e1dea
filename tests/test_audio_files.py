"""Audio as it is found: joined, unseekable, without lengths, damaged, overloaded, in any container."""

import io
import os
import subprocess
import sys
import threading

import numpy as np
import pytest
import soundfile

from affectcodec_jax import audio as audio_lib
from affectcodec_jax.audio import read_audio, write_audio
from affectcodec_jax.common import audio_reader
from affectcodec_jax.common.errors import UserError
from affectcodec_jax.common.open_sound import open_sound
from affectcodec_jax.common.pictures import spectrogram

av = pytest.importorskip('av')

RATE = 44100


def sweep(seconds, first=200, rate=RATE):
  t = np.arange(int(seconds * rate)) / rate
  return (0.3 * np.sin(2 * np.pi * (first * t + 20 * t ** 2))).astype(np.float32)


def test_levelled_and_padded():
  audio = sweep(0.05, rate=16000)  # 800 samples: two frames and a half
  level = audio_lib.at_codec_level(audio.astype(np.float64))
  assert level.dtype == np.float32 and audio_lib.active_level(level) == pytest.approx(-24, abs=1e-3)
  padded, mask = audio_lib.pad_to_frames(level, 5)
  assert padded.shape == (1600,) and mask.tolist() == [True, True, True, False, False]
  np.testing.assert_array_equal(padded, np.append(level, np.zeros(800, np.float32)))
  assert not audio_lib.at_codec_level(np.zeros(10, np.float32)).any()


def test_spectrogram_is_brightest_where_the_tone_is():
  tone = 0.5 * np.sin(2 * np.pi * 1000 / 16000 * np.arange(16000))
  picture = np.asarray(spectrogram(tone), int).sum(axis=-1)  # [257, 126]
  assert picture.shape == (257, 126) and abs(256 - picture[:, 60].argmax() - 32) <= 1  # 31.25 Hz a row
  assert np.asarray(spectrogram(tone, loudest=80), int).sum() < np.asarray(spectrogram(tone), int).sum()


def encoded(path, audio, codec, rate=RATE, options=None, **container):
  """Writes mono `audio` by FFmpeg, but for Vorbis, for which it may have no encoder."""
  if codec == 'libvorbis':
    with soundfile.SoundFile(path, 'w', rate, 1, format='OGG') as out:
      out.write(audio)
    return path
  with av.open(str(path), 'w', options=container.get('muxer', {})) as out:
    stream = out.add_stream(codec, rate=rate, layout='mono', options=options or {})
    frame = av.AudioFrame.from_ndarray((audio * 32767).astype(np.int16)[None], 's16', 'mono')
    frame.sample_rate = rate
    size = stream.codec_context.frame_size or None
    resampler = av.AudioResampler(stream.format.name, 'mono', stream.rate, size)
    for part in [*resampler.resample(frame), *resampler.resample(None)]:
      out.mux(stream.encode(part))
    out.mux(stream.encode(None))
  return path


def agrees(audio, expected, rate=RATE, lag=400, least=0.99):
  """Whether `audio` at 16 kHz is `expected` at `rate`, all of it, within `lag` samples."""
  expected = audio_lib.resample(expected, rate, 16000)
  assert abs(len(audio) - len(expected)) < 2 * 1152 * 16000 / rate + lag, (len(audio), len(expected))
  n = min(len(audio), len(expected))
  for start in range(0, n - 8000, 4000):  # in pieces, so that a hole or a slip shows
    piece = expected[start:start + 4000]
    around = audio[max(start - lag, 0):start + 4000 + lag]
    match = np.correlate(around, piece, 'valid').max() / (piece @ piece)
    assert match > least, (start / 16000, match)


KINDS = [('ogg', 'libvorbis', RATE), ('opus', 'libopus', 48000), ('mp3', 'libmp3lame', RATE),
         ('flac', 'flac', RATE), ('wav', 'pcm_s16le', RATE), ('m4a', 'aac', RATE)]


@pytest.mark.parametrize('suffix, codec, rate', KINDS)
def test_joined_files_are_read_to_the_end(tmp_path, suffix, codec, rate):
  """`cat a b`: all but the first file was lost."""
  first, second = sweep(3, 200, rate), sweep(2, 700, rate)
  parts = [encoded(tmp_path / f'{i}.{suffix}', x, codec, rate) for i, x in enumerate((first, second))]
  joined = tmp_path / f'joined.{suffix}'
  joined.write_bytes(b''.join(p.read_bytes() for p in parts))
  audio = read_audio(joined)
  agrees(audio[:48000], first, rate, lag=1200, least=0.9)
  agrees(audio[48000:], second, rate, lag=1200, least=0.9)  # a frame of MP3 or AAC in between is neither's
  window = read_audio(joined, 3.5, 1.0)
  assert len(window) == 16000
  agrees(window, second[rate // 2:rate * 3 // 2], rate, lag=1200, least=0.9)


@pytest.mark.parametrize('kind', [
    'AIFF', 'AU', 'CAF', 'W64', 'RF64', 'WAV cut', 'WAV of a pipe', 'WAV tagged'])
def test_joined_files_of_other_kinds(tmp_path, kind):
  """All but the first was lost, and of a WAV that was cut the next one's header was sound."""
  first, second = sweep(2, 200, 16000), sweep(1.5, 300, 16000)
  parts = []
  for x in (first, second):
    file = io.BytesIO()
    soundfile.write(file, x, 16000, format=kind.split()[0])
    parts.append(file.getvalue())
  if kind == 'WAV cut':
    parts[0] = parts[0][:-16000]
    first = first[:-8000]
  elif kind == 'WAV of a pipe':
    parts = [p[:4] + b'\xff' * 4 + p[8:40] + b'\xff' * 4 + p[44:] for p in parts]
  elif kind == 'WAV tagged':
    parts[0] = b'ID3\x03\0\0\0\0\0\x0a' + bytes(10) + parts[0]
  (tmp_path / 'ab').write_bytes(b''.join(parts))
  audio = read_audio(tmp_path / 'ab')
  np.testing.assert_allclose(audio, np.concatenate([first, second]), atol=1e-4)
  start = len(first) / 16000 + 0.25
  np.testing.assert_array_equal(read_audio(tmp_path / 'ab', start, 0.5), audio[len(first) + 4000:][:8000])


@pytest.mark.parametrize('suffix, codec, rate', [
    ('webm', 'libopus', 48000), ('mka', 'libopus', 48000), ('flv', 'aac', 16000), ('tta', 'tta', 16000),
    ('amr', 'libopencore_amrnb', 8000)])
def test_joined_files_that_ffmpeg_reads(tmp_path, suffix, codec, rate):
  """The end was lost, or the decoder's state of the first changed the second."""
  if codec not in av.codecs_available:
    pytest.skip(f'no encoder {codec} to make one with')
  path = encoded(tmp_path / f'a.{suffix}', sweep(2, rate=rate), codec, rate)
  alone = read_audio(path)
  path.write_bytes(path.read_bytes() * 2)
  np.testing.assert_allclose(read_audio(path), np.tile(alone, 2), atol=3e-3)  # resampled across the border


def test_what_is_no_sound_behind_a_wav_is_reported(tmp_path, caplog):
  soundfile.write(tmp_path / 'a.wav', sweep(1), RATE)
  whole = (tmp_path / 'a.wav').read_bytes()
  for after in (b'', b'TAG' + bytes(125), bytes(100_000)):  # a tag, and what was written ahead
    (tmp_path / 'a.wav').write_bytes(whole + after)
    assert len(read_audio(tmp_path / 'a.wav')) == 16000 and not caplog.messages
  for data, said in ((whole + b'OggS' * 2000, '8000 bytes behind the end of a WAV are left out'),
                     (whole[:-8000], '8000 bytes that a header promises are missing')):
    (tmp_path / 'a.wav').write_bytes(data)
    read_audio(tmp_path / 'a.wav')
    assert caplog.messages[-1].endswith(said)


def test_a_recorder_that_was_killed(tmp_path):
  """The length in the header is still 0: "holds no samples"."""
  soundfile.write(tmp_path / 'a.wav', sweep(2), RATE)
  data = bytearray((tmp_path / 'a.wav').read_bytes())
  data[40:44] = bytes(4)
  for riff in (0, 36):
    data[4:8] = riff.to_bytes(4, 'little')
    (tmp_path / 'b.wav').write_bytes(data)
    np.testing.assert_array_equal(read_audio(tmp_path / 'b.wav'), read_audio(tmp_path / 'a.wav'))
  with open_sound(tmp_path / 'b.wav') as file:
    assert abs(audio_reader.duration(file, 'b') - 2) < 1e-3
  (tmp_path / 'b.wav').write_bytes(data[:44])
  with pytest.raises(UserError, match='holds no samples'):
    read_audio(tmp_path / 'b.wav')


def test_a_coding_that_nobody_knows(tmp_path):
  """Found by fuzzing: a stream without a decoder has no rate; it was an AttributeError."""
  soundfile.write(tmp_path / 'a.wav', sweep(1), RATE)
  data = bytearray((tmp_path / 'a.wav').read_bytes())
  data[20:22] = b'\x34\x12'  # the tag of the coding
  (tmp_path / 'a.wav').write_bytes(data)
  with pytest.raises(UserError, match='coded in a way that is not known'):
    read_audio(tmp_path / 'a.wav', 0.1, 0.1)


def test_joined_ogg_of_other_codecs_and_rates(tmp_path):
  first, second = sweep(2, 200, 48000), sweep(2, 300, 22050)
  encoded(tmp_path / 'a.opus', first, 'libopus', 48000)
  encoded(tmp_path / 'b.ogg', second, 'libvorbis', 22050)
  (tmp_path / 'ab.ogg').write_bytes((tmp_path / 'a.opus').read_bytes() + (tmp_path / 'b.ogg').read_bytes())
  audio = read_audio(tmp_path / 'ab.ogg')
  assert len(audio) == len(read_audio(tmp_path / 'a.opus')) + 32000
  agrees(audio[:32000], first, 48000)
  agrees(audio[-32000:], second, 22050)


@pytest.mark.parametrize('index', [0, 1])
def test_vbr_mp3_is_whole(tmp_path, index):
  """Without a Xing header the end was lost; with one, 17 ms were missing every 24 s."""
  audio = sweep(30)
  audio[:RATE * 10] *= 0.001  # quiet first: the bit rate of the beginning says nothing of the rest
  audio[RATE * 10:] += np.random.default_rng(0).normal(size=len(audio) - RATE * 10) * 0.05
  quality = {'global_quality': str(4 * 118), 'flags': 'qscale'}
  path = encoded(tmp_path / 'a.mp3', audio, 'libmp3lame', options=quality, muxer={'write_xing': str(index)})
  decoded = read_audio(path)
  agrees(decoded[160000:], audio[RATE * 10:], least=0.9, lag=1200)


def test_a_wav_that_cannot_be_sought_in(tmp_path):
  audio = sweep(3, rate=8000)
  soundfile.write(tmp_path / 'a.wav', audio, 8000, 'GSM610')
  agrees(read_audio(tmp_path / 'a.wav'), audio, 8000, least=0.9)
  agrees(read_audio(tmp_path / 'a.wav', 1.0, 1.0), audio[8000:16000], 8000, least=0.9)


def test_flac_without_a_length(tmp_path):
  """As `ffmpeg -f flac - | cat` writes it: the number of samples in the header is 0."""
  soundfile.write(tmp_path / 'a.flac', sweep(4), RATE, 'PCM_16')
  data = bytearray((tmp_path / 'a.flac').read_bytes())
  data[21] &= 0xf0
  data[22:26] = bytes(4)
  (tmp_path / 'b.flac').write_bytes(data)
  np.testing.assert_allclose(read_audio(tmp_path / 'b.flac'), read_audio(tmp_path / 'a.flac'), atol=1e-6)
  with open_sound(tmp_path / 'b.flac') as file:
    assert abs(audio_reader.duration(file, 'b') - 4) < 1e-3


@pytest.mark.parametrize('suffix, codec, rate', KINDS)
def test_a_pipe_is_read_like_a_file(tmp_path, suffix, codec, rate):
  path = encoded(tmp_path / f'a.{suffix}', sweep(2, rate=rate), codec, rate)
  pipe = tmp_path / 'pipe'
  os.mkfifo(pipe)
  threading.Thread(target=lambda: pipe.write_bytes(path.read_bytes()), daemon=True).start()
  np.testing.assert_array_equal(read_audio(pipe), read_audio(path))


@pytest.mark.parametrize('suffix, codec, rate', [
    ('m4a', 'aac', RATE), ('aac', 'aac', RATE), ('webm', 'libopus', 48000), ('mp4', 'alac', RATE),
    ('amr', 'libopencore_amrnb', 8000), ('mka', 'libopus', 48000),
    ('aiff', 'pcm_s16be', RATE), ('wav', 'adpcm_ms', RATE), ('au', 'pcm_mulaw', 8000)])
def test_what_people_have(tmp_path, suffix, codec, rate):
  if codec not in av.codecs_available:
    pytest.skip(f'no encoder {codec} to make one with')
  audio = sweep(3, rate=rate)
  path = encoded(tmp_path / f'a.{suffix}', audio, codec, rate)
  agrees(read_audio(path), audio, rate, lag=1200, least=0.5)


def test_without_av_the_error_says_so(tmp_path, monkeypatch):
  path = encoded(tmp_path / 'a.m4a', sweep(1), 'aac')
  monkeypatch.setattr(audio_reader, '_av', lambda: None)
  with pytest.raises(UserError, match='(?s)package av.*pip install av'):
    read_audio(path)
  write_audio(tmp_path / 'a.wav', sweep(1))
  assert len(read_audio(tmp_path / 'a.wav')) == RATE


@pytest.mark.parametrize('rate', [1, 3999, 768001, 2 ** 31 - 1])
def test_rates_that_no_recording_has(tmp_path, rate):
  soundfile.write(tmp_path / 'a.wav', np.zeros(1000), 16000)
  data = bytearray((tmp_path / 'a.wav').read_bytes())
  data[24:28] = rate.to_bytes(4, 'little')
  (tmp_path / 'a.wav').write_bytes(data)
  with pytest.raises(UserError, match=f'sample rate {rate}; give audio of 4000 to 768000 Hz'):
    read_audio(tmp_path / 'a.wav')


@pytest.mark.parametrize('suffix', ['ogg', 'flac', 'mp3', 'wav'])
def test_what_is_missing_is_reported(tmp_path, suffix, caplog):
  """A hole in the middle: what lies behind it is read, or one line says that it ends there."""
  path = tmp_path / f'a.{suffix}'
  noise = np.random.default_rng(0).normal(size=320000) * 0.05  # takes bits: pages of less than a second
  write_audio(path, audio_lib.resample(sweep(20), RATE, 16000) + noise)
  data = bytearray(path.read_bytes())
  data[len(data) // 2:len(data) // 2 + 3000] = b'\x55' * 3000
  path.write_bytes(data)
  audio = read_audio(path)
  assert len(audio) > 16000 * 15
  assert suffix == 'wav' or any('damaged' in m or 'header says' in m for m in caplog.messages)


def test_a_name_that_ends_in_raw(tmp_path):
  soundfile.write(tmp_path / 'a.wav', sweep(1), RATE)
  os.rename(tmp_path / 'a.wav', tmp_path / 'a.raw')
  assert len(read_audio(tmp_path / 'a.raw')) == 16000
  (tmp_path / 'b.raw').write_bytes(bytes(range(256)) * 20)
  with pytest.raises(UserError, match='b.raw: not a readable audio file'):
    read_audio(tmp_path / 'b.raw')


def test_devices_and_playlists_are_refused(tmp_path):
  with pytest.raises(UserError, match='not a regular file'):
    read_audio('/dev/zero')
  with pytest.raises(UserError, match='not a regular file'):
    read_audio(tmp_path)
  soundfile.write(tmp_path / 'a.wav', sweep(1), RATE)
  playlist = '#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\na.wav\n'
  for text in (playlist, 'ffconcat version 1.0\nfile a.wav\n'):
    (tmp_path / 'list.wav').write_text(text)
    with pytest.raises(UserError, match='not a readable audio file'):
      read_audio(tmp_path / 'list.wav')


@pytest.mark.parametrize('suffix', ['wav', 'flac', 'ogg', 'opus', 'mp3'])
def test_long_sound_is_written_whole(tmp_path, suffix):
  """150 s: OGG ended in a segmentation fault. No temporary file is left."""
  n = 16000 * 150 + 123 if suffix != 'opus' else 16000 * 20 + 123
  audio = audio_lib.resample(sweep(n / 16000), RATE, 16000)[:n]
  path = tmp_path / f'a.{suffix}'
  write_audio(path, audio)
  if suffix in ('ogg', 'opus'):
    assert soundfile.info(path).frames == n
  decoded = read_audio(path)
  assert len(decoded) == n or suffix == 'mp3' and abs(len(decoded) - n) < 2304
  agrees(decoded[-40000:], audio[-40000:], 16000, lag=1200, least=0.9)
  assert os.listdir(tmp_path) == [path.name]


def test_overload_is_lowered_and_reported(tmp_path, caplog):
  """int16 values stored as float: 88 % of the output was clipped without a word."""
  audio = audio_lib.resample(sweep(1), RATE, 16000)
  write_audio(tmp_path / 'a.wav', audio * 32768)
  decoded = read_audio(tmp_path / 'a.wav')
  assert np.mean(np.abs(decoded) > 0.999) < 1e-3
  np.testing.assert_allclose(decoded / np.abs(decoded).max(), audio / np.abs(audio).max(), atol=1e-3)
  assert len(caplog.messages) == 1 and 'above full scale' in caplog.text
  write_audio(tmp_path / 'b.wav', audio * 4)  # a little too loud is clipped, as it always was
  assert len(caplog.messages) == 1


@pytest.mark.parametrize('suffix', ['wav', 'flac', 'ogg', 'opus', 'mp3'])
def test_sound_that_is_none_is_not_written(tmp_path, suffix):
  """NaN to MP3 ended the whole process."""
  path = tmp_path / f'a.{suffix}'
  for audio, said in ((np.full(10, np.nan), 'NaN'), (np.zeros(0), 'no samples'), (np.zeros((2, 9)), 'shape')
                      ):
    with pytest.raises(UserError, match=said):
      write_audio(path, audio)
  assert not os.listdir(tmp_path)


def test_dc_silence_and_one_channel_of_six(tmp_path):
  for name, audio in (('dc', np.full(8000, 0.5)), ('silence', np.zeros(8000))):
    soundfile.write(tmp_path / f'{name}.wav', audio, 16000, 'FLOAT')
    np.testing.assert_allclose(read_audio(tmp_path / f'{name}.wav'), audio)
  six = np.zeros((8000, 6))
  six[:, 2] = 0.6
  soundfile.write(tmp_path / 'six.flac', six, 16000)
  np.testing.assert_allclose(read_audio(tmp_path / 'six.flac'), 0.1, atol=1e-4)


def test_dash_means_a_pipe(tmp_path):
  """`encode in.wav -` made a file called '-'."""
  soundfile.write(tmp_path / 'a.wav', sweep(0.5), RATE)
  command = [sys.executable, '-m', 'affectcodec_jax']
  env = {**os.environ, 'PYTHONPATH': os.getcwd()}

  def run(args, data):
    return subprocess.run([*command, *args], input=data, cwd=tmp_path, env=env, check=True,
                          capture_output=True)

  tokens = run(['encode', '-', '-', '--kbps', '1.5'], (tmp_path / 'a.wav').read_bytes())
  assert tokens.stdout[:4] == b'AFCT' and b'standard output: 0.50 s' in tokens.stderr
  sound = run(['decode', '-', '-'], tokens.stdout).stdout
  decoded, rate = soundfile.read(io.BytesIO(sound))
  assert rate == 16000 and len(decoded) == 8000
  cut = run(['truncate', '-', '-', '--stages', '1'], tokens.stdout).stdout
  assert cut[:4] == b'AFCT' and len(cut) < len(tokens.stdout)
  assert run(['info', '-'], cut).stdout.startswith(f'tokens      standard input, {len(cut)} bytes'.encode())
  assert os.listdir(tmp_path) == ['a.wav']
