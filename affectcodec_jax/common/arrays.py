"""What arrays of samples people have: which are unambiguous, and the one line for those that are not."""

import numbers

import numpy as np

from affectcodec_jax.common.errors import UserError

_WANTED = 'give [samples] or [samples, channels], float in [-1, 1] or int16 or int32 PCM'
_LOUDEST = 1e30  # 600 dB above full scale; a token file holds gains of 700 dB


def to_mono(audio, name='audio'):
  """Finite, non-empty float32 `[samples]`, the mean of the channels.

  Args:
    audio: `[samples]` or `[samples, channels]`, of NumPy, JAX or PyTorch, or lists of floats; further axes
      of size 1 do no harm. Float is full scale at 1, signed integers of 8, 16 and 32 bits at their largest
      value, uint8 is around 128 as in WAV files.
    name: what the messages begin with.

  Raises:
    UserError: empty, not finite, or one whose meaning would be a guess: whole numbers of no particular
      size (lists of ints are int64), complex ones, more channels than samples.
  """
  audio = as_array(audio, name)
  if 'float' not in audio.dtype.name and audio.dtype.name not in ('int8', 'int16', 'int32', 'uint8'):
    raise UserError(f'{name}: samples are {audio.dtype}, whose full scale is not known; {_WANTED}')
  if audio.size == 0:
    raise UserError(f'{name}: holds no samples')
  shape = audio.shape
  if sum(n > 1 for n in shape) <= 1 and audio.ndim:
    audio = audio.reshape(-1)  # [1, n], [n, 1], [1, 1, n]
  if audio.ndim not in (1, 2):
    raise UserError(f'{name}: shape {list(shape)}; {_WANTED}')
  if audio.ndim == 2 and shape[1] > shape[0]:
    raise UserError(f'{name}: shape {list(shape)} would be {shape[0]} samples of {shape[1]} channels; give '
                    '[samples, channels] (transpose it), or recordings one by one')
  audio = _scaled(audio)
  if audio.ndim == 2:
    audio = audio.mean(axis=1)  # [samples, channels] -> [samples]
  if not np.isfinite(audio).all():
    raise UserError(f'{name}: holds samples that are NaN or infinite')
  if np.abs(audio).max() > _LOUDEST:
    raise UserError(f'{name}: samples of {np.abs(audio).max():.0e} are no sound; {_WANTED}')
  return audio


def as_array(value, name):
  """A NumPy array of what NumPy, JAX, PyTorch or a list holds.

  Raises:
    UserError: not an array.
  """
  try:
    if hasattr(value, 'detach'):  # a tensor of PyTorch, perhaps with a gradient or on a device
      value = value.detach().cpu()
      value = value.float() if 'bfloat16' in str(value.dtype) else value
    if isinstance(value, (bytes, bytearray)):
      raise TypeError('bytes; numpy.frombuffer with their type makes one')
    array = np.asarray(value)
  except Exception as e:  # whatever the library of the array raises
    raise UserError(f'{name}: not an array ({type(e).__name__}: {" ".join(str(e).split())[:100]})') from e
  if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
    raise UserError(f'{name}: a masked array; fill in what is masked')
  return array


def check_number(value, name):
  """`value` as a float, or None as it is.

  Raises:
    UserError: not a real number.
  """
  if value is None:
    return None
  if getattr(value, 'ndim', None) == 0 and hasattr(value, 'item'):  # of NumPy, JAX or PyTorch
    value = value.item()
  if isinstance(value, bool) or not isinstance(value, numbers.Real):
    raise UserError(f'{name} must be a number, got {value!r}')
  return float(value)


def _scaled(audio):
  """Float32 with full scale at 1."""
  if audio.dtype == np.uint8:
    return (audio.astype(np.float32) - 128) / 128
  if audio.dtype.kind == 'i':
    return (audio / float(np.iinfo(audio.dtype).max + 1)).astype(np.float32)
  return audio.astype(np.float32, copy=False)
