"""Records of ArrayRecord shards: a JSON text, and bytes behind it.

A record is a u32 (little-endian), the length of the text in bytes, the text, and the rest.
"""

from collections.abc import Iterable
import json
import pathlib
import struct
from typing import Any

from affectcodec_jax.common.errors import UserError, brief
from affectcodec_jax.common.files import parse_json, whole

_LENGTH = struct.Struct('<I')


def join(about: Any, rest: bytes) -> bytes:
  """A record of what JSON can hold, and of bytes."""
  text = json.dumps(about).encode()
  return _LENGTH.pack(len(text)) + text + rest


def split(data: bytes) -> tuple[Any, bytes]:
  """Inverse of `join`.

  Raises:
    ValueError: not such a record.
  """
  try:
    length, = _LENGTH.unpack_from(data)
  except struct.error as e:
    raise ValueError(f'{len(data)} bytes') from e
  end = _LENGTH.size + length
  return parse_json(data[_LENGTH.size:end]), data[end:]


def write(path: pathlib.Path, records: Iterable[bytes], options: str) -> None:
  """Writes a shard, which appears whole or not at all; `options` are ArrayRecord's.

  Raises:
    UserError: a place that cannot be written.
  """
  from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
  try:
    with whole(path) as temporary:
      writer, count = ArrayRecordWriter(str(temporary), options), 0
      for record in records:
        writer.write(record)
        count += 1
      writer.close()
      reader = ArrayRecordReader(str(temporary))  # writing reports no full disk: what is missing shows here
      found = reader.num_records()
      reader.close()
      if found != count:
        raise RuntimeError(f'{found} of {count} records were written; is the disk full?')
  except RuntimeError as e:  # array_record reports all as such
    raise UserError(f'{path}: cannot be written ({brief(e)}); choose another place') from e
