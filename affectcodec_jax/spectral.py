"""Short-time Fourier transform and mel spectrograms as matmuls.

A windowed DFT is a matrix; speech losses need few bins, and a matmul runs fast on every device and
has a fast gradient. Precision is float32 always: an accelerator's default bfloat16 pass would put
errors of a per cent into every bin.
"""

import functools

import jax
import jax.numpy as jnp
import librosa.filters
import numpy as np

from affectcodec_jax.audio import SAMPLE_RATE


def frame(audio, window, hop):
  """Cuts `[..., samples]` into `[..., frames, window]`, by blocks of `hop`, never by gathering.

  `window` must be a multiple of `hop`; a last partial hop is dropped.
  """
  blocks = window // hop
  count = audio.shape[-1] // hop
  x = audio[..., :count * hop].reshape(*audio.shape[:-1], count, hop)  # [..., hops, hop]
  frames = count - blocks + 1
  return jnp.concatenate([x[..., i:i + frames, :] for i in range(blocks)], axis=-1)


@functools.lru_cache
def _dft(window, normalized):
  """Hann-windowed DFT matrix, cosines then sines: `[window, 2 * (window // 2 + 1)]`."""
  hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
  angle = 2 * np.pi / window * np.outer(np.arange(window), np.arange(window // 2 + 1))
  matrix = hann[:, None] * np.concatenate([np.cos(angle), -np.sin(angle)], axis=1)
  if normalized:
    matrix /= np.sqrt((hann ** 2).sum())
  return matrix.astype(np.float32)


def stft(audio, window, hop, normalized=False):
  """Complex STFT of `[..., samples]`: (real, imaginary), each `[..., frames, window // 2 + 1]`.

  The signal is padded by (window - hop) / 2 on both sides (reflected where it is long enough), so a
  multiple of `hop` gives samples / hop frames.
  """
  before = (window - hop) // 2
  after = window - hop - before
  mode = 'reflect' if audio.shape[-1] > window else 'constant'
  pad = [(0, 0)] * (audio.ndim - 1) + [(before, after)]
  frames = frame(jnp.pad(audio, pad, mode=mode), window, hop)
  spectrum = jnp.matmul(frames, _dft(window, normalized), precision=jax.lax.Precision.HIGHEST)
  return jnp.split(spectrum, 2, axis=-1)


@functools.lru_cache
def _mel_basis(window, num_mels):
  return librosa.filters.mel(sr=SAMPLE_RATE, n_fft=window, n_mels=num_mels).T.copy()


def mel_spectrogram(audio, window, hop, num_mels):
  """Mel magnitudes of `[..., samples]`: `[..., frames, num_mels]` (librosa's Slaney filterbank)."""
  real, imag = stft(audio, window, hop)
  # sqrt has no gradient at 0: digital silence would be NaN without the floor.
  magnitude = jnp.sqrt(jnp.maximum(real ** 2 + imag ** 2, 1e-12))
  return jnp.matmul(magnitude, _mel_basis(window, num_mels), precision=jax.lax.Precision.HIGHEST)


def log_mel(audio, window, hop, num_mels):
  """log10 of `mel_spectrogram`, floored at 1e-5."""
  return jnp.log10(jnp.maximum(mel_spectrogram(audio, window, hop, num_mels), 1e-5))
