"""The codec for those who use it: `load`, `encode`, `decode`."""

from collections.abc import Callable, Iterable, Sequence
import functools
import logging
import math
import os
import pathlib
from typing import Any

import jax
from ml_collections import ConfigDict
import numpy as np
import numpy.typing as npt

from affectcodec_jax import audio as audio_lib
from affectcodec_jax.common import buckets, packaged, run_files
from affectcodec_jax.common.arrays import as_array, check_number
from affectcodec_jax.common.compilation_cache import use_compilation_cache
from affectcodec_jax.common.constants import FRAME_RATE, HOP_LENGTH
from affectcodec_jax.common.errors import UserError
from affectcodec_jax.common.files import AnyPath
from affectcodec_jax.common.places import no_device
from affectcodec_jax.config import load_config
from affectcodec_jax.inference import hub, release, weights
from affectcodec_jax.inference.pieces import Inference
from affectcodec_jax.inference.refine import check_steps
from affectcodec_jax.inference.streaming import CHUNK, StreamDecoder, StreamEncoder
from affectcodec_jax.models.codec import bits_per_stage, init_params
from affectcodec_jax.tokens.afc import Tokens, find_problem

# Packaged codecs of earlier releases, by fingerprint.
EARLIER = {'77190692d28a413d': '0.1.0', '1b2b152eacb59321': '0.2.0', 'ea783662f303b27c': '0.3.0',
           '07e0f12ce689c4bd': '0.4.0', '7c78a12eae400959': '0.5.0'}

Params = dict[str, Any]  # nested: arrays by the names of modules and parameters
Progress = Callable[[list], Iterable]  # goes through a list of batches, such as `tqdm.tqdm`


def load(path: AnyPath = 'pretrained') -> 'Pretrained':
  """Loads a codec: the packaged one, a released one, or the newest checkpoint (EMA weights) of a run.

  Args:
    path: the run's workdir or a folder that `python -m affectcodec_jax release` made, or the address of
      either in a bucket (`gs://…`, needs requirements-gcs.txt); 'pretrained' is the packaged codec.
      'org/name', where there is no folder 'org', is such a folder on the Hugging Face Hub, fetched once
      (needs huggingface_hub).

  Returns:
    A `Pretrained` codec.

  Raises:
    UserError: no codec there, no sound checkpoint, or one that does not fit its configuration.
  """
  use_compilation_cache()
  try:
    jax.devices()
  except (RuntimeError, AssertionError) as e:  # JAX knows 'cuda' without its plugin: an assertion fails
    raise UserError(no_device(e)) from e
  if not isinstance(path, (str, os.PathLike)):
    raise UserError(f'load takes the name of a folder, got {type(path).__name__}')
  name, path = path, packaged.FOLDER if path == 'pretrained' else run_files.local(path)
  if not os.path.isdir(path) and hub.is_name(name):
    path = hub.fetch(str(name))
  if not os.path.isdir(path):  # unlike Path.is_dir it knows names that are too long
    raise UserError(f'{path}: no such folder; give the workdir of a training run, or leave it out for the '
                    'packaged codec')
  if release.is_release(path):
    return _logged(Pretrained(*release.load(path)), path)
  from affectcodec_jax.inference.restore import restore_newest  # half a second that released codecs spare
  config = load_config(path / 'config.json')
  frozen = weights.load_encoder_network(config, path)
  shapes = jax.eval_shape(functools.partial(init_params, config), jax.random.PRNGKey(0))[0]
  items, step = restore_newest(name if buckets.is_address(name) else path, ema=shapes)
  params = items['ema']
  return _logged(Pretrained(config, params, frozen, step), path)


def _listed(values: Any, name: str) -> list[Any]:
  """A list of what goes through together; one alone is no list."""
  try:
    return list(values)
  except TypeError as e:
    raise UserError(f'{name}: give a list of them, got one {type(values).__name__}') from e


def _check_batch(batch: Any) -> None:
  if not isinstance(batch, int) or batch < 1:
    raise UserError(f'batch of {batch!r} pieces: a whole number from 1 on')


def _logged(codec: 'Pretrained', path: pathlib.Path) -> 'Pretrained':
  logging.getLogger(__name__).info('codec %s of %s, step %d, on %d %s device(s)', codec.fingerprint.hex(),
                                   path, codec.step, jax.device_count(), codec.backend)
  return codec


class Pretrained:
  """A codec with its weights.

  Attributes:
    config: the configuration it was trained with.
    step: training steps behind the weights.
    sample_rate: 16000 Hz, of what `decode` returns.
    hop_length: 320 samples a frame.
    fingerprint: 8 bytes that tokens carry to find their model.
  """

  sample_rate = audio_lib.SAMPLE_RATE
  hop_length = HOP_LENGTH

  def __init__(self, config: ConfigDict, params: Params, frozen: Params, step: int) -> None:
    self.config = config
    self.params = params
    self.frozen = frozen
    self.step = step
    self.fingerprint: bytes = weights.fingerprint(config.model.to_dict(), params, frozen)
    self._inference = Inference(config, frozen)

  @property
  def backend(self) -> str:
    """What it computes on: 'cpu', 'gpu' or 'tpu'."""
    return jax.default_backend()

  @property
  def stage_kbps(self) -> float:
    """Rate of one stage in kbit/s: 0.75 for 15 bits at 50 Hz."""
    return bits_per_stage(self.config.model) * self.sample_rate / self.hop_length / 1000

  def num_stages(self, kbps: float | None) -> int:
    """Stages that make `kbps`; None means all.

    Raises:
      UserError: not a rate of this codec.
    """
    top, kbps = self.config.model.num_stages, check_number(kbps, 'kbps')
    if kbps is None:
      return top
    stages = kbps / self.stage_kbps if math.isfinite(kbps) else 0.0
    if not math.isclose(stages, round(stages), abs_tol=1e-6) or not 1 <= round(stages) <= top:
      rates = ', '.join(f'{self.stage_kbps * m:g}' for m in range(1, top + 1))
      raise UserError(f'{kbps:g} kbps is not a rate of this codec; it has {rates}')
    return round(stages)

  def encode(self, audio: npt.ArrayLike, sample_rate: float, kbps: float | None = None,
             refine: int = 0) -> Tokens:
    """Encodes one utterance.

    Args:
      audio: `[samples]` or `[samples, channels]`, float in [-1, 1] or PCM of int16 or int32, of NumPy,
        JAX or PyTorch (`common.arrays.to_mono`).
      sample_rate: its rate in Hz; other than 16000 is resampled.
      kbps: rate, e.g. 1.5, 3 or 6; None is the highest.
      refine: steps of a search for codes that decode nearer to the recording, at this rate; 20 are enough.
        A step costs a decoding and its gradient (`inference.refine`). The emotion digits of a
        block-diagonal quantiser stay the encoder's. 0 is none.

    Returns:
      `Tokens`: `codes` `[frames, stages]` with the length and level needed to decode exactly. It
      goes wherever an array goes.

    Raises:
      UserError: not such audio, no samples, samples that are not finite, not a rate of this codec or not a
        number of steps; more than ten minutes where the teacher needs a whole recording at once.
    """
    return self.encode_batch([audio], sample_rate, kbps, refine=refine)[0]

  def encode_batch(self, recordings: Sequence[npt.ArrayLike], sample_rate: float,
                   kbps: float | None = None, batch: int = 1, progress: Progress = list,
                   refine: int = 0) -> list[Tokens]:
    """`encode` of a list of recordings, of any lengths, `batch` pieces of 20 s or less at a time.

    Each comes out as it does by itself, all but a few of refined codes. `progress` shows how far it is, as
    `tqdm.tqdm` does: first of the emotion path, then of all else.

    Raises:
      UserError: as `encode`; a batch of less than 1.
    """
    stages = self.num_stages(kbps)
    _check_batch(batch)
    refine_steps = check_steps(refine)
    mono = [audio_lib.resample(audio_lib.to_mono(r), sample_rate, self.sample_rate)
            for r in _listed(recordings, 'recordings')]
    gains = [audio_lib.level_gain(r) for r in mono]
    levelled = [audio_lib.apply_gain(r, gain) for r, gain in zip(mono, gains)]
    codes = self._inference.encode(self.params, self.frozen, levelled, batch, progress, refine_steps,
                                   stages)
    return [Tokens(codes=c, num_samples=len(r), gain_db=gain,
                   bits_per_code=bits_per_stage(self.config.model), fingerprint=self.fingerprint)
            for c, r, gain in zip(codes, mono, gains)]

  def decode(self, tokens: Tokens | npt.ArrayLike, kbps: float | None = None) -> np.ndarray:
    """Decodes `Tokens`, or a plain integer array `[frames, stages]` of any number of stages.

    Returns:
      float32 `[samples]` at 16 kHz: as many samples as went in (frames * 320 for a plain array).

    Raises:
      UserError: tokens of another model, or codes out of range.
    """
    return self.decode_batch([tokens], kbps)[0]

  def decode_batch(self, tokens: Sequence[Tokens | npt.ArrayLike], kbps: float | None = None,
                   batch: int = 1, progress: Progress = list) -> list[np.ndarray]:
    """`decode` of a list of `Tokens` or arrays of one number of stages; each comes out as by itself.

    `progress` shows how far it is, as `tqdm.tqdm` does.

    Raises:
      UserError: as `decode`; tokens of different rates, and no `kbps` that all of them hold.
    """
    _check_batch(batch)
    tokens = _listed(tokens, 'tokens')
    if not tokens:
      return []
    codes, samples, gains = zip(*(self._checked(t, kbps) for t in tokens))
    if len({c.shape[1] for c in codes}) > 1:
      raise UserError('these tokens have different rates; give kbps')
    audio = self._inference.decode(self.params, codes, batch, progress)
    return [a[:n] / np.float32(10 ** (gain / 20)) for a, n, gain in zip(audio, samples, gains)]

  def utterance_embedding(self, audio: npt.ArrayLike, sample_rate: float) -> np.ndarray:
    """What the encoder takes a whole recording's emotion for, `[adapter_dim]`; audio as `encode`'s."""
    mono = audio_lib.resample(audio_lib.to_mono(audio), sample_rate, self.sample_rate)
    return self._inference.encode_emotion(self.params, self.frozen, [audio_lib.at_codec_level(mono)])[1][0]

  def stream_encoder(self, kbps: float | None = None, chunk_frames: int = CHUNK,
                     lookahead: int | None = None, gain_db: float = 0.0,
                     utterance: npt.ArrayLike | None = None) -> StreamEncoder:
    """A `streaming.StreamEncoder`: `push(audio)` gives codes `[frames, stages]`, `flush()` the last ones.

    Compiles, so that no `push` has to.

    Args:
      kbps: rate; None is the highest.
      chunk_frames: frames of 20 ms that are encoded together: more is less work and more latency.
      lookahead: frames awaited beyond a chunk; None is all that the networks see, which makes the codes
        those of `encode` but for gain and embedding. Fewer: less latency, and codes that differ.
      gain_db: brings the speech to the codec's level, about -24 dBFS; the decoder needs the same value.
      utterance: embedding `[adapter_dim]` of `utterance_embedding`; None pools the frames so far.

    Raises:
      UserError: a value that cannot be, or a codec whose teacher needs a whole recording at once.
    """
    if utterance is not None:
      given: np.ndarray = as_array(utterance, 'utterance')
      width = self.config.model.adapter_dim if self.config.model.conditioning else 0
      if given.shape != (width,) or given.dtype.kind != 'f' or not np.isfinite(given).all():
        raise UserError(f'utterance must be an embedding [{width}] of finite float, got {given.dtype} '
                        f'{list(given.shape)}')
      utterance = given.astype(np.float32)
    params, frozen = jax.device_put((self.params, self.frozen))
    return StreamEncoder(self._inference, params, frozen, self.num_stages(kbps), chunk_frames, lookahead,
                         gain_db, utterance)

  def stream_decoder(self, kbps: float | None = None, chunk_frames: int = CHUNK,
                     lookahead: int | None = None, gain_db: float = 0.0) -> StreamDecoder:
    """A `streaming.StreamDecoder`: `push(codes)` gives audio, `push_lost(n)` conceals, `flush()` ends.

    Compiles, so that no `push` has to. With the whole lookahead the audio is that of `decode`.

    Args:
      kbps: rate, at most the encoder's; None is the highest.
      chunk_frames: as `stream_encoder`'s.
      lookahead: as `stream_encoder`'s.
      gain_db: the encoder's.

    Raises:
      UserError: a value that cannot be.
    """
    return StreamDecoder(self._inference, jax.device_put(self.params), self.num_stages(kbps),
                         2 ** bits_per_stage(self.config.model), chunk_frames, lookahead, gain_db,
                         self.config.model.num_stages)

  def _checked(self, tokens: Tokens | npt.ArrayLike, kbps: float | None) -> tuple[np.ndarray, int, float]:
    """(codes of the stages asked for, samples, gain in dB) of what `decode` takes."""
    top = self.config.model.num_stages
    if isinstance(tokens, Tokens):
      if tokens.fingerprint != self.fingerprint:
        theirs = getattr(tokens.fingerprint, 'hex', lambda: repr(tokens.fingerprint))()
        if theirs in EARLIER:
          raise UserError(f'these tokens were made by the packaged codec of release {EARLIER[theirs]}; '
                          'that release decodes them')
        raise UserError(f'these tokens were made by model {theirs}, this is '
                        f'{self.fingerprint.hex()}; decode with the checkpoint that encoded them')
      said = tokens.sample_rate, tokens.hop_length, tokens.bits_per_code
      ours = self.sample_rate, self.hop_length, bits_per_stage(self.config.model)
      if said != ours:
        raise UserError(f'these tokens say {said} (sample rate, hop length, bits a code) and name this '
                        f'codec, whose are {ours}; they are damaged, encode again')
      if problem := find_problem(tokens):
        raise UserError(f'these tokens cannot be decoded: {problem}; encode again')
      codes, samples, gain = as_array(tokens.codes, 'tokens'), tokens.num_samples, tokens.gain_db
    else:
      codes = as_array(tokens, 'tokens')
      samples, gain = len(codes) * self.hop_length if codes.ndim else 0, 0.0
    if not np.issubdtype(codes.dtype, np.integer):
      raise UserError(f'tokens must be integers, got {codes.dtype}')
    if codes.ndim != 2 or codes.shape[0] < 1 or not 1 <= codes.shape[1] <= top:
      raise UserError(f'tokens must be [frames, 1..{top} stages], got {list(codes.shape)}')
    if codes.min() < 0 or codes.max() >= 2 ** bits_per_stage(self.config.model):
      raise UserError('tokens hold codes out of range')
    if kbps is not None:
      if self.num_stages(kbps) > codes.shape[1]:
        raise UserError(f'these tokens hold {self.stage_kbps * codes.shape[1]:g} kbps, not {kbps:g}')
      codes = codes[:, :self.num_stages(kbps)]
    return np.asarray(codes, np.int32), samples, gain

  def working_memory(self, seconds: float) -> dict[str, int]:
    """Bytes besides weights that XLA reserves for so many seconds: {'encode': …, 'decode': …}."""
    return self._inference.working_memory(self.params, self.frozen, math.ceil(seconds * FRAME_RATE))
