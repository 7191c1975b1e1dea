"""Commands on corpora: tokenize, pack, prepare."""

from affectcodec_jax.cli.command import Command, add_checkpoint, add_kbps


def _tokenize_options(p):
  p.add_argument('data', help='a folder of audio files, a .jsonl manifest or a recording')
  p.add_argument('out', help='folder for the shards; the same command goes on where it stopped')
  add_checkpoint(p)
  add_kbps(p)
  p.add_argument('--split', help='which split of the data (default: all)')
  p.add_argument('--format', default='arrayrecord', choices=('arrayrecord', 'parquet', 'both'))
  p.add_argument('--shard-files', type=int, default=1000, help='recordings a shard (default 1000)')
  p.add_argument('--processes', type=int, help='default: one a core, or a single one on an accelerator')
  p.add_argument('--batch', type=int, default=1,
                 help='pieces of 20 s or less that a process computes at once (default 1)')


def _pack_options(p):
  p.add_argument('data', help='a folder of audio files or a .jsonl manifest')
  p.add_argument('out', help='folder for the shards; the same command goes on where it stopped')
  p.add_argument('--split', help='which split of the data (default: all)')
  p.add_argument('--shard-files', type=int, default=1000, help='recordings a shard (default 1000)')
  p.add_argument('--processes', type=int, help='default: one a core')


def _prepare_options(p):
  p.add_argument('name', help='of the set, such as crema_d')
  p.add_argument('--data_dir', help="where to (default: TensorFlow Datasets' own folder)")


def _tokenize(args):
  from affectcodec_jax import load  # imports JAX in the processes that call it
  from affectcodec_jax.tokens import corpus as tokenize_corpus
  from affectcodec_jax.tokens import shards as token_shards
  formats = token_shards.FORMATS if args.format == 'both' else (args.format,)
  tokenize_corpus.tokenize(load, args.data, args.out, args.checkpoint, args.kbps, args.split, formats,
                           args.shard_files, args.processes, args.batch)


def _pack(args):
  from affectcodec_jax.data.pack import pack
  pack(args.data, args.out, args.split, args.shard_files, args.processes)


def _prepare(args):
  from affectcodec_jax.data import tfds
  print(tfds.prepare(args.name, args.data_dir))


COMMANDS = {
    'tokenize': Command('corpus to shards of tokens, for training language models',
                        'tokenize SPEECH/manifest.jsonl tokens --kbps 1.5', _tokenize_options, _tokenize),
    'pack': Command('corpus to shards of FLAC, for training from few large files',
                    'pack SPEECH/manifest.jsonl packed', _pack_options, _pack, """\
FLAC stays as it is, whole numbers of up to 24 bits become FLAC without loss, all else FLAC of 24 bits; each
keeps its rate. With data.source=arrayrecord and data.path=OUT a training reads it as the corpus itself.
Recordings that are damaged are left out, and OUT/skipped.jsonl says why."""),
    'prepare': Command('downloads a set of TensorFlow Datasets and prepares it for random access',
                       'prepare crema_d', _prepare_options, _prepare,
                       "Preparing is the set's own code, and most sets use TensorFlow in it; reading\n"
                       'never does.'),
}
