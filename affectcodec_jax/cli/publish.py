"""Commands that make codecs for others: release, export."""

from affectcodec_jax import load
from affectcodec_jax.cli.command import Command, add_checkpoint


def _release_options(p):
  p.add_argument('run', help='workdir of a training run')
  p.add_argument('out', help='folder to write')


def _export_options(p):
  p.add_argument('output', help='folder to write')
  add_checkpoint(p)
  p.add_argument('--format', choices=('stablehlo', 'onnx', 'both'), default='both')


def _release(args):
  import pathlib

  from affectcodec_jax.training import publish
  for path in publish.save(args.run, pathlib.Path(args.out)):
    print(f'{path}: {path.stat().st_size / 1e6:.1f} MB')


def _export(args):
  import pathlib

  import numpy as np

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


COMMANDS = {
    'release': Command('training run to a folder of small files, as the packaged codec is',
                       'release runs/mine runs/released', _release_options, _release),
    'export': Command('encoder and decoder as StableHLO or ONNX, for other runtimes',
                      'export exported --format onnx', _export_options, _export),
}
