"""Files that were joined, as by `cat a.ogg b.ogg`: where each recording in them begins and ends."""

import os
import zlib

_MIRRORED = bytes(int(f'{i:08b}'[::-1], 2) for i in range(256))


class Part:
  """The bytes from `start` to `end` of an open file, as a file to read."""

  def __init__(self, file, start, end):
    self._file, self._start, self._size, self._at = file, start, end - start, 0

  def read(self, size=-1):
    """As a file's."""
    left = max(self._size - self._at, 0)
    self._file.seek(self._start + self._at)
    data = self._file.read(left if size is None or size < 0 else min(size, left))
    self._at += len(data)
    return data

  def readinto(self, buffer):
    """As a file's."""
    data = self.read(len(buffer))
    buffer[:len(data)] = data
    return len(data)

  def seek(self, offset, whence=os.SEEK_SET):
    """As a file's."""
    self._at = max(0, offset + (0, self._at, self._size)[whence])
    return self._at

  def tell(self):
    """As a file's."""
    return self._at

  def seekable(self):
    """As a file's."""
    return True


def length(file):
  """Bytes of an open file, or of bytes opened as one."""
  return file.seek(0, os.SEEK_END)


def find_parts(file):
  """[(start, end)] in bytes of the recordings that an open file holds: one, unless some were joined.

  MP3 and AAC are streams of frames, which need no such thing.
  """
  size = length(file)
  file.seek(0)
  magic = file.read(12)
  find = {b'OggS': _ogg, b'RIFF': _riff, b'fLaC': _flac}.get(magic[:4])
  find = _mp4 if magic[4:8] == b'ftyp' else find
  starts = find(file, size) if find else [0]
  return list(zip(starts, [*starts[1:], size]))


def damaged_pages(file):
  """How many parts of an open Ogg file are damaged; decoders pass them over. 0 for other files."""
  file.seek(0)
  if file.read(4) != b'OggS':
    return 0
  damaged = 0
  for _, page in _pages(file):
    crc = int.from_bytes(page[22:26], 'little')
    damaged += not page or _checksum(page[:22] + bytes(4) + page[26:]) != crc
  return damaged


def _pages(file):
  """Yields (where it is, bytes) of each page of an Ogg file; no bytes where there is something else."""
  size, at = length(file), 0
  while at < size:
    file.seek(at)
    header = file.read(27)
    if header[:4] == b'OggS' and len(header) == 27:
      sizes = file.read(header[26])
      page = header + sizes + file.read(sum(sizes))
      yield at, page
      at += len(page)
    else:  # to the next page
      yield at, b''
      found = -1
      while at < size and found < 0:
        file.seek(at + 1)
        found = file.read(1 << 17).find(b'OggS')
        at += 1 + found if found >= 0 else (1 << 17) - 4


def _checksum(page):
  """Ogg's CRC: that of zlib with the bits of every byte and of the result the other way round."""
  crc = zlib.crc32(page.translate(_MIRRORED), 0xffffffff) ^ 0xffffffff
  return int(f'{crc:032b}'[::-1], 2)


def _ogg(file, size):
  """A recording starts with the first of the pages that begin its streams."""
  starts, before = [0], True
  for at, page in _pages(file):
    begins = bool(page and page[5] & 2)
    if begins and not before:
      starts.append(at)
    before = begins
  return starts


def _riff(file, size):
  starts, at = [0], 0
  while at + 12 <= size:
    file.seek(at)
    header = file.read(12)
    if header[:4] != b'RIFF' or header[8:] != b'WAVE':
      break
    if at:
      starts.append(at)
    length = int.from_bytes(header[4:8], 'little')
    at += 8 + length + length % 2
  return starts


def _flac(file, size):
  starts, block, at = [0], b'', 0  # `at`: where the block ends
  while at < size:
    file.seek(at)
    read = file.read(1 << 20)
    if not read:
      break
    block, at = block[-7:] + read, at + len(read)
    found = -1
    while (found := block.find(b'fLaC', found + 1)) >= 0:
      first = block[found + 4:found + 8]  # a stream's first block: STREAMINFO, of 34 bytes
      if len(first) == 4 and first[0] & 0x7f == 0 and first[1:] == b'\0\0\x22':
        starts.append(at - len(block) + found)
  return sorted(set(starts))


def _mp4(file, size):
  starts, at = [0], 0
  while at + 8 <= size:
    file.seek(at)
    header = file.read(16)
    length = int.from_bytes(header[:4], 'big')
    length = int.from_bytes(header[8:], 'big') if length == 1 else length
    if header[4:8] == b'ftyp' and at:
      starts.append(at)
    if length < 8:  # to the end of the file, or damaged
      break
    at += length
  return starts
