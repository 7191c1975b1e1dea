"""What happens to speech on its way to a listener, for training the teacher: on `[batch, samples]`.

Each function draws per clip from `rng` and leaves some clips alone. A teacher trained on them keeps
its features on noisy, muffled and decoded speech, where the codec asks for them.
"""

import jax
import jax.numpy as jnp

from affectcodec_jax.common.constants import HOP_LENGTH
from affectcodec_jax.spectral import istft, stft

MAX_SPEED = 1.1
_WINDOW = 2 * HOP_LENGTH


def augment(audio, rng, samples):
  """All of it: `[batch, samples * MAX_SPEED or more]` to `[batch, samples]`, a multiple of 320."""
  speed_rng, spectrum_rng, noise_rng = jax.random.split(rng, 3)
  return degrade(change_speed(audio, speed_rng, samples), spectrum_rng, noise_rng)


def degrade(audio, spectrum_rng, noise_rng):
  """All of it but the speed: `[batch, samples]`, a multiple of 320, to the same."""
  spectrum = codec_like(stft(audio, _WINDOW, HOP_LENGTH), spectrum_rng)  # twice [B, T, bins]
  spectrum = band_limit(spectrum, jax.random.fold_in(spectrum_rng, 1))
  return add_noise(istft(*spectrum, _WINDOW, HOP_LENGTH), noise_rng)


def change_speed(audio, rng, samples):
  """Plays each clip 0.91 to 1.1 times as fast, pitch and tempo together, by linear interpolation."""
  return play(audio, speeds(rng, len(audio)), samples)


def speeds(rng, batch):
  """A random speed of each clip, `[batch]`."""
  return jax.random.uniform(rng, (batch,), minval=1 / MAX_SPEED, maxval=MAX_SPEED)


def play(x, speed, count):
  """`[batch, N, …]` at speeds `[batch]`: `[batch, count, …]`, linear between entries of the second axis."""
  at = jnp.arange(count) * speed[:, None]  # [B, count]
  at = at.reshape(at.shape + (1,) * (x.ndim - 2))
  index = jnp.minimum(at.astype(jnp.int32), x.shape[1] - 2)
  left, right = (jnp.take_along_axis(x, i, axis=1) for i in (index, index + 1))
  return left + (right - left) * (at - index)


def codec_like(spectrum, rng, probability=0.5):
  """What codecs do at low rates: magnitudes blurred and shaken, phases off, a little or a lot.

  Takes and returns a complex STFT (real, imaginary), each `[batch, frames, bins]`.
  """
  real, imag = spectrum
  b = len(real)
  keys = jax.random.split(rng, 5)
  amount = jax.random.uniform(keys[0], (b, 1, 1))
  amount *= jax.random.bernoulli(keys[1], probability, (b, 1, 1))
  # A factor on the whole bin blurs as it should: mean magnitude of the neighbours over its own.
  power = real ** 2 + imag ** 2 + 1e-10
  near = sum(jnp.roll(power, (i, j), (1, 2)) for i in (-1, 0, 1) for j in (-1, 0, 1)) / 9
  blur = amount * jax.random.uniform(keys[2], (b, 1, 1))
  gain = (near / power) ** (blur / 2) * jnp.exp(0.5 * amount * jax.random.normal(keys[3], real.shape))
  angle = amount ** 2 * jnp.pi * jax.random.uniform(keys[4], real.shape, minval=-1.0)
  cos, sin = gain * jnp.cos(angle), gain * jnp.sin(angle)
  return real * cos - imag * sin, real * sin + imag * cos


def band_limit(spectrum, rng, probability=0.5):
  """A random low-pass between 2.5 and 8 kHz and a random tilt of up to 10 dB, on a complex STFT."""
  b, _, bins = spectrum[0].shape
  keys = jax.random.split(rng, 3)
  frequency = jnp.linspace(0, 8000, bins)
  cutoff = jax.random.uniform(keys[0], (b, 1), minval=2500, maxval=8000)
  slope_db = jax.random.uniform(keys[1], (b, 1), minval=-10.0, maxval=10.0)
  gain = jax.nn.sigmoid((cutoff - frequency) / 100) * 10 ** (slope_db * (frequency / 8000 - 0.1) / 20)
  chosen = jax.random.bernoulli(keys[2], probability, (b, 1))
  gain = jnp.where(chosen, gain, 1.0)[:, None]  # [B, 1, bins]
  return spectrum[0] * gain, spectrum[1] * gain


def add_noise(audio, rng, probability=0.7):
  """White to dull noise, 5 to 45 dB below the clip, and a gain of up to 3 dB either way."""
  b = len(audio)
  keys = jax.random.split(rng, 5)
  white = jax.random.normal(keys[0], audio.shape)
  colour = jax.random.uniform(keys[1], (b, 1), maxval=0.95)
  noise = white + colour * (jnp.roll(white, 1, axis=1) + colour * jnp.roll(white, 2, axis=1))
  noise /= jnp.sqrt(jnp.mean(noise ** 2, axis=1, keepdims=True))
  level = jnp.sqrt(jnp.mean(audio ** 2, axis=1, keepdims=True))
  snr = jax.random.uniform(keys[2], (b, 1), minval=5.0, maxval=45.0)
  chosen = jax.random.bernoulli(keys[3], probability, (b, 1))
  audio = audio + jnp.where(chosen, noise * level * 10 ** (-snr / 20), 0.0)
  return audio * 10 ** (jax.random.uniform(keys[4], (b, 1), minval=-3.0, maxval=3.0) / 20)
