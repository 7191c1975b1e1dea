"""What the entropy coder of token files saves: the sizes of whole files made of the codes of many files.

Beside it stands what tables fixed beforehand would take in the same contexts: the counts of half the
speakers code the other half, as -log2 p, and the other way round.
"""

import time

import numpy as np

from affectcodec_jax.common.constants import FRAME_RATE, HOP_LENGTH
from affectcodec_jax.evaluation.statistics import Speakers
from affectcodec_jax.tokens import entropy
from affectcodec_jax.tokens.afc import CODED_HEADER_BYTES, Tokens, pack, packed_size, unpack


def coding(clips, digit_bits, rates):
  """Bits a second of the files, coded and not: means over files, 95 % intervals over speakers.

  Args:
    clips: list of `analysis.codes.Clip`.
    digit_bits: bits of each digit of a code (`models.codec.digit_bits`).
    rates: numbers of stages.

  Returns:
    {'speakers', 'encode_speed', 'decode_speed': seconds of speech a second, at all stages; 'rates': a list
    of {'stages', 'nominal', 'coded', 'saved_percent', 'static': without header; 'packed_file',
    'coded_file': with it}}.
  """
  frames = np.array([len(c.codes) for c in clips])
  seconds = frames / FRAME_RATE
  speakers = Speakers([{'corpus': c.corpus, 'speaker': c.speaker, 'file': c.name} for c in clips])
  fixed = static_bits(clips, digit_bits)
  tokens = [Tokens(c.codes, len(c.codes) * HOP_LENGTH, 0.0, bytes(8), sum(digit_bits),
                   digit_bits=digit_bits) for c in clips]
  start = time.perf_counter()
  files = [pack(t) for t in tokens]
  packed = time.perf_counter()
  for file in files:
    unpack(file)
  unpacked = time.perf_counter()
  results = []
  for m in rates:
    size = 8 * np.array([len(pack(t.truncate(m))) for t in tokens])  # bits
    coded = (size - 8 * CODED_HEADER_BYTES) / seconds
    nominal = m * sum(digit_bits) * FRAME_RATE
    results.append({
        'stages': m, 'nominal': nominal, 'coded': speakers.ratio(coded),
        'saved_percent': speakers.ratio(100 * (1 - coded / nominal)),
        'packed_file': speakers.ratio([8 * packed_size(t.truncate(m)) for t in tokens] / seconds),
        'coded_file': speakers.ratio(size / seconds),
        'static': speakers.ratio(fixed[:, :m].sum(axis=1) / seconds)})
  return {'speakers': speakers.count, 'encode_speed': seconds.sum() / (packed - start),
          'decode_speed': seconds.sum() / (unpacked - packed), 'rates': results}


def static_bits(clips, digit_bits):
  """-log2 p of each stage of each file, `[files, K]`; p counted over half of the speakers, not its own."""
  names = sorted({c.speaker for c in clips})
  half = np.array([names.index(c.speaker) % 2 for c in clips])
  bits = np.zeros((len(clips), clips[0].codes.shape[1]))
  for k in range(bits.shape[1]):
    made = [entropy.decisions(c.codes[:, k], digit_bits) for c in clips]
    places = [2 * contexts + bit for contexts, bit in made]
    for fold in (0, 1):
      counts = np.ones(2 * entropy.num_contexts(digit_bits))
      for i in np.flatnonzero(half != fold):
        counts += np.bincount(places[i], minlength=len(counts))
      counts = counts.reshape(-1, 2)  # [contexts, bit]
      cost = -np.log2(counts / counts.sum(axis=1, keepdims=True)).ravel()
      for i in np.flatnonzero(half == fold):
        bits[i, k] = cost[places[i]].sum()
  return bits
