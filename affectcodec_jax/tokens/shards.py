"""Token files for training language models: ArrayRecord and Parquet shards, and how to read them.

A folder that `python -m affectcodec_jax tokenize` made holds `tokens-00000-of-00005.arrayrecord`, the same
names with `.parquet`, `tokens.json` (settings, and what each finished shard holds) and `skipped.jsonl`.
This module needs neither JAX nor a model.

A clip is a dict in both formats:

  codes          int32 [frames, stages] (Parquet: a list of lists of uint16)
  num_samples    of the recording at 16 kHz
  seconds        the same as a duration
  gain_db        what the encoder applied; a decoder takes it off
  model          hexadecimal fingerprint of the codec
  bits_per_code  15 for the standard model
  path           of the recording, relative to the folder or manifest it came from
  speaker, emotion, text, corpus, gender, lang, split   text as in the manifest, None where it has none
  other          every other field of the manifest's row (times of words, say) as JSON text
"""

from collections.abc import Iterator, Mapping, Sequence
import json
import pathlib
from types import ModuleType
from typing import Any

import numpy as np

from affectcodec_jax.common import records
from affectcodec_jax.common.errors import UserError, require_extra
from affectcodec_jax.common.files import AnyPath, parse_json, whole
from affectcodec_jax.tokens.afc import Tokens, pack, unpack

Clip = Mapping[str, Any]  # by the names above

INDEX, SKIPPED = 'tokens.json', 'skipped.jsonl'
FORMATS = ('arrayrecord', 'parquet')
LABELS = ('speaker', 'emotion', 'text', 'corpus', 'gender', 'lang', 'split')


def make_clip(tokens: Tokens, path: AnyPath, row: Mapping[str, Any]) -> Clip:
  """The dict of one clip; `row` is what is known of it, by the manifest's names."""
  labels = {k: str(row[k]) if row.get(k) not in (None, '') else None for k in LABELS}
  other = {k: v for k, v in row.items() if k not in LABELS}
  return {'codes': tokens.codes, 'num_samples': tokens.num_samples,
          'seconds': tokens.num_samples / tokens.sample_rate, 'gain_db': float(np.float32(tokens.gain_db)),
          'model': tokens.fingerprint.hex(), 'bits_per_code': tokens.bits_per_code, 'path': str(path),
          **labels, 'other': json.dumps(other)}


def clip_tokens(clip: Clip) -> Tokens:
  """`Tokens` of a clip of either format, for `codec.decode`."""
  return Tokens(np.stack(clip['codes']).astype(np.int32), int(clip['num_samples']),
                float(clip['gain_db']), bytes.fromhex(clip['model']), int(clip['bits_per_code']))


def write_record(clip: Clip) -> bytes:
  """A clip as a record (`common.records`) of what is known of it and an `.afc` file."""
  return records.join({k: clip[k] for k in ('path', *LABELS, 'other')}, pack(clip_tokens(clip)))


def read_record(data: bytes) -> Clip:
  """Inverse of `write_record`.

  Raises:
    UserError: not such a record, or damaged.
  """
  try:
    text, afc = records.split(data)
    row = {k: text[k] for k in LABELS} | parse_json(text['other'])
    path = text['path']
  except (ValueError, KeyError, TypeError) as e:
    raise UserError(f'not a token record ({type(e).__name__}: {e}); make such files with '
                    'python -m affectcodec_jax tokenize') from e
  return make_clip(unpack(bytes(afc), f'record of {path}'), path, row)


def shard_name(shard: int, shards: int, kind: str) -> str:
  """File name of shard number `shard` of `shards`."""
  return f'tokens-{shard:05d}-of-{shards:05d}.{kind}'


def shard_paths(folder: AnyPath, kind: str = 'arrayrecord') -> list[str]:
  """Paths of all shards of a finished folder, as text, in order.

  Raises:
    UserError: not such a folder, not finished, or not in this format.
  """
  index = read_index(folder)
  done, shards = len(index['shards']), index['settings']['shards']
  if done < shards:
    raise UserError(f'{folder}: {done} of {shards} shards are finished; run the same tokenize command '
                    'again')
  if kind not in index['settings']['formats']:
    raise UserError(f'{folder}: holds no {kind} files, only {", ".join(index["settings"]["formats"])}')
  paths = [pathlib.Path(folder) / shard_name(i, shards, kind) for i in range(shards)]
  for path in paths:
    if not path.is_file() or not path.stat().st_size:
      raise UserError(f'{path}: missing or empty; run the same tokenize command again')
  return [str(path) for path in paths]


def read_index(folder: AnyPath) -> dict[str, dict[str, Any]]:
  """What `tokens.json` says: {'settings': …, 'shards': {number: what it holds}}.

  Raises:
    UserError: not there or not readable.
  """
  path = pathlib.Path(folder) / INDEX
  from affectcodec_jax.common import schemas
  index = schemas.read(path, schemas.Index, 'give a folder that python -m affectcodec_jax tokenize made')
  return {'settings': index['settings'], 'shards': {str(int(k)): v for k, v in index['shards'].items()}}


def read_clips(folder: AnyPath) -> Iterator[Clip]:
  """Yields the clips of a finished folder's ArrayRecord shards, in order.

  Raises:
    UserError: as `shard_paths` and `read_record`, or a shard is damaged.
  """
  from array_record.python.array_record_module import ArrayRecordReader
  for path in shard_paths(folder):
    try:
      reader = ArrayRecordReader(path)
      found = reader.read_all() if reader.num_records() else ()
      reader.close()
    except RuntimeError as e:
      raise UserError(f'{path}: damaged; delete it and run the same tokenize command again') from e
    yield from map(read_record, found)


def write_shard(path: AnyPath, clips: Sequence[Clip]) -> None:
  """Writes clips as a shard of the format that the suffix of `path` names; it appears whole or not at all.

  Raises:
    UserError: a place that cannot be written, or pyarrow is not installed.
  """
  path = pathlib.Path(path)
  if path.suffix == '.parquet':
    with whole(path) as temporary:
      _write_parquet(temporary, clips)
  else:
    records.write(path, map(write_record, clips), 'group_size:1')  # any is read without its neighbours


def require_parquet() -> tuple[ModuleType, ModuleType]:
  """The modules pyarrow and pyarrow.parquet.

  Raises:
    UserError: not installed.
  """
  return (require_extra('pyarrow', extras='requirements-lm.txt'),
          require_extra('pyarrow.parquet', 'pyarrow', 'requirements-lm.txt'))


def _write_parquet(path: pathlib.Path, clips: Sequence[Clip]) -> None:
  pa, parquet = require_parquet()
  schema = pa.schema([
      ('path', pa.string()), ('codes', pa.list_(pa.list_(pa.uint16()))), ('num_samples', pa.int64()),
      ('seconds', pa.float64()), ('gain_db', pa.float32()), ('model', pa.string()),
      ('bits_per_code', pa.uint8()), *((k, pa.string()) for k in LABELS), ('other', pa.string())])
  # Names of files need not be UTF-8, but Parquet's text is, and no two names may become one.
  text = lambda x: x.encode('utf-8', 'backslashreplace').decode() if isinstance(x, str) else x
  columns = {k: [text(clip[k]) for clip in clips] for k in schema.names if k != 'codes'}
  columns['codes'] = _codes_column(pa, [clip['codes'] for clip in clips])
  parquet.write_table(pa.Table.from_pydict(columns, schema), path, compression='zstd')


def _codes_column(pa: ModuleType, codes: Sequence[np.ndarray]) -> Any:
  """Lists of lists of `[frames_i, stages_i]` codes; as Python's numbers they would take 100 bytes each."""
  frames = [len(c) for c in codes]
  stages = np.repeat([c.shape[1] for c in codes], frames)  # [all frames]
  values = np.concatenate([np.zeros(0, np.uint16), *(c.ravel().astype(np.uint16) for c in codes)])
  offsets = [np.cumsum([0, *counts], dtype=np.int32) for counts in (frames, stages)]
  return pa.ListArray.from_arrays(offsets[0], pa.ListArray.from_arrays(offsets[1], values))
