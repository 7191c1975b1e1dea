"""Files and folders through a codec: what encode and decode do with each file, in several processes.

A folder's files keep their places: `a/b.wav` becomes `a/b.afc` below the other folder. An output that is
whole and newer than its input is kept, so the same command goes on where it was stopped. Sound that is
there already is not replaced unasked: it may be the recordings themselves.
"""

import logging
import pathlib
import sys

from affectcodec_jax import load
from affectcodec_jax.common import progress, workers
from affectcodec_jax.common.errors import UserError
from affectcodec_jax.common.files import check_local

_job = ()  # of a process: the codec, the function of a file, the command's arguments


def encode_file(get_codec, args, source, target):
  """Speech file to token file; returns (seconds, kbps). The codec is got when the file is read."""
  from affectcodec_jax import audio
  from affectcodec_jax.tokens import afc
  samples = audio.read_audio(source)
  codec = get_codec()
  tokens = codec.encode_batch([samples], audio.SAMPLE_RATE, args.kbps, progress=show_pieces,
                              refine=args.refine)[0]
  if args.entropy:
    import dataclasses
    tokens = dataclasses.replace(tokens, digit_bits=_digit_bits(codec))
  afc.write_tokens(target, tokens)
  return len(samples) / audio.SAMPLE_RATE, tokens.kbps


def decode_file(get_codec, args, source, target):
  """Token file to speech file; returns its seconds."""
  from affectcodec_jax import audio
  from affectcodec_jax.tokens import afc
  tokens = afc.read_tokens(source)
  samples = get_codec().decode_batch([tokens], args.kbps, progress=show_pieces)[0]
  audio.write_audio(target, samples)
  return len(samples) / audio.SAMPLE_RATE


def show_pieces(pieces):
  """A bar over the pieces of 20 s of a recording, where there are several."""
  return progress.bar(pieces, unit='piece', leave=False) if len(pieces) > 1 else pieces


def encode_folder(args):
  """`encode` of a folder of speech; returns the exit status."""
  from affectcodec_jax.data.folder import SUFFIXES
  from affectcodec_jax.inference.refine import check_steps
  check_steps(args.refine)
  return _convert(args, SUFFIXES, '.afc', encode_file, _is_encoded, 'encoded')


def decode_folder(args):
  """`decode` of a folder of token files, to WAV; returns the exit status."""
  return _convert(args, ('.afc',), '.wav', decode_file, _is_decoded, 'decoded')


def _convert(args, suffixes, suffix, convert, is_done, verb):
  if args.workers is not None and args.workers < 1:
    raise UserError('--workers must be at least 1')
  check_local(args.output)
  tasks = _plan(pathlib.Path(args.input), pathlib.Path(args.output), suffixes, suffix)
  codec = load(args.checkpoint)  # here too: what is wrong with it, or with the rate, is said at once
  codec.num_stages(args.kbps)
  count = min(workers.count(args.workers, codec.backend, '--workers'), len(tasks))
  done, failed = {'made': 0, 'kept': 0}, []
  try:
    with progress.bar(total=len(tasks), unit='file') as bar:
      for (source, target), (state, reason) in _results(codec, args, convert, is_done, tasks, count):
        if state == 'failed':
          failed.append(reason if str(source) in reason else f'{source}: {reason}')
        else:
          done[state] += 1
          logging.getLogger(__name__).info('%s: %s', target, verb if state == 'made' else 'kept')
        bar.update()
  except workers.Died as e:
    raise UserError('a process died, perhaps for lack of memory; the same command goes on where it '
                    'stopped, and --workers 1 needs least') from e
  for line in failed:
    print(f'error: {progress.escape_control(line)}', file=sys.stderr)
  print(f'{args.output}: {done["made"]} {verb}, {done["kept"]} kept as they were, {len(failed)} failed')
  return 2 if failed else 0


def _plan(source, out, suffixes, suffix):
  """[(input, output)] of a folder's files, in order.

  Raises:
    UserError: no such file, two for one output, or `out` lies inside the folder or is a file.
  """
  from affectcodec_jax.data.folder import find_files
  if str(out) == '-':
    raise UserError(f'{source}: a folder does not go to standard output; give a folder for the output')
  if out.exists() and not out.is_dir():
    raise UserError(f'{out}: is a file; {source} is a folder, give a folder for the output')
  if out.resolve().is_relative_to(source.resolve()):
    raise UserError(f'{out}: lies in {source} itself; choose a folder outside of it')
  tasks, origin = [], {}
  for path in find_files(source, suffixes):
    target = (out / path.relative_to(source)).with_suffix(suffix)
    if target in origin:
      raise UserError(f'{origin[target]} and {path} would both become {target}; rename one of them')
    origin[target] = path
    tasks.append((path, target))
  if not tasks:
    raise UserError(f'{source}: holds no file that ends in {", ".join(suffixes)}')
  return tasks


def _results(codec, args, convert, is_done, tasks, count):
  """Yields (task, (state, reason)) in order."""
  if count == 1:
    _begin(codec, args, convert, is_done)
    for task in tasks:
      yield task, _one(task)
  else:
    with workers.pool(count, _begin, (None, args, convert, is_done)) as pool:
      yield from workers.in_order(pool, _one, tasks, 2 * count)


def _begin(codec, args, convert, is_done):
  """Sets up a process; without a codec it loads its own."""
  global _job
  _job = codec or load(args.checkpoint), args, convert, is_done


def _one(task):
  """('made', ''), ('kept', '') or ('failed', why) of one (input, output)."""
  codec, args, convert, is_done = _job
  source, target = task
  try:
    overwrite = getattr(args, 'overwrite', None)  # None of encode: tokens can be made again
    if not overwrite and target.is_file() and (
        target.stat().st_mtime_ns > source.stat().st_mtime_ns and is_done(codec, args, source, target)):
      return 'kept', ''
    if overwrite is False and target.exists():
      raise UserError(f'{target}: is there already, older than {source} or of another length; --overwrite '
                      'replaces it')
    target.parent.mkdir(parents=True, exist_ok=True)
    convert(lambda: codec, args, source, target)
    return 'made', ''
  except UserError as e:
    return 'failed', str(e)
  except Exception as e:  # a damaged file can fail in ways of its own; the others go on
    return 'failed', f'{type(e).__name__}: {" ".join(str(e).split())[:200]}'


def _is_encoded(codec, args, source, target):
  """Whether a token file is whole, of this codec and rate, and entropy coded or not as asked for."""
  del source
  from affectcodec_jax.tokens import afc
  try:
    tokens = afc.read_tokens(target)
  except UserError:
    return False
  return (tokens.fingerprint == codec.fingerprint and tokens.shape[1] == codec.num_stages(args.kbps)
          and tokens.digit_bits == (_digit_bits(codec) if args.entropy else ()))


def _is_decoded(codec, args, source, target):
  """Whether a sound file has as many samples as its tokens say. The rate it was decoded at is not seen."""
  del codec, args
  from affectcodec_jax import audio
  from affectcodec_jax.tokens import afc
  try:
    return len(audio.read_audio(target)) == afc.read_tokens(source).num_samples
  except UserError:
    return False


def _digit_bits(codec):
  from affectcodec_jax.models.codec import digit_bits
  return digit_bits(codec.config.model)
