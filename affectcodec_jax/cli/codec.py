"""Commands on speech and token files: encode, decode, listen, stream, info, truncate, emotion."""

import os
import sys

from affectcodec_jax import load
from affectcodec_jax.cli.command import Command, add_checkpoint, add_kbps, add_refine
from affectcodec_jax.common import buckets
from affectcodec_jax.common.errors import UserError


def _encode_options(p):
  p.add_argument('input', help='WAV, FLAC, OGG, MP3, M4A …, of any sample rate, a folder of them, or - for '
                 'standard input')
  p.add_argument('output', help='token file, .afc, folder, or - for standard output')
  add_checkpoint(p)
  add_kbps(p)
  p.add_argument('--entropy', action='store_true', help='a smaller file of the same tokens')
  add_refine(p)
  _add_workers(p)


def _decode_options(p):
  p.add_argument('input', help='token file, .afc, a folder of them, or -')
  p.add_argument('output', help='.wav, .flac, .ogg, .opus or .mp3, folder, or - for WAV to standard output')
  add_checkpoint(p, 'the one that encoded it (default: the packaged codec)')
  p.add_argument('--kbps', type=float, help='decode at a lower rate than the file has')
  p.add_argument('--overwrite', action='store_true', help='of a folder: replace sound that is there')
  _add_workers(p)


def _add_workers(p):
  p.add_argument('--workers', type=int, metavar='N',
                 help='processes for a folder (default: one a core, or a single one on an accelerator)')


def _listen_options(p):
  p.add_argument('input', help='WAV, FLAC, OGG, MP3, M4A …, of any sample rate, or - for standard input')
  p.add_argument('-o', '--output', metavar='PAGE', help='file to write (default: NAME.listen.html here)')
  add_checkpoint(p)
  p.add_argument('--seconds', type=float, default=30.0, help='of its beginning (default 30)')
  p.add_argument('--no-open', action='store_true', help='do not open the page in the browser')


def _stream_options(p):
  add_checkpoint(p)
  add_kbps(p)
  p.add_argument('--chunk', type=int, default=10, help='frames of 20 ms computed together (default 10)')
  p.add_argument('--lookahead', type=int, help='frames awaited after them (default: all that count)')
  p.add_argument('--gain-db', type=float, default=0.0, help='that makes speech about -24 dBFS (default 0)')
  p.add_argument('--loss', type=float, default=0.0, help='share of frames to lose, for trying (default 0)')
  p.add_argument('--seed', type=int, default=0, help='of those losses')


def _info_options(p):
  p.add_argument('path', nargs='?', default='pretrained',
                 help='token file, - for one from standard input, or workdir of a training run (default: '
                 'the packaged codec)')


def _truncate_options(p):
  p.add_argument('input', help='token file, .afc, or -')
  p.add_argument('output', help='token file of fewer stages, or -')
  p.add_argument('--stages', type=int, required=True, help='stages to keep: 2 is 1.5 kbps')


def _emotion_options(p):
  p.add_argument('input', help='token file, .afc, or -')
  p.add_argument('--json', action='store_true', help='print one JSON object')
  p.add_argument('--predictor', help="of 'analyse token_emotion', for the codec that encoded (default: the "
                 "packaged codec's)")


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
  from affectcodec_jax.cli import folders
  if os.path.isdir(args.input):
    return folders.encode_folder(args)
  _check_output(args)
  seconds, kbps = folders.encode_file(lambda: load(args.checkpoint), args, args.input, args.output)
  _report(args, f'{seconds:.2f} s, {kbps:g} kbps')


def _decode(args):
  from affectcodec_jax import audio
  from affectcodec_jax.cli import folders
  if os.path.isdir(args.input):
    return folders.decode_folder(args)
  _check_output(args)
  audio.check_writable_kind(args.output)
  seconds = folders.decode_file(lambda: load(args.checkpoint), args, args.input, args.output)
  _report(args, f'{seconds:.2f} s')


def _listen(args):
  import pathlib

  from affectcodec_jax import audio
  from affectcodec_jax.common.files import write_whole
  from affectcodec_jax.evaluation.listen import make_page
  if not 0.02 <= args.seconds <= 600:
    raise UserError(f'--seconds {args.seconds:g}: give 0.02 to 600')
  name = 'recording' if args.input == '-' else pathlib.Path(args.input).name
  args.output = args.output or f'{pathlib.Path(name).stem}.listen.html'
  _check_output(args)
  samples = audio.read_audio(args.input)
  shown = samples[:round(args.seconds * audio.SAMPLE_RATE)]
  page = make_page(load(args.checkpoint), shown, name, len(samples) / audio.SAMPLE_RATE)
  write_whole(args.output, page.encode('utf-8', 'replace'))  # a file's name need not be UTF-8
  _report(args, f'{len(shown) / audio.SAMPLE_RATE:.2f} s')
  if args.output != '-' and not args.no_open:
    _open_page(pathlib.Path(args.output).resolve())


def _open_page(path):
  """Shows a page in the browser, where there is a screen: without one a text browser would come up."""
  import webbrowser
  if sys.platform in ('darwin', 'win32') or {'DISPLAY', 'WAYLAND_DISPLAY', 'BROWSER'} & set(os.environ):
    webbrowser.open(path.as_uri())


def _stream(args):
  from affectcodec_jax.cli.stream import pipe
  if sys.stdin is None or sys.stdout is None:
    raise UserError('stream reads from standard input and writes to standard output; one of them is closed')
  pipe(args, sys.stdin.buffer, sys.stdout.buffer, load)


def _info(args):
  if args.path == 'pretrained' or os.path.isdir(args.path) or buckets.is_address(args.path):
    import jax
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
    from affectcodec_jax.common.files import read_bytes
    from affectcodec_jax.tokens import afc
    name = 'standard input' if args.path == '-' else args.path
    data = read_bytes(args.path)
    tokens = afc.unpack(data, name)
    size, packed = len(data), afc.packed_size(tokens)
    coded = (f', entropy coded: {8 * (packed - size)} of {8 * packed} bits saved ({1 - size / packed:.1%})'
             if tokens.digit_bits else '')
    print(f'tokens      {name}, {size} bytes{coded}\n'
          f'model       {tokens.fingerprint.hex()}\n'
          f'duration    {tokens.num_samples / tokens.sample_rate:.3f} s, {tokens.num_samples} '
          f'samples at {tokens.sample_rate} Hz\n'
          f'codes       {tokens.shape[0]} frames x {tokens.shape[1]} stages of '
          f'{tokens.bits_per_code} bits, {tokens.kbps:g} kbps\n'
          f'gain        {tokens.gain_db:+.2f} dB')


def _truncate(args):
  from affectcodec_jax.tokens import afc
  _check_output(args)
  afc.truncate_file(args.input, args.output, args.stages)
  _report(args)


def _emotion(args):
  from affectcodec_jax.common.labels import EMOTIONS
  from affectcodec_jax.tokens import afc
  from affectcodec_jax.tokens import emotion as token_emotion
  tokens = afc.read_tokens(args.input)
  predictor = token_emotion.load(args.predictor)
  probabilities = predictor.predict(tokens)
  dimensions = token_emotion.valence_arousal_dominance(probabilities)
  stages = predictor.stages_used(tokens.shape[1])
  kind, _ = predictor.weights[stages]
  if args.json:
    import json
    result = {'file': args.input, 'model': tokens.fingerprint.hex(), 'stages_used': stages, 'blocks': kind,
              'probabilities': dict(zip(EMOTIONS, probabilities.tolist()))}
    print(json.dumps(result | dimensions))
  else:
    blocks = 'both blocks' if kind == 'both' else f'the {kind} block'
    print(f'{args.input}: read from {blocks} of {stages} of {tokens.shape[1]} stages')
    for name, p in sorted(zip(EMOTIONS, probabilities), key=lambda pair: -pair[1]):
      print(f'{name:11} {p:.3f}')
    print('a mapping of these to ratings of the words, 1 to 9:')
    for name, value in dimensions.items():
      print(f'{name:11} {value:.2f}')


_FOLDERS = """\
Of a folder every file is converted, to the same place in the other folder (hidden files are left out). An
output that is whole and newer than its input is kept: the same command goes on where it was stopped. Files
that cannot be converted are named at the end, and the exit code is 2; the others are done."""

COMMANDS = {
    'encode': Command('speech file to token file, or a folder of them',
                      'encode in.wav out.afc --kbps 1.5', _encode_options, _encode, f"""{_FOLDERS}
With another --refine give another folder: a token file does not say how its codes were found."""),
    'decode': Command('token file to 16 kHz speech file, or a folder of them', 'decode out.afc out.wav',
                      _decode_options, _decode, f"""{_FOLDERS}
At another --kbps give another folder: a WAV does not say at which rate it was decoded."""),
    'listen': Command('one page to hear and see a recording at every rate', 'listen in.wav -o page.html',
                      _listen_options, _listen, """\
Players and spectrograms with pitch of the original and of each rate, their sizes, the tokens with the
emotion digits marked, and the emotion that the packaged teacher and an independent judge classify. The page
needs nothing else, and opens in the browser where there is a screen."""),
    'stream': Command('raw 16-bit mono PCM at 16 kHz through the codec, pipe to pipe',
                      'stream --kbps 1.5 < in.pcm > out.pcm', _stream_options, _stream),
    'info': Command('what a token file, a training run or the packaged codec holds', 'info out.afc',
                    _info_options, _info),
    'truncate': Command('token file to a lower rate; needs no model', 'truncate six.afc low.afc --stages 2',
                        _truncate_options, _truncate),
    'emotion': Command('what a token file says of emotion; needs no model', 'emotion out.afc --json',
                       _emotion_options, _emotion),
}
