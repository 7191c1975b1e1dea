"""Synthetic emotional speech: a small formant synthesiser, for tests, smoke runs and tutorials.

Source and filter: a glottal pulse train and breath noise excite a vocal tract of seven formants
that move between phonemes; fricatives and stop bursts add shaped noise. What differs between
emotions is what differs in people: the mean and range of F0, loudness, tempo and voice quality.
The words are nonsense; the acoustics are close enough to speech to train and debug a codec on.
"""

import numpy as np
from scipy import fft, signal

from affectcodec_jax.common.constants import SAMPLE_RATE
from affectcodec_jax.common.labels import EMOTIONS

FRAME = 80  # samples between values of a control track: 5 ms
SPEAKERS = 48  # in each split
_SPLITS = ('train', 'valid', 'test')
_OVERSAMPLE = 2  # the closing glottis is a step: drawn at twice the rate, its aliases are inaudible

# Emotion: F0 shift (semitones), F0 range (ratio), level (dB), tempo (ratio), brightness (ratio of
# the cut-off of the glottal tilt), breath (ratio), open quotient, jitter (ratio), final F0 rise
# (semitones).
_STYLES = {
    'neutral': (0.0, 1.0, 0.0, 1.00, 1.0, 1.0, 0.60, 1.0, -2.0),
    'calm': (-1.0, 0.7, -3.0, 0.85, 0.7, 1.6, 0.68, 0.8, -2.0),
    'happy': (4.0, 1.7, 3.0, 1.10, 1.4, 0.8, 0.55, 1.0, 1.0),
    'sad': (-2.0, 0.5, -6.0, 0.75, 0.5, 2.2, 0.72, 1.3, -3.0),
    'angry': (3.5, 1.5, 6.0, 1.15, 2.0, 0.5, 0.45, 1.8, -3.0),
    'fearful': (6.0, 1.1, 0.0, 1.30, 0.9, 1.8, 0.65, 3.0, 1.0),
    'disgusted': (-1.5, 0.9, -1.0, 0.80, 0.8, 1.0, 0.50, 2.5, -4.0),
    'surprised': (6.0, 2.2, 2.0, 1.05, 1.3, 1.0, 0.58, 1.0, 6.0),
}

# Formants in Hz of an adult male (Peterson and Barney, 1952).
_VOWELS = (
    (270, 2290, 3010), (390, 1990, 2550), (530, 1840, 2480), (660, 1720, 2410), (730, 1090, 2440),
    (570, 840, 2410), (440, 1020, 2240), (300, 870, 2240), (640, 1190, 2390), (490, 1350, 1690),
)
# Consonant: formant loci, voicing, breath, frication (gains), frication peak (Hz), seconds.
_FRICATIVES = (
    ((320, 1400, 2500), 0.0, 0.0, 0.50, 6300, 0.11),  # s
    ((300, 1800, 2400), 0.0, 0.0, 0.55, 3300, 0.11),  # sh
    ((340, 1100, 2200), 0.0, 0.0, 0.18, 5000, 0.09),  # f
    ((280, 1400, 2500), 0.3, 0.0, 0.30, 6000, 0.08),  # z
    ((300, 1100, 2200), 0.4, 0.0, 0.10, 5000, 0.07),  # v
    ((500, 1400, 2500), 0.0, 1.5, 0.00, 5000, 0.06),  # h
)
_STOPS = (
    ((250, 900, 2200), 0.0, 0.35, 1200),  # p
    ((250, 1800, 2700), 0.0, 0.60, 4200),  # t
    ((250, 1600, 2000), 0.0, 0.55, 2000),  # k
    ((250, 900, 2200), 0.12, 0.25, 1000),  # b
    ((250, 1800, 2700), 0.12, 0.40, 3800),  # d
    ((250, 1600, 2000), 0.12, 0.40, 1900),  # g
)
_SONORANTS = (
    ((260, 1100, 2300), 0.35, 0.07),  # m
    ((270, 1600, 2500), 0.35, 0.06),  # n
    ((360, 1200, 2700), 0.60, 0.06),  # l
    ((400, 1200, 1700), 0.60, 0.06),  # r
    ((290, 2200, 2900), 0.60, 0.05),  # j
    ((300, 700, 2200), 0.60, 0.06),  # w
)
_UPPER = (3500.0, 4500.0, 5500.0, 6500.0)  # F4 to F7, which hardly move


class SyntheticSource:
  """Random-access source of synthetic utterances, a function of (`seed`, `split`, index) alone.

  Clip i holds emotion `i % len(EMOTIONS)` and one of `SPEAKERS` voices; no voice and no clip is
  shared between the splits 'train', 'valid' and 'test'.
  """

  def __init__(self, num_clips, seed=0, seconds=2.0, split='train'):
    self.num_clips = num_clips
    self.seed = seed
    self.seconds = seconds
    self.split = split
    self._split_id = _SPLITS.index(split)

  def __len__(self):
    return self.num_clips

  def __getitem__(self, i):
    """Item i: dict of `audio` (float32 `[samples]` at 16 kHz), `emotion`, `speaker`, `name`."""
    rng, emotion, speaker = self._draw(i)
    tracks = _plan(rng, EMOTIONS[emotion], self._voice(speaker), self.seconds)
    return {
        'audio': _render(rng, tracks, round(self.seconds * SAMPLE_RATE)),
        'emotion': emotion,
        'speaker': f'synthetic_{self.split}_{speaker:02d}',
        'name': f'synthetic_{self.split}_{i:06d}',
    }

  def pitch(self, i):
    """F0 in Hz that clip i was given, one value each 5 ms, float64 `[frames]`; 0 where unvoiced."""
    rng, emotion, speaker = self._draw(i)
    tracks = _plan(rng, EMOTIONS[emotion], self._voice(speaker), self.seconds)
    return np.where(tracks['voicing'] > 0.3, tracks['f0'], 0.0)

  def _draw(self, i):
    if not 0 <= i < self.num_clips:
      raise IndexError(i)
    rng = _generator(self.seed, self._split_id, 0, i)
    return rng, i % len(EMOTIONS), int(rng.integers(SPEAKERS))

  def _voice(self, speaker):
    rng = _generator(self.seed, self._split_id, 1, speaker)
    woman = speaker % 2
    return {
        'f0': rng.uniform(165, 230) if woman else rng.uniform(90, 140),
        'tract': rng.uniform(1.10, 1.25) if woman else rng.uniform(0.92, 1.06),
        'brightness': rng.uniform(0.8, 1.3),
        'breath': rng.uniform(0.6, 1.5) * (1.4 if woman else 1.0),
        'jitter': rng.uniform(0.004, 0.010),
        'level': rng.uniform(-2, 2),
        'tempo': rng.uniform(0.9, 1.15),
    }


def _generator(*key):
  return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))


def _phonemes(rng, seconds, tempo):
  """Yields (formants, voicing, breath, frication, peak Hz, seconds, accent) until time is up."""
  pause = (500, 1500, 2500)
  time = rng.uniform(0.05, 0.15)
  yield pause, 0.0, 0.0, 0.0, 4000, time, 0.0
  while time < seconds:
    for syllable in range(rng.integers(1, 4)):
      stressed = float(syllable == 0)
      kind = rng.choice(4, p=(0.28, 0.32, 0.30, 0.10))
      onset = []
      if kind == 0:
        onset.append(_FRICATIVES[rng.integers(len(_FRICATIVES))])
      elif kind == 1:
        locus, bar, burst, peak = _STOPS[rng.integers(len(_STOPS))]
        onset.append((locus, bar, 0.0, 0.0, peak, 0.05))
        onset.append((locus, 0.0, 0.0, burst, peak, 0.012))
        if bar == 0:  # aspirated
          onset.append((locus, 0.0, 1.8, 0.05, peak, 0.03))
      elif kind == 2:
        locus, voicing, length = _SONORANTS[rng.integers(len(_SONORANTS))]
        onset.append((locus, voicing, 0.1, 0.0, 4000, length))
      vowel = _VOWELS[rng.integers(len(_VOWELS))]
      nucleus = (vowel, 1.0, 1.0, 0.0, 4000, rng.uniform(0.07, 0.12) + 0.05 * stressed)
      coda = []
      if rng.random() < 0.25:
        locus, voicing, length = _SONORANTS[rng.integers(3)]
        coda.append((locus, voicing, 0.1, 0.0, 4000, length))
      for segment in (*onset, nucleus, *coda):
        length = segment[5] * rng.uniform(0.85, 1.15)
        if length > 0.02:  # bursts do not stretch
          length /= tempo
        time += length
        yield (*segment[:5], length, stressed if segment is nucleus else 0.0)
    if rng.random() < 0.18:
      length = rng.uniform(0.08, 0.25) / tempo
      time += length
      yield pause, 0.0, 0.0, 0.0, 4000, length, 0.0


def _smooth(track, width):
  """Gaussian smoothing over time of `[frames]` or `[frames, tracks]`; `width` in frames."""
  reach = int(3 * width) + 1
  kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / width) ** 2)
  kernel /= kernel.sum()
  kernel = kernel.reshape(-1, *[1] * (track.ndim - 1))
  padded = np.pad(track, [(reach, reach)] + [(0, 0)] * (track.ndim - 1), mode='edge')
  return signal.fftconvolve(padded, kernel, mode='valid', axes=0)


def _plan(rng, emotion, voice, seconds):
  """Control tracks of one utterance, a dict of `[frames]` arrays and scalars; a frame is 5 ms."""
  shift, span, level, tempo, brightness, breath, open_quotient, jitter, rise = _STYLES[emotion]
  frames = round(seconds * SAMPLE_RATE) // FRAME + 1
  rows = list(_phonemes(rng, seconds, tempo * voice['tempo']))
  ends = np.cumsum([row[5] for row in rows])
  at = np.arange(frames) * FRAME / SAMPLE_RATE
  which = np.minimum(np.searchsorted(ends, at, side='right'), len(rows) - 1)
  formants = np.array([row[0] for row in rows], float)[which]  # [frames, 3]
  formants = np.concatenate([formants, np.tile(_UPPER, (frames, 1))], axis=1)
  gains = np.array([row[1:5] for row in rows], float)[which]  # [frames, 4]
  accents = np.array([row[6] * rng.uniform(0.5, 1.5) for row in rows])[which]

  # Intonation in semitones: a falling line, a bump on each stressed vowel, an end of its own.
  position = at / seconds
  melody = 1.5 - 3.0 * position + 4.0 * _smooth(accents, 12) - 1.0
  ending = np.clip((position - 0.75) / 0.25, 0, 1)
  wander = _smooth(rng.normal(size=frames), 10)
  semitones = shift + span * melody + rise * ending + wander
  if emotion == 'fearful':  # a trembling voice
    semitones = semitones + 0.6 * np.sin(2 * np.pi * (6.0 * at + rng.random()))
  fade = np.clip(np.minimum(at, seconds - at) / 0.03, 0, 1)
  return {
      'f0': np.clip(voice['f0'] * 2 ** (semitones / 12), 55, 600),
      'formants': np.minimum(_smooth(formants, 3.5) * voice['tract'], 7800.0),
      'voicing': np.clip(_smooth(gains[:, 0], 1.5), 0, None) * fade,
      'breath': np.clip(_smooth(gains[:, 1], 1.2), 0, None) * fade * breath * voice['breath'],
      'frication': np.clip(_smooth(gains[:, 2], 0.7), 0, None) * fade,
      'peak': _smooth(gains[:, 3], 1.0),
      'tilt': 4000.0 * brightness * voice['brightness'],  # Hz
      'open_quotient': open_quotient,
      'jitter': jitter * voice['jitter'],
      'level': -25.0 + level + voice['level'],  # dBFS while voiced
  }


def _glottal_flow(rng, tracks, samples):
  """Derivative of the glottal flow, `[samples]`, and its phase in cycles, `[samples]`."""
  count = samples * _OVERSAMPLE
  at = np.arange(count) / (FRAME * _OVERSAMPLE)  # frames
  f0 = np.interp(at, np.arange(len(tracks['f0'])), tracks['f0'])
  phase = rng.random() + np.cumsum(f0) / (SAMPLE_RATE * _OVERSAMPLE)
  cycles = int(phase[-1]) + 2
  # Jitter moves the ends of the cycles, shimmer their heights.
  moves = tracks['jitter'] * rng.normal(size=cycles)
  phase = phase + np.interp(phase, np.arange(cycles), moves)
  cycle = np.clip(phase.astype(int), 0, cycles - 1)
  shimmer = np.exp(4 * tracks['jitter'] * rng.normal(size=cycles))[cycle]
  x = phase - np.floor(phase)
  # Klatt's pulse: the flow t^2 - t^3 while open, then a return that decays instead of a cliff.
  opened = x / tracks['open_quotient']
  closing = -np.exp(-60 * (x - tracks['open_quotient']))
  pulse = np.where(opened < 1, 2 * opened - 3 * opened**2, closing)
  pulse = signal.resample_poly(shimmer * pulse, 1, _OVERSAMPLE)
  pole = np.exp(-2 * np.pi * tracks['tilt'] / SAMPLE_RATE)
  return signal.lfilter([1 - pole], [1, -pole], pulse), phase[::_OVERSAMPLE]


def _resonances(frequencies, bandwidths):
  """Denominators `[frames, 2 * n + 1]` of n resonators in cascade, from Hz `[frames, n]`."""
  radius = np.exp(-np.pi * bandwidths / SAMPLE_RATE)
  middle = -2 * radius * np.cos(2 * np.pi * frequencies / SAMPLE_RATE)
  poly = np.ones((len(frequencies), 1))
  for k in range(frequencies.shape[1]):
    wider = np.pad(poly, ((0, 0), (0, 2)))
    wider[:, 1:-1] += middle[:, k, None] * poly
    wider[:, 2:] += radius[:, k, None] ** 2 * poly
    poly = wider
  return poly


def _filter(excitation, denominators, gains, size=1024):
  """Filters `[samples]` by one all-pole filter per 10 ms hop, cross-faded by 20 ms Hann windows."""
  hop = 2 * FRAME
  hops = len(denominators)
  padded = np.pad(excitation, (hop, hop * (hops + 1) - len(excitation)))
  frames = np.lib.stride_tricks.sliding_window_view(padded.astype(np.float32), 2 * hop)[::hop]
  window = np.hanning(2 * hop + 1)[:-1].astype(np.float32)
  spectrum = fft.rfft(frames[:hops] * window, size)
  spectrum *= gains[:, None].astype(np.float32)
  spectrum /= fft.rfft(denominators.astype(np.float32), size)
  out = fft.irfft(spectrum, size)  # [hops, size]
  total = np.zeros((hops + size // hop + 1) * hop)
  for part in range(0, size, hop):  # overlap-add, one hop-wide column at a time
    column = out[:, part : part + hop]
    block = np.zeros((hops, hop))
    block[:, : column.shape[1]] = column
    total[part : part + hops * hop] += block.ravel()
  return total[hop : hop + len(excitation)]


def _render(rng, tracks, samples):
  """The utterance of control tracks: float32 `[samples]`, peak below 1."""
  at = np.arange(samples) / FRAME
  grid = np.arange(len(tracks['f0']))
  voicing, breath, frication = (
      np.interp(at, grid, tracks[k]) for k in ('voicing', 'breath', 'frication')
  )
  pulses, phase = _glottal_flow(rng, tracks, samples)
  # Breath is loudest while the glottis is open.
  gate = np.where(voicing > 0.3, 0.5 - 0.5 * np.cos(2 * np.pi * phase), 1.0)
  noise = rng.normal(size=samples)
  source = voicing * pulses + 0.03 * breath * gate * noise

  formants = tracks['formants'][::2]  # [hops, 7]
  bandwidths = 50.0 + 0.03 * formants + 0.000012 * formants**2
  tract = _resonances(formants, bandwidths)
  voice = _filter(source, tract, tract.sum(axis=1))  # unit gain at 0 Hz, as a real tract

  peak = np.clip(tracks['peak'][::2, None] * np.array([1.0, 1.25]), 300, 7600)
  shape = _resonances(peak, 0.25 * peak)
  hiss = _filter(frication * rng.normal(size=samples), shape, 0.25 * peak[:, 0] / SAMPLE_RATE, size=512)
  voiced = voicing > 0.5
  level = np.sqrt(np.mean(voice[voiced] ** 2)) if voiced.any() else 0.1
  audio = voice / max(level, 1e-6) + hiss
  audio = audio * 10 ** (tracks['level'] / 20) + 10 ** (rng.uniform(-75, -62) / 20) * noise
  return (audio * min(1.0, 0.95 / np.abs(audio).max())).astype(np.float32)
