"""Streams: as the whole at once, with the latency they state; lost frames do no harm elsewhere."""

import functools
import io
import os
import types

import jax
import numpy as np
import pytest

from affectcodec_jax import __main__ as cli
from affectcodec_jax import api
from affectcodec_jax.common.errors import UserError
from affectcodec_jax.inference import streaming
from tests.test_inference import networks, sound


@functools.lru_cache
def make_codec(backbone='lite'):
  config, params, frozen = networks(backbone)
  config.model.num_stages, config.rates = 3, (1, 2, 3)
  return api.Pretrained(config, params, jax.device_get(frozen), 0)


def in_pieces(push, flush, values, seed=0, most=3000):
  """What a stream makes of values pushed in pieces of random sizes, some of them empty."""
  ends = np.cumsum(np.random.default_rng(seed).integers(0, most, 2 * len(values) // most + 20))
  assert ends[-1] >= len(values)
  return np.concatenate([*(push(piece) for piece in np.split(values, ends)), flush()])


@pytest.mark.parametrize('backbone', ['dac', 'lite'])
def test_streams_are_as_the_whole(backbone):
  """Every token with the recording's embedding given, and audio within float32's rounding.

  As of recordings in pieces (tests/test_inference.py): 1e-4; tokens may differ on rounding boundaries only.
  """
  codec, audio = make_codec(backbone), sound(1.31)
  tokens = codec.encode(audio, 16000, kbps=1.5)
  encoder = codec.stream_encoder(1.5, 13, gain_db=tokens.gain_db,
                                 utterance=codec.utterance_embedding(audio, 16000))
  decoder = codec.stream_decoder(1.5, 13, gain_db=tokens.gain_db)
  expected = codec.decode(tokens)
  for seed in range(2):  # a second stream through the same object, in other pieces
    codes = in_pieces(encoder.push, encoder.flush, audio, seed)
    np.testing.assert_array_equal(codes, tokens.codes)
    decoded = in_pieces(decoder.push, decoder.flush, codes, seed, most=20)
    assert decoded.shape == (66 * 320,)  # 65.5 frames went in
    np.testing.assert_allclose(decoded[:len(audio)], expected, atol=1e-4)


def test_running_embedding_becomes_that_of_the_recording():
  """By then all frames are pooled; before, others: the tokens are not all the same."""
  codec, audio = make_codec(), sound(1.31)
  tokens = codec.encode(audio, 16000)
  encoder = codec.stream_encoder(chunk_frames=13, gain_db=tokens.gain_db)
  codes = in_pieces(encoder.push, encoder.flush, audio)
  np.testing.assert_allclose(encoder.embedding, codec.utterance_embedding(audio, 16000), atol=1e-5)
  assert codes.shape == tokens.codes.shape and 0 < np.mean(codes != tokens.codes) < 0.5


def test_fewer_lookahead_frames_are_as_a_recording_that_ends_there():
  codec, chunk, lookahead = make_codec(), 7, 3
  audio = sound(1.0)[:(chunk + lookahead) * 320]
  tokens = codec.encode(audio, 16000)
  encoder = codec.stream_encoder(chunk_frames=chunk, lookahead=lookahead, gain_db=tokens.gain_db,
                                 utterance=codec.utterance_embedding(audio, 16000))
  decoder = codec.stream_decoder(chunk_frames=chunk, lookahead=lookahead)
  assert len(encoder.push(audio[:-1])) == 0
  np.testing.assert_array_equal(encoder.push(audio[-1:]), tokens.codes[:chunk])
  assert len(decoder.push(tokens.codes[:-1])) == 0
  np.testing.assert_allclose(decoder.push(tokens.codes[-1:]), codec.decode(tokens.codes)[:chunk * 320],
                             atol=1e-4)


@pytest.mark.parametrize('chunk, lookahead', [(7, None), (7, 3)])
def test_latency_is_what_is_stated(chunk, lookahead):
  """The longest wait of a sample, to the sample, for codes and for audio; never more for both together."""
  codec = make_codec()
  encoder = codec.stream_encoder(chunk_frames=chunk, lookahead=lookahead)
  decoder = codec.stream_decoder(chunk_frames=chunk, lookahead=lookahead)
  context = codec._inference.emotion_context
  assert encoder.latency_samples == (chunk + (context if lookahead is None else lookahead)) * 320
  assert encoder.latency == encoder.latency_samples / 16000
  audio, frames, samples, waits, both = sound(1.9), 0, 0, [], []
  for end in range(160, len(audio) + 1, 160):
    codes = encoder.push(audio[end - 160:end])
    if len(codes):
      waits.append(end - frames * 320)
      frames += len(codes)
      out = len(decoder.push(codes))
      both.append(end - samples if out else 0)
      samples += out
  assert max(waits) == encoder.latency_samples
  assert 0 < max(both) <= encoder.latency_samples + decoder.latency_samples
  decoder.flush()
  waits, samples = [], 0
  for frame in range(60):
    out = len(decoder.push(np.zeros((1, 3), np.int32)))
    waits.append(frame * 320 - samples if out else 0)
    samples += out
  assert max(waits) == decoder.latency_samples


@functools.lru_cache
def some_codes(frames=120):
  return np.random.default_rng(0).integers(0, 2 ** 15, (frames, 3)).astype(np.int32)


def decode_with_loss(decoder, lost):
  pieces = [decoder.push_lost() if missing else decoder.push(code[None])
          for code, missing in zip(some_codes(), lost)]
  return np.concatenate([*pieces, decoder.flush()])


@pytest.mark.parametrize('backbone', ['dac', 'lite'])
def test_lost_frames_change_what_they_reach_and_no_more(backbone):
  """Bit for bit beyond the decoder's context; a frame out of range is a lost one, in any piece.

  The lite decoder's source goes on with another phase after a loss: there its pitch is compared.
  """
  codec = make_codec(backbone)
  sources = []
  synthesise = codec._inference.synthesise
  codec._inference.synthesise = lambda params, latent, source: (
      sources.append(source) or synthesise(params, latent, source))
  decoder, lost = codec.stream_decoder(chunk_frames=7), np.zeros(120, bool)
  sources.clear()
  whole = decode_with_loss(decoder, lost).reshape(120, 320)
  expected = list(sources)
  sources.clear()
  lost[[40, 41, 80]] = True
  concealed = decode_with_loss(decoder, lost).reshape(120, 320)
  concealing = list(sources)
  codec._inference.synthesise = synthesise
  distance = np.abs(np.arange(120)[:, None] - np.flatnonzero(lost)).min(axis=1)
  reach = distance <= codec._inference.decoder_context
  assert 20 < reach.sum() < 100
  if backbone == 'lite':
    around = codec._inference.decoder_context
    pitch = lambda chunks: np.concatenate([c.increments[0, around:around + 7] for c in chunks])[:120]
    np.testing.assert_array_equal(pitch(concealing)[~reach], pitch(expected)[~reach])
    assert [c.position for c in concealing] == [c.position for c in expected]
    reach[40 - around:] = True
  np.testing.assert_array_equal(concealed[~reach], whole[~reach])
  changed = np.abs(concealed - whole).max(axis=1)
  assert (changed[lost] > 1e-3).all()
  assert (np.std(concealed[lost], axis=1) > 0.2 * np.std(whole[lost], axis=1)).all()  # no holes
  corrupt = some_codes().copy()
  corrupt[[40, 41], 1], corrupt[80, 2] = -1, 2 ** 15
  corrupt = np.concatenate([decoder.push(corrupt), decoder.flush()])
  np.testing.assert_array_equal(corrupt, concealed.ravel())


def test_long_losses_fade_to_silence():
  decoder = make_codec().stream_decoder(chunk_frames=7)
  np.testing.assert_array_equal(decode_with_loss(decoder, np.ones(120, bool)), np.zeros(120 * 320))
  gap = decode_with_loss(decoder, (np.arange(120) >= 30) & (np.arange(120) < 70)).reshape(120, 320)
  level = np.std(gap, axis=1)
  assert (level[38:62] == 0).all() and (level[:34] > 0).all() and (level[66:] > 0).all()
  late = decode_with_loss(decoder, np.arange(120) < 60).reshape(120, 320)  # it begins with a loss
  assert np.isfinite(late).all() and (late[:50] == 0).all() and (np.std(late[60:], axis=1) > 0).all()


def test_bridges():
  lost = np.array([1, 0, 0, 1, 1, 1, 0, 1, 1], bool)
  before, after, weight, distance = streaming.bridge(lost)
  np.testing.assert_array_equal(before, [1, 1, 2, 2, 2, 2, 6, 6, 6])
  np.testing.assert_array_equal(after, [1, 1, 2, 6, 6, 6, 6, 6, 6])
  np.testing.assert_array_equal(weight[3:6], np.float32([0.25, 0.5, 0.75]))
  np.testing.assert_array_equal(distance, [1, 0, 0, 1, 2, 1, 0, 1, 2])


def test_mistakes_are_reported():
  codec = make_codec()
  for make, message in ((lambda: codec.stream_encoder(2), 'not a rate'),
                        (lambda: codec.stream_encoder(chunk_frames=0), 'has 1 to 1000'),
                        (lambda: codec.stream_encoder(chunk_frames=10 ** 12), 'has 1 to 1000'),
                        (lambda: codec.stream_encoder(lookahead=2.5), 'has 1 to 1000'),
                        (lambda: codec.stream_encoder(lookahead=0.0), 'has 1 to 1000'),
                        (lambda: codec.stream_encoder(lookahead=''), 'has 1 to 1000'),
                        (lambda: codec.stream_decoder(lookahead=-1), 'not negative'),
                        (lambda: codec.stream_decoder(gain_db=float('nan')), 'within 100 dB'),
                        (lambda: codec.stream_encoder(utterance=np.zeros(3)),
                         r'\[16\] of finite float, got float64 \[3\]')):
    with pytest.raises(UserError, match=message):
      make()
  deaf = types.SimpleNamespace(emotion_context=None)
  with pytest.raises(UserError, match='cannot encode a stream'):
    streaming.StreamEncoder(deaf, None, None, 2, 10, None, 0.0, None)
  with pytest.raises(UserError, match=r'\[1, 2\] would be a single sample of 2 channels'):
    codec.stream_encoder().push(np.zeros((1, 2), np.float32))
  decoder = codec.stream_decoder(chunk_frames=7)
  for codes in (np.zeros((4, 2), int), np.zeros((4, 3)), np.zeros(3, int)):
    with pytest.raises(UserError, match='give stream_decoder the kbps'):
      decoder.push(codes)
  encoder = codec.stream_encoder(chunk_frames=7)
  with pytest.raises(UserError, match='NaN'):
    encoder.push(np.full(5, np.nan))


class Pipe(io.BytesIO):
  """What a pipe gives: so many bytes at a time, not as many as are asked for."""

  def read1(self, size=-1):
    return super().read1(997)


def stream(monkeypatch, data, *args, sink=None):
  """Status of the command, its output, and how much of it was written before the input's end."""
  sink, seen = sink or io.BytesIO(), []
  source = Pipe(data)
  read1 = source.read1
  source.read1 = lambda size: (seen.append(sink.tell() if sink.seekable() else 0), read1(size))[1]
  monkeypatch.setattr(api, 'load', lambda path: make_codec())
  monkeypatch.setattr('sys.stdin', types.SimpleNamespace(buffer=source))
  monkeypatch.setattr('sys.stdout', types.SimpleNamespace(buffer=sink, flush=lambda: None))
  status = cli.main(['stream', '--kbps', '1.5', '--chunk', '13', '--lookahead', '3', *args])
  return status, sink, seen


def test_pcm_through_a_pipe(monkeypatch, capsys):
  """As by the library, as it comes, to half a step of 16 bits; an odd byte at the end is reported."""
  codec, audio = make_codec(), sound(1.31)
  pcm = np.round(audio * 32768).astype('<i2')
  status, sink, seen = stream(monkeypatch, pcm.tobytes() + b'x')
  assert status == 0 and seen[-1] > len(pcm)  # more than half of the bytes
  err = capsys.readouterr().err
  assert 'ms algorithmic latency' in err and 'odd byte' in err
  encoder, decoder = codec.stream_encoder(1.5, 13, 3), codec.stream_decoder(1.5, 13, 3)
  parts = [decoder.push(encoder.push(pcm)), decoder.push(encoder.flush()), decoder.flush()]
  expected = np.clip(np.concatenate(parts)[:len(pcm)], -1, 32767 / 32768)
  out = np.frombuffer(sink.getvalue(), '<i2')
  np.testing.assert_allclose(out / 32768, expected, atol=0.51 / 32768)
  (_, lossy, _), (_, again, _) = (stream(monkeypatch, pcm.tobytes(), '--loss', '0.1') for _ in range(2))
  assert lossy.getvalue() == again.getvalue() != sink.getvalue() and len(lossy.getvalue()) == 2 * len(pcm)


def test_pipes_that_are_empty_or_broken(monkeypatch, capsys):
  for data, args, message in ((b'', (), 'no samples came in'), (b'x', (), 'no samples came in'),
                              (b'', ('--loss', '2'), 'share of the frames'),
                              (b'', ('--seed', '-1'), 'not be negative')):
    assert stream(monkeypatch, data, *args)[0] == 2
    assert message in capsys.readouterr().err
  reader, writer = os.pipe()
  os.close(reader)
  with os.fdopen(writer, 'wb') as sink:
    assert stream(monkeypatch, bytes(40000), sink=sink)[0] == 0
  assert 'error' not in capsys.readouterr().err
