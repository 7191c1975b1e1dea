"""Files that were joined, as by `cat a.ogg b.ogg`: where each recording in them begins and ends."""

import os
import re
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


# By the first four bytes of a file, how recordings of its kind begin. Eight bytes and more that are given
# do not come about by chance, and no kind is searched for the beginnings of another: Ogg and Matroska hold
# those of FLAC.
_BEGINNINGS = {
    b'RIFF': rb'RIFF....WAVE(?:fmt |JUNK|junk|bext|LIST|fact|FLLR|PEAK|iXML|id3 )',
    b'RF64': rb'RF64....WAVEds64',
    b'riff': rb'riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb\x04\xc1\0\0',  # W64
    b'FORM': rb'FORM....AIF[FC](?:COMM|FVER|SSND|MARK|COMT|ID3 )',
    b'.snd': rb'\.snd\0\0[\0-\x0f].....\0\0\0[\x01-\x1b]',  # AU: offset of the sound, length, encoding
    b'caff': rb'caff\0\x01..desc\0\0\0\0\0\0\0\x20',
    b'fLaC': rb'fLaC[\0\x80]\0\0\x22',  # a stream's first block: STREAMINFO, of 34 bytes
    b'#!AM': rb'#!AMR(?:-WB)?\n',
    b'\x1aE\xdf\xa3': rb'\x1aE\xdf\xa3.{1,40}?B\x82.(?:webm|matroska)',
    b'TTA1': rb'TTA1[\x01\x02]\0[\x01-\x08]\0[\x08\x10\x18\x20]\0',
    b'FLV\x01': rb'FLV\x01[\x01\x04\x05]\0\0\0\x09',
}
_LONGEST = 64  # bytes of a beginning, at most
_FEW = 4096  # bytes behind the end, or missing before it, that are no sound worth a word


def find_parts(file):
  """[(start, end)] in bytes of the recordings that an open file holds: one, unless some were joined.

  MP3, AAC and the like are streams of frames, which need no such thing.
  """
  size = length(file)
  first, _ = untagged(file, (0, size))
  file.seek(first)
  magic = file.read(12)
  if magic[:4] == b'OggS':
    starts = _ogg(file)
  elif magic[4:8] == b'ftyp':
    starts = _mp4(file, size)
  elif magic[:4] in _BEGINNINGS and _named_end(file, first) not in (size, size + 1):
    starts = _search(file, magic[:4], first)
  else:
    starts = [first]
  return list(zip(starts, [*starts[1:], size]))


def _search(file, magic, first):
  """Where recordings of a kind begin, whatever the lengths in their headers; the first one is known."""
  pattern, starts, block, end = re.compile(_BEGINNINGS[magic], re.DOTALL), {first}, b'', 0
  file.seek(0)
  while read := file.read(1 << 20):
    block, end = block[-_LONGEST:] + read, end + len(read)
    found = -1
    while (found := block.find(magic, found + 1)) >= 0:
      if pattern.match(block, found):
        starts.add(end - len(block) + found)
  return sorted(starts)


def beyond_header(file, part):
  """Bytes of a WAV part behind the end that its header names; negative: so many are missing.

  0 for a few, for other files, and where a pipe or a killed recorder left no length.
  """
  named = _named_end(file, part[0])
  rest = part[1] - named if named else 0
  if abs(rest) < _FEW or (rest > 0 and not _sounds(file, named)):
    return 0
  return rest


def ends_as_named(file):
  """Whether one recording is read to its end and no further by its header: nothing has to be searched."""
  size = length(file)
  first, _ = untagged(file, (0, size))
  file.seek(first)
  magic = file.read(4)
  named = _named_end(file, first)
  if magic == b'RIFF' and named:
    return named <= size + 1
  return magic not in (b'RIFF', b'RF64', b'riff') or named in (size, size + 1)


def _named_end(file, start):
  """Where a WAV, RF64 or W64 ends by its header; None for all else and as `beyond_header` says."""
  file.seek(start)
  header = file.read(28)
  if header[:4] == b'RIFF' and header[8:12] == b'WAVE':
    named = 8 + int.from_bytes(header[4:8], 'little')
    return start + named + named % 2 if 72 < named < 0x7fff0000 else None
  if header[:4] == b'RF64' and header[12:16] == b'ds64':
    return start + 8 + int.from_bytes(header[20:28], 'little')
  return start + int.from_bytes(header[16:24], 'little') if header[:4] == b'riff' else None


def _sounds(file, at):
  """Whether what follows is more than zeros, which recorders write ahead."""
  file.seek(at)
  return any(file.read(1 << 16))


def untagged(file, part):
  """(start, end) of a part without the ID3 tag that some programs put before WAV and AIFF, too."""
  start, end = part
  file.seek(start)
  tag = file.read(10)
  if tag[:3] == b'ID3' and len(tag) == 10:
    behind = start + 10 + sum((byte & 0x7f) << shift for byte, shift in zip(tag[6:], (21, 14, 7, 0)))
    file.seek(behind)
    if file.read(4) in (b'RIFF', b'RF64', b'FORM'):
      return behind, end
  return part


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


def _ogg(file):
  """A recording starts with the first of the pages that begin its streams."""
  starts, before = [0], True
  for at, page in _pages(file):
    begins = bool(page and page[5] & 2)
    if begins and not before:
      starts.append(at)
    before = begins
  return starts


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
