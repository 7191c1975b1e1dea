"""The command `stream`: raw PCM from a pipe through encoder and decoder into another, as it comes.

Samples are signed 16-bit little-endian, mono, 16 kHz, on both sides. As many go out as come in.
"""

import os
import sys

import numpy as np

from affectcodec_jax.common.errors import UserError

_BLOCK = 1 << 16  # bytes: at most so much is read at once, and as little as there is


def pipe(args, source, sink, load):
  """Runs the command.

  Args:
    args: its `kbps`, `chunk`, `lookahead`, `gain_db`, `loss`, `seed` and `checkpoint`.
    source, sink: binary files.
    load: a function of the checkpoint that gives the codec; called when the arguments are checked.

  Raises:
    UserError: nothing to read, a terminal in the place of a pipe, or an argument that cannot be.
  """
  if not 0 <= args.loss <= 1:
    raise UserError(f'--loss {args.loss:g} is a share of the frames: 0 to 1')
  if args.seed < 0:
    raise UserError(f'--seed {args.seed} must not be negative')
  if source.isatty() or sink.isatty():
    raise UserError('stream reads and writes raw PCM: sox in.wav -t raw -r 16000 -e signed -b 16 -c 1 - | '
                    'python -m affectcodec_jax stream > out.pcm')
  codec = load(args.checkpoint)
  encoder = codec.stream_encoder(args.kbps, args.chunk, args.lookahead, args.gain_db)
  decoder = codec.stream_decoder(args.kbps, args.chunk, args.lookahead, args.gain_db)
  seconds = encoder.latency + decoder.latency
  print(f'stream: {1000 * seconds:g} ms algorithmic latency', file=sys.stderr)
  rng = np.random.default_rng(args.seed)
  try:
    _run(encoder, decoder, source, sink, lambda frames: rng.random(frames) < args.loss)
  except BrokenPipeError:  # whoever listened has enough
    os.dup2(os.open(os.devnull, os.O_WRONLY), sink.fileno())  # the interpreter flushes once more


def _run(encoder, decoder, source, sink, lose):
  read = written = 0
  rest = b''

  def write(audio):
    nonlocal written
    sink.write(np.clip(np.round(audio * 32768), -32768, 32767).astype('<i2').tobytes())
    sink.flush()
    written += len(audio)

  def transmit(codes):
    # A code of -1 is none: the decoder takes its frame for lost.
    return decoder.push(np.where(lose(len(codes))[:, None], -1, codes))

  while block := source.read1(_BLOCK):
    block = rest + block
    whole = len(block) // 2 * 2
    samples, rest = np.frombuffer(block[:whole], '<i2'), block[whole:]
    read += len(samples)
    write(transmit(encoder.push(samples)))
  if not read:
    raise UserError('no samples came in; stream reads raw signed 16-bit mono PCM at 16 kHz from a pipe')
  if rest:
    print('stream: an odd byte at the end is left out; is the input 16-bit PCM?', file=sys.stderr)
  last = np.concatenate([transmit(encoder.flush()), decoder.flush()])
  write(last[:read - written])  # the last frame may be longer than what is left of the recording
