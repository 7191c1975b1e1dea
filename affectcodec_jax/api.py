"""The codec for those who use it: `load`, `encode`, `decode`."""

import functools
import math
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from affectcodec_jax import audio as audio_lib
from affectcodec_jax import weights
from affectcodec_jax.bitstream import Tokens
from affectcodec_jax.config import load_config
from affectcodec_jax.errors import UserError
from affectcodec_jax.models.codec import Codec, bits_per_stage, hop_length
from affectcodec_jax.teachers import encoder_features
from affectcodec_jax.training.checkpoints import restore_ema
from affectcodec_jax.training.state import init_params, make_codec


def use_compilation_cache():
  """Keeps compiled programs in the user's cache folder, so that a second start is quick."""
  if jax.config.jax_compilation_cache_dir is None:
    root = os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')
    jax.config.update('jax_compilation_cache_dir', os.path.join(root, 'affectcodec_jax', 'jax'))


def load(path):
  """Loads the newest checkpoint (its EMA weights) of a training run.

  Args:
    path: the run's workdir.

  Returns:
    A `Pretrained` codec.

  Raises:
    UserError: no run there, no sound checkpoint, or one that does not fit its configuration.
  """
  use_compilation_cache()
  path = pathlib.Path(path)
  if not path.is_dir():
    raise UserError(f'{path}: no such folder; give the workdir of a training run')
  config = load_config(path / 'config.json')
  frozen = weights.load_encoder_network(config, path)
  shapes = jax.eval_shape(functools.partial(init_params, config), jax.random.PRNGKey(0))[0]
  params, step = restore_ema(path, shapes)
  return Pretrained(config, params, frozen, step)


class Pretrained:
  """A codec with its weights.

  Attributes:
    config: the configuration it was trained with.
    step: training steps behind the weights.
    sample_rate: 16000 Hz, of what `decode` returns.
    fingerprint: 8 bytes that tokens carry to find their model.
  """

  sample_rate = audio_lib.SAMPLE_RATE

  def __init__(self, config, params, frozen, step):
    self.config = config
    self.params = params
    self.frozen = frozen
    self.step = step
    self.hop_length = hop_length(config.model)
    self.fingerprint = weights.fingerprint(config.model.to_dict(), params, frozen)
    codec = make_codec(config)

    @jax.jit
    def analyse(params, frozen, audio, mask):
      features = encoder_features(config, frozen, audio, mask)
      u = codec.apply({'params': params}, audio, features, mask, method=Codec.analyse)
      return codec.apply({'params': params}, u, method=Codec.quantize).indices

    @jax.jit
    def synthesise(params, indices, mask):
      latent = codec.apply({'params': params}, indices, method=Codec.lookup)
      return codec.apply({'params': params}, latent * mask[..., None], method=Codec.synthesise)

    self._analyse, self._synthesise = analyse, synthesise

  @property
  def stage_kbps(self):
    """Rate of one stage in kbit/s: 0.75 for 15 bits at 50 Hz."""
    return bits_per_stage(self.config.model) * self.sample_rate / self.hop_length / 1000

  def num_stages(self, kbps):
    """Stages that make `kbps`; None means all.

    Raises:
      UserError: not a rate of this codec.
    """
    top = self.config.model.num_stages
    if kbps is None:
      return top
    stages = kbps / self.stage_kbps if math.isfinite(kbps) else 0.0
    if not math.isclose(stages, round(stages), abs_tol=1e-6) or not 1 <= round(stages) <= top:
      rates = ', '.join(f'{self.stage_kbps * m:g}' for m in range(1, top + 1))
      raise UserError(f'{kbps:g} kbps is not a rate of this codec; it has {rates}')
    return round(stages)

  def encode(self, audio, sample_rate, kbps=None) -> Tokens:
    """Encodes one utterance.

    Args:
      audio: `[samples]` or `[samples, channels]`, float in [-1, 1] or signed integer PCM.
      sample_rate: its rate in Hz; other than 16000 is resampled.
      kbps: rate, e.g. 1.5, 3 or 6; None is the highest.

    Returns:
      `Tokens`: `codes` `[frames, stages]` with the length and level needed to decode exactly. It
      goes wherever an array goes.
    """
    stages = self.num_stages(kbps)
    audio = audio_lib.resample(audio_lib.to_mono(audio), sample_rate, self.sample_rate)
    gain = audio_lib.level_gain(audio)
    frames = -(-len(audio) // self.hop_length)
    padded = np.zeros((1, _bucket(frames) * self.hop_length), np.float32)
    padded[0, :len(audio)] = audio * 10 ** (gain / 20)
    mask = np.arange(_bucket(frames))[None] < frames
    codes = self._analyse(self.params, self.frozen, padded, mask)[0, :frames, :stages]
    return Tokens(codes=np.asarray(codes), num_samples=len(audio), gain_db=gain,
                  bits_per_code=bits_per_stage(self.config.model), fingerprint=self.fingerprint)

  def decode(self, tokens, kbps=None):
    """Decodes `Tokens`, or a plain integer array `[frames, stages]` of any number of stages.

    Returns:
      float32 `[samples]` at 16 kHz: as many samples as went in (frames * 320 for a plain array).

    Raises:
      UserError: tokens of another model, or codes out of range.
    """
    top = self.config.model.num_stages
    if isinstance(tokens, Tokens):
      if tokens.fingerprint != self.fingerprint:
        raise UserError(f'these tokens were made by model {tokens.fingerprint.hex()}, this is '
                        f'{self.fingerprint.hex()}; decode with the checkpoint that encoded them')
      codes, samples, gain = tokens.codes, tokens.num_samples, tokens.gain_db
    else:
      codes = np.asarray(tokens)
      samples, gain = codes.shape[0] * self.hop_length, 0.0
    if codes.ndim != 2 or codes.shape[0] < 1 or not 1 <= codes.shape[1] <= top:
      raise UserError(f'tokens must be [frames, 1..{top} stages], got {list(codes.shape)}')
    if codes.min() < 0 or codes.max() >= 2 ** bits_per_stage(self.config.model):
      raise UserError('tokens hold codes out of range')
    if kbps is not None:
      if self.num_stages(kbps) > codes.shape[1]:
        raise UserError(f'these tokens hold {self.stage_kbps * codes.shape[1]:g} kbps, not {kbps:g}')
      codes = codes[:, :self.num_stages(kbps)]
    frames = len(codes)
    padded = np.zeros((1, _bucket(frames), codes.shape[1]), np.int32)
    padded[0, :frames] = codes
    mask = (np.arange(_bucket(frames))[None] < frames).astype(np.float32)
    decoded = np.asarray(self._synthesise(self.params, jnp.asarray(padded), mask))[0, :samples]
    return decoded / np.float32(10 ** (gain / 20))

  def working_memory(self, seconds):
    """Bytes besides weights that XLA reserves to encode and to decode so many seconds, by name."""
    frames = _bucket(math.ceil(seconds * self.sample_rate / self.hop_length))
    audio = jax.ShapeDtypeStruct((1, frames * self.hop_length), jnp.float32)
    codes = jax.ShapeDtypeStruct((1, frames, self.config.model.num_stages), jnp.int32)
    programs = {
        'encode': self._analyse.lower(self.params, self.frozen, audio,
                                      jax.ShapeDtypeStruct((1, frames), bool)),
        'decode': self._synthesise.lower(self.params, codes,
                                         jax.ShapeDtypeStruct((1, frames), jnp.float32))}
    return {name: p.compile().memory_analysis().temp_size_in_bytes for name, p in programs.items()}


def _bucket(frames):
  """Frames to compute for `frames`: a multiple of 50 and, from 400 on, at most a quarter more.

  There are few such numbers, so there is little to compile.
  """
  step = max(50, 2 ** (frames.bit_length() - 1) // 4)
  return -(-frames // step) * step
