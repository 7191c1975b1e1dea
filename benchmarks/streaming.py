"""Streams: latency of each configuration, and the time that the packaged codec's take at 1.5 kbps.

Seconds are those of encoding or decoding 10 s that come in pieces of 20 ms.
"""

import numpy as np

from affectcodec_jax.common.constants import HOP_LENGTH
from affectcodec_jax.emotion.teachers import emotion_context
from affectcodec_jax.inference.streaming import CHUNK
from affectcodec_jax.models.context import decoder_context, encoder_context
from benchmarks.measure import in_turn, rows
from configs import base, lite, paper

SECONDS = 10
CHUNKS = (5, CHUNK, 25)  # frames


def run(threads, rounds):
  """Rows of latency, then of speed."""
  del threads
  for name, module in (('lite', lite), ('base', base), ('paper', paper)):
    config = module.get_config()
    acoustic, emotion = encoder_context(config.model), emotion_context(config, {'teacher': {}})
    decoder = decoder_context(config.model)
    ahead = max(acoustic, emotion)
    yield {'operation': f'latency of configs/{name}.py', 'chunk_frames': CHUNK, 'acoustic_frames': acoustic,
           'emotion_frames': emotion, 'decoder_frames': decoder, 'encoder_ms': 20 * (CHUNK + ahead),
           'decoder_ms': 20 * (CHUNK + decoder - 1), 'sum_ms': 20 * (2 * CHUNK + ahead + decoder - 1)}

  from affectcodec_jax import load
  from affectcodec_jax.data.synthetic import SyntheticSource
  codec = load('pretrained')
  audio = np.resize(SyntheticSource(1, seconds=float(SECONDS))[0]['audio'], SECONDS * 16000)
  codes = codec.encode(audio, 16000, 1.5).codes
  calls = {}
  for chunk in CHUNKS:
    calls[f'encode, chunk of {chunk}'] = _stream(codec.stream_encoder(1.5, chunk), audio, HOP_LENGTH)
    calls[f'decode, chunk of {chunk}'] = _stream(codec.stream_decoder(1.5, chunk), codes, 1)
  yield from rows('stream', in_turn(calls, rounds), audio_seconds=SECONDS)


def _stream(coder, values, size):
  def call():
    for at in range(0, len(values), size):
      coder.push(values[at:at + size])
    coder.flush()
  return call
