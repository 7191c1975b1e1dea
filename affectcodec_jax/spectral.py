"""Short-time Fourier transform, its inverse, and mel spectrograms.

TPUs have matrix units and no FFT to speak of: there a windowed DFT is a matmul. Elsewhere the FFT is
used: on a CPU core the largest window's transform and gradient take a twentieth of the matmul's time.
Precision is float32 always: an accelerator's default bfloat16 pass would put errors of a per cent
into every bin. Matrices are made in the program, by cosines and comparisons: as constants they would be
nearly all of its text.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from affectcodec_jax.common.constants import SAMPLE_RATE
from affectcodec_jax.common.platforms import by_platform


def frame(audio, window, hop):
  """Cuts `[..., samples]` into `[..., frames, window]`, by blocks of `hop`, never by gathering.

  `window` must be a multiple of `hop`; a last partial hop is dropped.
  """
  blocks = window // hop
  count = audio.shape[-1] // hop
  x = audio[..., :count * hop].reshape(*audio.shape[:-1], count, hop)  # [..., hops, hop]
  frames = count - blocks + 1
  return jnp.concatenate([x[..., i:i + frames, :] for i in range(blocks)], axis=-1)


def _hann(window):
  return 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)


def _dft(window):
  """Hann-windowed DFT matrix, cosines then sines: `[window, 2 * (window // 2 + 1)]`."""
  angle = _angles(window)
  matrix = jnp.concatenate([jnp.cos(angle), -jnp.sin(angle)], axis=1)
  return _hann(window).astype(np.float32)[:, None] * matrix


def _inverse_dft(window):
  """Inverse real DFT, windowed: `[2 * (window // 2 + 1), window]`, cosines then sines."""
  half = np.arange(window // 2 + 1)
  weight = (np.where((half == 0) | (2 * half == window), 1, 2)[:, None] / window).astype(np.float32)
  angle = _angles(window).T
  matrix = jnp.concatenate([weight * jnp.cos(angle), -weight * jnp.sin(angle)])
  return matrix * _hann(window).astype(np.float32)


def _angles(window):
  """2 pi n k / window in [0, 2 pi), by integers until the last step: `[window, bins]`."""
  turn = jnp.arange(window, dtype=np.int32)[:, None] * jnp.arange(window // 2 + 1, dtype=np.int32) % window
  return turn * np.float32(2 * np.pi / window)


def stft(audio, window, hop, normalized=False):
  """Complex STFT of `[..., samples]`: (real, imaginary), each `[..., frames, window // 2 + 1]`.

  The signal is padded by (window - hop) / 2 on both sides (reflected where it is long enough), so a
  multiple of `hop` gives samples / hop frames.
  """
  before = (window - hop) // 2
  after = window - hop - before
  mode = 'reflect' if audio.shape[-1] > window else 'constant'
  pad = [(0, 0)] * (audio.ndim - 1) + [(before, after)]
  frames = frame(jnp.pad(audio, pad, mode=mode), window, hop)  # [..., frames, window]
  scale = 1 / np.sqrt((_hann(window) ** 2).sum()) if normalized else 1.0
  return spectrum(frames, scale)


def spectrum(frames, scale=1.0):
  """Real and imaginary part of the Hann-windowed transform of `[..., window]`, by what is quicker there."""
  by_matmul = functools.partial(dft_by_matmul, scale=scale)
  return by_platform(frames, default=functools.partial(dft_by_fft, scale=scale), tpu=by_matmul,
                     portable=by_matmul)


def dft_by_fft(frames, scale=1.0):
  """Real and imaginary part of the Hann-windowed transform of `[..., window]`."""
  window = frames.shape[-1]
  spectrum = jnp.fft.rfft(frames * (_hann(window) * scale).astype(np.float32))
  return spectrum.real, spectrum.imag


def dft_by_matmul(frames, scale=1.0):
  """The same as `dft_by_fft`, by a matrix."""
  matrix = _dft(frames.shape[-1]) * np.float32(scale)
  return tuple(jnp.split(jnp.matmul(frames, matrix, precision=jax.lax.Precision.HIGHEST), 2, axis=-1))


def istft(real, imag, window, hop):
  """Least-squares inverse of `stft`, `[..., frames, window // 2 + 1]` to `[..., frames * hop]`.

  The signal is the sum of windowed frames over the sum of squared windows (Griffin & Lim, 1984).
  """
  by_matmul = functools.partial(inverse_by_matmul, window=window)
  frames = by_platform(real, imag, default=functools.partial(inverse_by_fft, window=window), tpu=by_matmul,
                       portable=by_matmul)  # [..., T, window]
  count = frames.shape[-2]
  total = overlap_add(frames, hop)  # [..., (T + blocks - 1) * hop]
  hann = (_hann(window) ** 2).astype(np.float32)
  norm = overlap_add(jnp.broadcast_to(hann, (count, window)), hop)
  before = (window - hop) // 2
  return (total / jnp.maximum(norm, 1e-3))[..., before:before + count * hop]


def inverse_by_fft(real, imag, window):
  """Windowed inverse transforms `[..., window]` of `[..., window // 2 + 1]`."""
  return jnp.fft.irfft(jax.lax.complex(real, imag), window) * _hann(window).astype(np.float32)


def inverse_by_matmul(real, imag, window):
  """The same as `inverse_by_fft`, by a matrix."""
  spectrum = jnp.concatenate([real, imag], axis=-1)
  return jnp.matmul(spectrum, _inverse_dft(window), precision=jax.lax.Precision.HIGHEST)


def overlap_add(frames, hop):
  """Adds `[..., frames, window]` every `hop` samples: `[..., (frames + window // hop - 1) * hop]`."""
  blocks = frames.shape[-1] // hop
  lead = [(0, 0)] * (frames.ndim - 2)
  out = sum(jnp.pad(frames[..., i * hop:(i + 1) * hop], [*lead, (i, blocks - 1 - i), (0, 0)])
            for i in range(blocks))  # [..., T + blocks - 1, hop]
  return out.reshape(*out.shape[:-2], -1)


@functools.lru_cache
def mel_basis(window, num_mels):
  """Slaney's triangular filters up to 8 kHz, each of unit area: float32 `[window // 2 + 1, num_mels]`.

  Those of `librosa.filters.mel`, bit for bit, without a fifth of the time that a cold start takes.
  """
  # Linear below 1 kHz, 15 mel; above it a factor of 6.4 every 27 mel.
  top = 15 + np.log(SAMPLE_RATE / 2 / 1000) / (np.log(6.4) / 27)
  mel = np.linspace(0, top, num_mels + 2)
  hertz = np.where(mel < 15, 200 / 3 * mel, 1000 * np.exp(np.log(6.4) / 27 * (mel - 15)))
  slopes = (hertz[:, None] - np.fft.rfftfreq(window, 1 / SAMPLE_RATE))  # [num_mels + 2, bins]
  widths = np.diff(hertz)[:, None]
  rising, falling = -slopes[:-2] / widths[:-1], slopes[2:] / widths[1:]
  triangles = np.maximum(0, np.minimum(rising, falling)).astype(np.float32)
  triangles *= (2 / (hertz[2:] - hertz[:-2]))[:, None]
  return triangles.T.copy()


def mel_matrix(window, num_mels):
  """The same in a program, which then holds two numbers a bin: no bin lies in more than two triangles."""
  basis = mel_basis(window, num_mels)
  bins, first = np.arange(len(basis)), (basis > 0).argmax(axis=1)
  lower, upper = basis[bins, first], np.where(first + 1 < num_mels, basis[bins, (first + 1) % num_mels], 0)
  band = jnp.arange(num_mels) - first[:, None]  # [bins, num_mels]
  return jnp.where(band == 0, lower[:, None], jnp.where(band == 1, upper[:, None], np.float32(0)))


def mel_spectrogram(audio, window, hop, num_mels):
  """Mel magnitudes of `[..., samples]`: `[..., frames, num_mels]` (librosa's Slaney filterbank)."""
  real, imag = stft(audio, window, hop)
  # sqrt has no gradient at 0: digital silence would be NaN without the floor.
  magnitude = jnp.sqrt(jnp.maximum(real ** 2 + imag ** 2, 1e-12))
  return jnp.matmul(magnitude, mel_matrix(window, num_mels), precision=jax.lax.Precision.HIGHEST)


def log_mel(audio, window, hop, num_mels, floor=1e-5):
  """log10 of `mel_spectrogram`, at least that of `floor`."""
  return jnp.log10(jnp.maximum(mel_spectrogram(audio, window, hop, num_mels), floor))
