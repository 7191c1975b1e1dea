"""Command line: `python -m affectcodec_jax COMMAND`."""

import argparse
import dataclasses
import os
import pathlib
import sys

from affectcodec_jax.common.errors import UserError, run_command


def main(argv=None):
  """Entry point; returns the exit status."""
  parser = argparse.ArgumentParser(
      prog='python -m affectcodec_jax', description='A neural speech codec that keeps the feeling.')
  commands = parser.add_subparsers(dest='command', required=True)

  p = commands.add_parser('encode', help='speech file to token file')
  p.add_argument('input', help='WAV, FLAC, OGG, MP3, M4A …, of any sample rate, or - for standard input')
  p.add_argument('output', help='token file, .afc, or - for standard output')
  p.add_argument('--checkpoint', default='pretrained', help='workdir of a training run')
  p.add_argument('--kbps', type=float, help='1.5, 3 or 6 (default: the highest)')
  p.add_argument('--entropy', action='store_true', help='a smaller file of the same tokens')

  p = commands.add_parser('decode', help='token file to 16 kHz speech file')
  p.add_argument('input', help='token file, .afc, or -')
  p.add_argument('output', help='.wav, .flac, .ogg, .opus or .mp3, or - for WAV to standard output')
  p.add_argument('--checkpoint', default='pretrained', help='the one that encoded it')
  p.add_argument('--kbps', type=float, help='decode at a lower rate than the file has')

  p = commands.add_parser('stream', help='raw 16-bit mono PCM at 16 kHz through the codec, pipe to pipe')
  p.add_argument('--checkpoint', default='pretrained', help='workdir of a training run')
  p.add_argument('--kbps', type=float, help='1.5, 3 or 6 (default: the highest)')
  p.add_argument('--chunk', type=int, default=10, help='frames of 20 ms computed together (default 10)')
  p.add_argument('--lookahead', type=int, help='frames awaited after them (default: all that count)')
  p.add_argument('--gain-db', type=float, default=0.0, help='that makes speech about -24 dBFS (default 0)')
  p.add_argument('--loss', type=float, default=0.0, help='share of frames to lose, for trying (default 0)')
  p.add_argument('--seed', type=int, default=0, help='of those losses')

  p = commands.add_parser('truncate', help='token file to a lower rate; needs no model')
  p.add_argument('input')
  p.add_argument('output')
  p.add_argument('--stages', type=int, required=True, help='stages to keep: 2 is 1.5 kbps')

  p = commands.add_parser('info', help='what a token file, a training run or the packaged codec holds')
  p.add_argument('path', nargs='?', default='pretrained')

  p = commands.add_parser('tokenize', help='corpus to shards of tokens, for training language models')
  p.add_argument('data', help='a folder of audio files, a .jsonl manifest or a recording')
  p.add_argument('out', help='folder for the shards; the same command goes on where it stopped')
  p.add_argument('--checkpoint', default='pretrained', help='workdir of a training run')
  p.add_argument('--kbps', type=float, help='1.5, 3 or 6 (default: the highest)')
  p.add_argument('--split', help='which split of the data (default: all)')
  p.add_argument('--format', default='arrayrecord', choices=('arrayrecord', 'parquet', 'both'))
  p.add_argument('--shard-files', type=int, default=1000, help='recordings a shard (default 1000)')
  p.add_argument('--processes', type=int, help='default: one a core, or a single one on an accelerator')
  p.add_argument('--batch', type=int, default=1,
                 help='pieces of 20 s or less that a process computes at once (default 1)')

  p = commands.add_parser('emotion', help='what a token file says of emotion; needs no model')
  p.add_argument('input', help='token file, .afc')
  p.add_argument('--json', action='store_true', help='print one JSON object')
  p.add_argument('--predictor', help='of python -m affectcodec_jax.analysis.train_token_emotion, for the '
                 "codec that encoded (default: the packaged codec's)")

  p = commands.add_parser('export', help='encoder and decoder as StableHLO or ONNX, for other runtimes')
  p.add_argument('output', help='folder to write')
  p.add_argument('--checkpoint', default='pretrained', help='workdir of a training run')
  p.add_argument('--format', choices=('stablehlo', 'onnx', 'both'), default='both')

  args = parser.parse_args(argv)
  command = {'encode': _encode, 'decode': _decode, 'stream': _stream, 'truncate': _truncate, 'info': _info,
             'emotion': _emotion, 'tokenize': _tokenize, 'export': _export}[args.command]
  return run_command(lambda: command(args))


def _check_output(args):
  """Refuses an output that cannot be written before any work is done for it; '-' is standard output."""
  from affectcodec_jax.common.files import check_file
  if args.output == '-':
    return
  check_file(args.output)
  if os.path.exists(args.output) and os.path.exists(args.input) and os.path.samefile(
      args.input, args.output):
    raise UserError(f'{args.output}: input and output are the same file')


def _report(args, *facts):
  """One line about what was written; it does not mix with what was written to standard output."""
  if args.output == '-':
    print('standard output:', *facts, file=sys.stderr)
  else:
    print(f'{args.output}:', ', '.join([*facts, f'{os.path.getsize(args.output)} bytes']))


def _encode(args):
  from affectcodec_jax import audio
  from affectcodec_jax.tokens import afc
  _check_output(args)
  samples = audio.read_audio(args.input)
  from affectcodec_jax.api import load
  codec = load(args.checkpoint)
  tokens = codec.encode(samples, audio.SAMPLE_RATE, args.kbps)
  if args.entropy:
    from affectcodec_jax.models.codec import digit_bits
    tokens = dataclasses.replace(tokens, digit_bits=digit_bits(codec.config.model))
  afc.write_tokens(args.output, tokens)
  seconds = len(samples) / audio.SAMPLE_RATE
  _report(args, f'{seconds:.2f} s, {tokens.kbps:g} kbps')


def _decode(args):
  from affectcodec_jax import audio
  from affectcodec_jax.tokens import afc
  _check_output(args)
  audio.check_writable_kind(args.output)
  tokens = afc.read_tokens(args.input)
  from affectcodec_jax.api import load
  codec = load(args.checkpoint)
  samples = codec.decode(tokens, args.kbps)
  audio.write_audio(args.output, samples)
  _report(args, f'{len(samples) / audio.SAMPLE_RATE:.2f} s')


def _stream(args):
  from affectcodec_jax.inference.pipe import pipe
  if sys.stdin is None or sys.stdout is None:
    raise UserError('stream reads from standard input and writes to standard output; one of them is closed')
  pipe(args, sys.stdin.buffer, sys.stdout.buffer)


def _truncate(args):
  from affectcodec_jax.tokens import afc
  _check_output(args)
  afc.truncate_file(args.input, args.output, args.stages)
  _report(args)


def _tokenize(args):
  from affectcodec_jax import load  # imports JAX in the processes that call it
  from affectcodec_jax.tokens import corpus as tokenize_corpus
  from affectcodec_jax.tokens import shards as token_shards
  formats = token_shards.FORMATS if args.format == 'both' else (args.format,)
  tokenize_corpus.tokenize(load, args.data, args.out, args.checkpoint, args.kbps, args.split, formats,
                           args.shard_files, args.processes, args.batch)


def _info(args):
  if args.path == 'pretrained' or os.path.isdir(args.path):
    import jax

    from affectcodec_jax.api import load
    codec = load(args.path)
    c = codec.config.model
    count = sum(x.size for x in jax.tree.leaves(codec.params))
    print(f'codec       {args.path}, step {codec.step}\n'
          f'model       {codec.fingerprint.hex()}\n'
          f'parameters  {count / 1e6:.2f} M and a {next(iter(codec.frozen))} of '
          f'{sum(x.size for x in jax.tree.leaves(codec.frozen)) / 1e6:.2f} M\n'
          f'quantiser   {c.quantizer}, {c.num_stages} stages of {codec.stage_kbps:g} kbps\n'
          f'rates       {", ".join(f"{codec.stage_kbps * m:g}" for m in codec.config.rates)} kbps')
  else:
    from affectcodec_jax.tokens import afc
    tokens = afc.read_tokens(args.path)
    size, packed = os.path.getsize(args.path), afc.packed_size(tokens)
    coded = (f', entropy coded: {8 * (packed - size)} of {8 * packed} bits saved ({1 - size / packed:.1%})'
             if tokens.digit_bits else '')
    print(f'tokens      {args.path}, {size} bytes{coded}\n'
          f'model       {tokens.fingerprint.hex()}\n'
          f'duration    {tokens.num_samples / tokens.sample_rate:.3f} s, {tokens.num_samples} '
          f'samples at {tokens.sample_rate} Hz\n'
          f'codes       {tokens.shape[0]} frames x {tokens.shape[1]} stages of '
          f'{tokens.bits_per_code} bits, {tokens.kbps:g} kbps\n'
          f'gain        {tokens.gain_db:+.2f} dB')


def _emotion(args):
  from affectcodec_jax.emotion.labels import EMOTIONS
  from affectcodec_jax.tokens import afc
  from affectcodec_jax.tokens import emotion as token_emotion
  tokens = afc.read_tokens(args.input)
  predictor = token_emotion.load(args.predictor)
  probabilities = predictor.predict(tokens)
  dimensions = token_emotion.valence_arousal_dominance(probabilities)
  stages = predictor.stages_used(tokens.shape[1])
  if args.json:
    import json
    print(json.dumps({'file': args.input, 'model': tokens.fingerprint.hex(), 'stages_used': stages,
                      'probabilities': dict(zip(EMOTIONS, probabilities.tolist()))} | dimensions))
  else:
    print(f'{args.input}: {stages} of {tokens.shape[1]} stages used')
    for name, p in sorted(zip(EMOTIONS, probabilities), key=lambda pair: -pair[1]):
      print(f'{name:11} {p:.3f}')
    print('a mapping of these to ratings of the words, 1 to 9:')
    for name, value in dimensions.items():
      print(f'{name:11} {value:.2f}')


def _export(args):
  import numpy as np

  from affectcodec_jax.api import load
  from affectcodec_jax.data.synthetic import SyntheticSource
  from affectcodec_jax.inference import export
  clips = SyntheticSource(8)
  speech = np.concatenate([clips[i]['audio'] for i in range(8)])
  card = export.save(load(args.checkpoint), args.output, speech, export.FORMATS[args.format])
  for of_format in card['files'].values():
    for name in ('encoder', 'decoder'):
      path = pathlib.Path(args.output, of_format[name])
      print(f'{path}: {path.stat().st_size / 1e6:.1f} MB')
    print(f'  beside the codec: {of_format["codes_that_differ"]:.2%} of codes differ at most, '
          f'audio by {of_format["audio_difference"]:.1e}')


if __name__ == '__main__':
  sys.exit(main())
