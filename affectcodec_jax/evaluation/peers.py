"""Codecs to compare with, one small adapter each: audio in, decoded audio and bits out.

An adapter is a function of `[samples]` at 16 kHz to (`[samples]` decoded, without the codec's delay and of
equal length, bits). Bits are what the codec itself says: containers are not counted. The neural ones are in
`neural_peers`.
"""

import ctypes
import ctypes.util
import functools
import io
import pathlib
import shutil
import subprocess
import tempfile

import numpy as np
import soundfile

from affectcodec_jax.audio import resample
from affectcodec_jax.common.constants import SAMPLE_RATE
from affectcodec_jax.common.errors import UserError
from affectcodec_jax.evaluation.systems import System, fit_length

# Samples at 16 kHz by which the decoder's output comes late.
CODEC2_DELAY = 320  # half its window of 40 ms
AMR_WB_DELAY = 95  # measured; look-ahead of 80 samples and the filters


def _pcm(audio):
  return np.round(np.clip(audio, -1, 1 - 2 ** -15) * 32768).astype('<i2')


def ogg_bits(data):
  """Bits of a stream's packets without Ogg's framing and the two header packets (RFC 3533, section 6)."""
  at = bits = packets = 0
  while at + 27 <= len(data):
    sizes = data[at + 27:at + 27 + data[at + 26]]
    if packets >= 2:
      bits += 8 * sum(sizes)
    packets += sum(size < 255 for size in sizes)
    at += 27 + len(sizes) + sum(sizes)
  return bits


def opus(audio, kbps):
  """Opus, by libsndfile: any rate from 6 kbps."""
  file = io.BytesIO()
  # libsndfile maps 0..1 to 256..6 kbps a channel.
  soundfile.write(file, audio, SAMPLE_RATE, format='OGG', subtype='OPUS',
                  compression_level=1 - (kbps - 6) / 250)
  file.seek(0)
  decoded, _ = soundfile.read(file, dtype='float32')
  return fit_length(decoded, len(audio)), ogg_bits(file.getvalue())  # libopus takes its delay off by itself


def codec2(audio, kbps):
  """Codec 2, by c2enc and c2dec: a vocoder for 8 kHz."""
  with tempfile.TemporaryDirectory() as folder:
    folder = pathlib.Path(folder)
    narrow = resample(np.pad(audio, (0, 2 * CODEC2_DELAY)), SAMPLE_RATE, 8000)
    (folder / 'in.raw').write_bytes(_pcm(narrow).tobytes())
    mode = f'{round(1000 * kbps)}'
    _call('c2enc', mode, folder / 'in.raw', folder / 'bits')
    _call('c2dec', mode, folder / 'bits', folder / 'out.raw')
    decoded = np.fromfile(folder / 'out.raw', '<i2') / np.float32(32768)
  decoded = resample(decoded, 8000, SAMPLE_RATE)
  # The rate is constant; the padding is not the codec's doing.
  return fit_length(decoded[CODEC2_DELAY:], len(audio)), kbps * 1000 * len(audio) / SAMPLE_RATE


def speex(audio, kbps):
  """Speex, wide band, by speexenc and speexdec."""
  with tempfile.TemporaryDirectory() as folder:
    folder = pathlib.Path(folder)
    # speexdec takes the delay off by itself, but only where there is more than one page of Ogg: 5 s.
    padded = np.pad(audio, (0, max(640, 6 * SAMPLE_RATE - len(audio))))
    soundfile.write(folder / 'in.wav', padded, SAMPLE_RATE, 'PCM_16')
    _call('speexenc', '--wideband', '--bitrate', f'{round(1000 * kbps)}', folder / 'in.wav',
          folder / 'a.spx')
    _call('speexdec', folder / 'a.spx', folder / 'out.wav')
    decoded, _ = soundfile.read(folder / 'out.wav', dtype='float32')
    bits = ogg_bits((folder / 'a.spx').read_bytes())
  return fit_length(decoded, len(audio)), bits * len(audio) / len(padded)  # the rate is constant


def _call(*command):
  done = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False)
  if done.returncode:
    raise UserError(f'{command[0]} failed: {(done.stderr.strip().splitlines() or ["no message"])[-1]}')


AMR_WB_MODES = (6.6, 8.85, 12.65, 14.25, 15.85, 18.25, 19.85, 23.05, 23.85)


def amrwb(audio, kbps):
  """AMR-WB, by libvo-amrwbenc and libopencore-amrwb."""
  encoder, decoder = _amrwb_libraries()
  pcm = _pcm(np.pad(audio, (0, -len(audio) % 320 + 320)))
  state, buffer, frames = encoder.E_IF_init(), ctypes.create_string_buffer(500), []
  try:
    for frame in pcm.reshape(-1, 320):  # 20 ms
      size = encoder.E_IF_encode(ctypes.c_void_p(state), AMR_WB_MODES.index(kbps),
                                 np.ascontiguousarray(frame).ctypes.data_as(ctypes.c_void_p), buffer, 0)
      frames.append(buffer.raw[:size])
  finally:
    encoder.E_IF_exit(ctypes.c_void_p(state))
  state, out, decoded = decoder.D_IF_init(), np.zeros(320, np.int16), []
  try:
    for frame in frames:
      decoder.D_IF_decode(ctypes.c_void_p(state), frame, out.ctypes.data_as(ctypes.c_void_p), 0)
      decoded.append(out / np.float32(32768))
  finally:
    decoder.D_IF_exit(ctypes.c_void_p(state))
  decoded = np.concatenate(decoded)[AMR_WB_DELAY:]
  return fit_length(decoded, len(audio)), kbps * 1000 * len(audio) / SAMPLE_RATE


def _amrwb_libraries():
  libraries = []
  for name, maker in (('vo-amrwbenc', 'E_IF_init'), ('opencore-amrwb', 'D_IF_init')):
    path = ctypes.util.find_library(name)
    if path is None:
      raise UserError(f'lib{name} is not installed')
    library = ctypes.CDLL(path)
    getattr(library, maker).restype = ctypes.c_void_p
    libraries.append(library)
  return libraries


def _tools(*names):
  for name in names:
    if shutil.which(name) is None:
      raise UserError(f'{name} is not installed')


# Adapter, its usual rates, what looks whether it is there, and its version: '1' where no tool tells it, so
# that scores kept of another release of it have to be deleted by hand.
PEERS = {
    'opus': (opus, (6, 9, 12), lambda: None, f'libsndfile {soundfile.__libsndfile_version__}'),
    'codec2': (codec2, (1.2, 2.4, 3.2), lambda: _tools('c2enc', 'c2dec'), '1'),
    'amrwb': (amrwb, (6.6, 12.65), _amrwb_libraries, '1'),
    'speex': (speex, (4, 8), lambda: _tools('speexenc', 'speexdec'), '1'),
}


def make_peers(names):
  """The systems of peers that are installed, each at its usual rates.

  Args:
    names: of `PEERS`, or of a neural codec as `neural_peers.load` reads it.

  Returns:
    (systems, {name: why it is absent}).
  """
  systems, absent = [], {}
  for name in names:
    try:
      if name in PEERS:
        run, rates, look, version = PEERS[name]
        look()
        systems += [System(name, kbps, functools.partial(run, kbps=kbps), version) for kbps in rates]
      else:
        from affectcodec_jax.evaluation import neural_peers
        systems += neural_peers.load(name)
    except UserError as e:
      absent[name] = str(e)
  return systems, absent
