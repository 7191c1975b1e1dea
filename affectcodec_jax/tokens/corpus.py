"""A corpus through the encoder, into shards of tokens: `python -m affectcodec_jax tokenize DATA OUT`.

Processes encode; this one, which needs no JAX, hands out the recordings, takes the tokens back in order and
writes each shard when it is whole. Which recordings a shard holds follows from their list alone, so a run
that was stopped goes on with the first shard that is missing and ends with the same files.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import functools
import json
import pathlib
import time
from typing import Any

from affectcodec_jax.common import progress, workers
from affectcodec_jax.common.constants import HOP_LENGTH, PIECE_FRAMES, SAMPLE_RATE
from affectcodec_jax.common.errors import UserError, describe
from affectcodec_jax.common.files import (
  AnyPath,
  differences,
  held_alone,
  make_folder,
  parse_json,
  write_json,
  write_whole,
)
from affectcodec_jax.common.retry import why_left_out, with_retries
from affectcodec_jax.data.folder import list_split
from affectcodec_jax.data.rows import list_digest
from affectcodec_jax.tokens import shards as token_shards
from affectcodec_jax.tokens.afc import Tokens

Row = dict[str, Any]  # what a manifest says of a recording, its path and its key
Load = Callable[[AnyPath], Any]  # gives a codec: see `affectcodec_jax.load`
Encoded = tuple[Tokens | None, str]  # tokens or, where there are none, the reason
Encode = Callable[[Sequence[AnyPath]], list[Encoded]]
Chunk = tuple[int, list[Row]]  # number of the shard, recordings of it

_VERSION = 1  # of the files; a folder of another version is not gone on with


def tokenize(load: Load, data: AnyPath, out: AnyPath, checkpoint: AnyPath = 'pretrained',
             kbps: float | None = None, split: str | None = None, formats: Sequence[str] = ('arrayrecord',),
             shard_files: int = 1000, processes: int | None = None, batch: int = 1) -> dict[str, float]:
  """Writes the tokens of a corpus to the folder `out`, or goes on doing so.

  A recording that cannot be read or encoded is left out, and listed in `out`/skipped.jsonl with the reason.

  Args:
    load: a function of the checkpoint that gives the codec, which the processes import by its name:
      `affectcodec_jax.load`.
    data: a folder of audio files or a .jsonl manifest.
    out: folder for the shards.
    checkpoint: what `load` gets.
    kbps: rate; None is the highest.
    split: which split of the data, None for all.
    formats: of 'arrayrecord' and 'parquet'.
    shard_files: recordings a shard.
    processes: None is one a core, and a single one on an accelerator, which it has to itself.
    batch: pieces computed at once.

  Returns:
    {'clips', 'seconds', 'skipped'}: of all shards, in numbers.

  Raises:
    UserError: no such data, codec or rate; `out` holds tokens of something else, or another process writes
      to it; several processes on an accelerator, or one without memory; nothing could be encoded.
  """
  for name, value in (('--shard-files', shard_files), ('--processes', processes), ('--batch', batch)):
    if value is not None and value < 1:
      raise UserError(f'{name} must be at least 1')
  if 'parquet' in formats:
    token_shards.require_parquet()
  rows = list_split(data, split)
  shards = [rows[i:i + shard_files] for i in range(0, len(rows), shard_files)]
  folder = make_folder(out)
  try:
    with workers.pool(1) as one:
      backend, codec = one.submit(_describe, load, checkpoint, kbps).result()
  except workers.Died as e:
    raise UserError('the process that loaded the codec died, perhaps for lack of memory') from e
  processes = workers.count(processes, backend, '--processes')
  settings = {'version': _VERSION, **codec, 'formats': list(formats), 'files': len(rows),
              'list_sha256': list_digest(rows), 'shard_files': shard_files, 'shards': len(shards)}
  encode = functools.partial(_encode, load, checkpoint, codec['kbps'], batch)
  with held_alone(folder):
    return _tokenize_shards(encode, shards, folder, settings, batch, processes)


def _tokenize_shards(encode: Encode, shards: list[list[Row]], folder: pathlib.Path,
                     settings: dict[str, Any], batch: int, processes: int) -> dict[str, float]:
  """Makes those of `shards`, lists of recordings, that are missing; see `tokenize`."""
  index, skipped = _resume(folder, settings)
  todo = [i for i in range(len(shards)) if str(i) not in index['shards']]
  if 0 < len(todo) < len(shards):
    print(f'{folder}: {len(shards) - len(todo)} of {len(shards)} shards are finished, going on')
  chunks = [(i, shards[i][k:k + batch]) for i in todo for k in range(0, len(shards[i]), batch)]
  clips, bad, start = [], [], time.time()
  done = {'clips': 0, 'seconds': 0.0}  # in this run
  bar = progress.bar(total=sum(len(shards[i]) for i in todo), unit='clip')
  for (shard, part), results in _in_order(chunks, encode, processes):
    for row, (tokens, reason) in zip(part, results):
      if tokens is None:
        bad.append({'path': row['key'], 'reason': reason, 'shard': shard})
      else:
        known = {k: v for k, v in row.items() if k not in ('path', 'key')}
        clips.append(token_shards.make_clip(tokens, row['key'], known))
        done = {'clips': done['clips'] + 1, 'seconds': done['seconds'] + clips[-1]['seconds']}
    speed = _speed(done, time.time() - start)
    bar.update(len(part))
    bar.set_postfix_str(speed, refresh=False)
    if len(clips) + len(bad) == len(shards[shard]):
      skipped += bad
      seconds = round(sum(c['seconds'] for c in clips), 3)
      index['shards'][str(shard)] = {'clips': len(clips), 'seconds': seconds, 'skipped': len(bad)}
      _finish_shard(folder, shard, index, clips, skipped)
      bar.write(f'shard {shard + 1} of {len(shards)}: {len(clips)} clips, {len(bad)} skipped; {speed}')
      clips, bad = [], []
  bar.close()
  total = {k: sum(s[k] for s in index['shards'].values()) for k in ('clips', 'seconds', 'skipped')}
  if not total['clips']:
    raise UserError(f'{folder}: none of the {settings["files"]} recordings could be encoded, see '
                    f'{token_shards.SKIPPED} there')
  print(f'{folder}: {total["clips"]} clips, {total["seconds"] / 3600:.2f} h in {len(shards)} shards; '
        f'{total["skipped"]} skipped' + (f', see {token_shards.SKIPPED}' if total['skipped'] else '')
        + (f'; this run {_speed(done, time.time() - start)}' if todo else ''))
  return total


def _speed(done: Mapping[str, float], elapsed: float) -> str:
  """Throughput in words, of the time since the first recording, loading of the codec included."""
  return f'{done["clips"] / elapsed:.1f} clips/s, {done["seconds"] / elapsed:.1f} x real time'


def _resume(out: pathlib.Path, settings: dict[str, Any]) -> tuple[dict[str, dict[str, Any]], list[Row]]:
  """(index, lines of skipped recordings) of the finished shards in `out`; a fresh index where it is new.

  Raises:
    UserError: `out` holds tokens that were made otherwise.
  """
  if not (out / token_shards.INDEX).exists():
    if any(out.glob('tokens-*')):
      raise UserError(f'{out}: holds token files and no {token_shards.INDEX}; choose another folder')
    index = {'settings': settings, 'shards': {}}
    write_json(out / token_shards.INDEX, index)
    return index, []
  index = token_shards.read_index(out)
  before = index['settings']
  if before != settings:
    raise UserError(f'{out}: its tokens were made otherwise ({differences(before, settings)}); choose '
                    'another folder, or give what they were made with to go on')
  for left in out.glob('.tokens-*.tmp'):  # of a killed run
    left.unlink(missing_ok=True)
  names = {i: [token_shards.shard_name(int(i), settings['shards'], f) for f in settings['formats']]
           for i in index['shards']}
  index['shards'] = {i: held for i, held in index['shards'].items()
                     if all((out / name).is_file() and (out / name).stat().st_size for name in names[i])}
  path = out / token_shards.SKIPPED
  try:
    lines = [parse_json(line) for line in path.read_text().splitlines()] if path.exists() else []
    return index, [line for line in lines if str(line['shard']) in index['shards']]
  except (ValueError, KeyError, TypeError) as e:
    raise UserError(f'{path}: damaged ({e}); delete it to go on without what it says') from e


def _finish_shard(out: pathlib.Path, shard: int, index: dict[str, dict[str, Any]],
                  clips: list[token_shards.Clip], skipped: list[Row]) -> None:
  """Writes a shard, and only then that it is there."""
  for kind in index['settings']['formats']:
    token_shards.write_shard(
        out / token_shards.shard_name(shard, index['settings']['shards'], kind), clips)
  skipped.sort(key=lambda line: line['shard'])
  lines = ''.join(json.dumps(line) + '\n' for line in skipped)
  write_whole(out / token_shards.SKIPPED, lines.encode())
  index['shards'] = dict(sorted(index['shards'].items(), key=lambda held: int(held[0])))
  write_json(out / token_shards.INDEX, index)


def _in_order(chunks: list[Chunk], encode: Encode, processes: int) -> Iterator[tuple[Chunk, list[Encoded]]]:
  """Yields ((shard, rows), results) of `chunks` in order. What kills its process is skipped, no more."""
  at = 0
  while at < len(chunks):
    try:
      with workers.pool(processes) as pool:
        work = functools.partial(_encode_chunk, encode)
        for chunk, results in workers.in_order(pool, work, chunks[at:], 2 * processes):
          at += 1
          yield chunk, results
    except workers.Died:  # of one of those at work: the next recordings alone, to know which
      yield chunks[at], [_alone(encode, row) for row in chunks[at][1]]
      at += 1


def _alone(encode: Encode, row: Row) -> Encoded:
  """(tokens, reason) of one recording in a process of its own."""
  try:
    with workers.pool(1) as one:
      return one.submit(encode, [row['path']]).result()[0]
  except workers.Died:
    return None, 'the process that encoded it died, perhaps for lack of memory'


# In the processes.


@functools.cache
def _load(load: Load, checkpoint: AnyPath) -> Any:
  return load(checkpoint)


def _describe(load: Load, checkpoint: AnyPath, kbps: float | None) -> tuple[str, dict[str, Any]]:
  """(kind of device, what identifies the codec and rate of the tokens)."""
  codec = _load(load, checkpoint)
  stages = codec.num_stages(kbps)
  return codec.backend, {'model': codec.fingerprint.hex(), 'stages': stages,
                         'kbps': stages * codec.stage_kbps}


def _encode_chunk(encode: Encode, chunk: Chunk) -> list[Encoded]:
  return encode([row['path'] for row in chunk[1]])


def _encode(load: Load, checkpoint: AnyPath, kbps: float | None, batch: int,
            paths: Sequence[AnyPath]) -> list[Encoded]:
  """Tokens, or the reason why there are none, of each path."""
  from affectcodec_jax.audio import read_audio
  codec = _load(load, checkpoint)
  audio, results = {}, {}  # by place in `paths`
  for i, path in enumerate(paths):
    try:
      audio[i] = with_retries(functools.partial(read_audio, pipes=False), path)
    except Exception as e:  # a damaged file can fail in ways of its own; the others go on
      results[i] = (None, why_left_out(e, path))
  try:
    encoded = codec.encode_batch(list(audio.values()), SAMPLE_RATE, kbps, batch) if audio else []
    for i, tokens in zip(audio, encoded):
      results[i] = (tokens, '')
  except Exception as e:
    if len(paths) > 1:  # one of them: each by itself
      return [_encode(load, checkpoint, kbps, batch, [path])[0] for path in paths]
    # A longer recording some teachers read whole; of a piece it is not the recording's fault.
    one_piece = len(audio.get(0, ())) <= PIECE_FRAMES * HOP_LENGTH
    if 'RESOURCE_EXHAUSTED' in str(e) and one_piece:
      raise UserError('the device has not enough memory free; the same command goes on from here') from e
    results[0] = (None, describe(e, paths[0]))
  return [results[i] for i in range(len(paths))]
