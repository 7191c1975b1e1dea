"""A corpus into ArrayRecord shards: `python -m affectcodec_jax pack SPEECH OUT`.

Which recordings a shard holds follows from their list alone, and each shard is made by one process, so a
run that was stopped goes on with the shards that are missing and ends with the same files.
"""

import functools
import io
import json
import math

import numpy as np
import soundfile

from affectcodec_jax.audio import read_sound
from affectcodec_jax.common import progress, records, workers
from affectcodec_jax.common.audio_reader import duration, read_blocks, whole_numbers
from affectcodec_jax.common.constants import SAMPLE_RATE
from affectcodec_jax.common.errors import UserError
from affectcodec_jax.common.files import differences, held_alone, make_folder, write_json, write_whole
from affectcodec_jax.common.open_sound import open_sound
from affectcodec_jax.common.retry import why_left_out, with_retries
from affectcodec_jax.data import arrayrecord
from affectcodec_jax.data.folder import list_split
from affectcodec_jax.data.rows import list_digest

_VERSION = 1  # of the files; a folder of another version is not gone on with
_SKIPPED = 'skipped.jsonl'
_BLOCK = 1 << 18  # samples


def pack(data, out, split=None, shard_files=1000, processes=None):
  """Writes the recordings of a corpus to the folder `out`, or goes on doing so.

  A recording that is damaged is left out, and listed in `out`/skipped.jsonl with the reason.

  Args:
    data: a folder of audio files or a .jsonl manifest.
    out: folder for the shards.
    split: which split of the data, None for all.
    shard_files: recordings a shard.
    processes: None is one a core.

  Returns:
    {'clips', 'seconds', 'bytes', 'skipped'}: of all shards, in numbers.

  Raises:
    UserError: no such data; `out` holds something else, or another process writes to it; nothing could be
      read.
  """
  for name, value in (('--shard-files', shard_files), ('--processes', processes)):
    if value is not None and value < 1:
      raise UserError(f'{name} must be at least 1')
  rows = list_split(data, split)
  parts = [rows[i:i + shard_files] for i in range(0, len(rows), shard_files)]
  with held_alone(folder := make_folder(out)):
    _check_settings(folder, {'version': _VERSION, 'files': len(rows), 'list_sha256': list_digest(rows),
                             'shard_files': shard_files, 'shards': len(parts)})
    return _pack_parts(parts, folder, processes)


def _pack_parts(parts, folder, processes):
  """Makes the shards of `parts`, lists of rows, that are missing; see `pack`."""
  found = {i: _finished(arrayrecord.shard_path(folder, i, len(parts))) for i in range(len(parts))}
  todo = [i for i, held in found.items() if held is None]
  if 0 < len(todo) < len(parts):
    print(f'{folder}: {len(parts) - len(todo)} of {len(parts)} shards are finished, going on')
  if todo:
    bar = progress.bar(total=sum(len(parts[i]) for i in todo), unit='clip')
    work = functools.partial(_pack_shard, folder, len(parts))
    processes = min(processes or workers.cores(), len(todo))
    try:
      with workers.pool(processes) as pool, bar:
        jobs = ((i, parts[i]) for i in todo)
        for (i, part), held in workers.in_order(pool, work, jobs, 2 * processes):
          found[i] = held
          bar.update(len(part))
    except workers.Died as e:
      raise UserError(f'{folder}: a process died, perhaps for lack of memory; the same command goes on, '
                      'with fewer --processes perhaps') from e
  bad = [line for i in range(len(parts)) for line in found[i]['skipped']]
  if bad:
    write_whole(folder / _SKIPPED, ''.join(json.dumps(line) + '\n' for line in bad).encode())
  else:
    (folder / _SKIPPED).unlink(missing_ok=True)
  total = {k: sum(held[k] for held in found.values()) for k in ('clips', 'seconds', 'bytes')}
  if not total['clips']:
    raise UserError(f'{folder}: none of the {len(bad)} recordings could be read, see {_SKIPPED} there')
  print(f'{folder}: {total["clips"]} clips, {total["seconds"] / 3600:.2f} h, {total["bytes"] / 1e6:.1f} MB '
        f'in {len(parts)} shards; {len(bad)} left out' + (f', see {_SKIPPED}' if bad else ''))
  return total | {'skipped': len(bad)}


def _check_settings(out, settings):
  """Writes the settings of a new folder.

  Raises:
    UserError: `out` holds what was made otherwise.
  """
  path = out / arrayrecord.SETTINGS
  if not path.exists():
    if any(out.glob('speech-*')):
      raise UserError(f'{out}: holds shards and no {arrayrecord.SETTINGS}; choose another folder')
    write_json(path, settings)
    return
  before = arrayrecord.read_settings(out)
  if before != settings:
    raise UserError(f'{out}: was packed otherwise ({differences(before, settings)}); choose another '
                    'folder, or give what it was packed with to go on')
  for left in out.glob('.speech-*.tmp'):  # of a killed run
    left.unlink(missing_ok=True)


def _finished(path):
  """What a shard holds; None where it is not finished, or not whole any more."""
  lines = arrayrecord.read_lines(path)
  if lines is None or not path.is_file() or path.stat().st_size != lines[0]['bytes']:
    return None
  return lines[0] | {'seconds': sum(row['seconds'] for row in lines[1:])}


# In the processes.


def _pack_shard(folder, shards, job):
  """Makes a shard of rows; returns what it holds, see `_finished`."""
  shard, rows = job
  path = arrayrecord.shard_path(folder, shard, shards)
  known, bad = [], []

  def packed():
    for row in rows:
      try:
        flac, seconds, scale = with_retries(to_flac, row['path'])
      except Exception as e:  # a damaged file can fail in ways of its own; the others go on
        bad.append({'path': row['key'], 'reason': why_left_out(e, row['path'])})
        continue
      line = {'path': row['key']} | {k: v for k, v in row.items() if k not in ('path', 'key')}
      known.append(line | {'seconds': seconds})
      yield arrayrecord.write_record(known[-1], flac, scale)

  # A record is read without its neighbours; FLAC is as small as it gets.
  records.write(path, packed(), 'group_size:1,uncompressed')
  held = {'clips': len(known), 'bytes': path.stat().st_size, 'skipped': bad}
  write_whole(arrayrecord.lines_path(path), ''.join(json.dumps(x) + '\n' for x in [held, *known]).encode())
  return held | {'seconds': sum(line['seconds'] for line in known)}


def to_flac(path):
  """A file as FLAC, at its rate: (bytes, seconds by its header, factor that its samples are to have).

  FLAC is left as it is. Whole numbers of up to 24 bits stay those, of all channels. Everything else is
  decoded, made mono and rounded to 24 bits; where it is above full scale, it is divided by a power of two.

  Raises:
    UserError: it is no audio, or nothing of it decodes.
  """
  with open_sound(path, pipes=False) as file:
    seconds, kind = duration(file, path), whole_numbers(file)
    if kind and kind.format == 'FLAC':
      if not any(len(block) for block, _ in read_blocks(file, path)):
        raise UserError(f'{path}: has no samples')
      file.seek(0)
      return file.read(), seconds, 1.0
    flac = _as_numbers(kind) if kind else None
    if flac:
      return flac, seconds, 1.0
    blocks = list(read_blocks(file, path))
    rates = {rate for _, rate in blocks}
    sound = [block for block, _ in blocks]
    if not any(block.size for block in sound):
      raise UserError(f'{path}: has no samples')
    if not all(np.isfinite(block).all() for block in sound):
      raise UserError(f'{path}: has samples that are not finite')
    flac, scale = _rounded(sound, rates.pop()) if len(rates) == 1 else (None, 1.0)
    if flac is None:  # joined of several rates, or of one that FLAC has not
      flac, scale = _rounded([read_sound(file, path)], SAMPLE_RATE)
    return flac, seconds, scale


def _as_numbers(sound):
  """FLAC of an opened `SoundFile` of whole numbers; None where it is damaged or FLAC cannot hold it."""
  memory, count = io.BytesIO(), 0
  try:
    with sound, soundfile.SoundFile(memory, 'w', sound.samplerate, sound.channels,
                                    {'PCM_U8': 'PCM_S8'}.get(sound.subtype, sound.subtype),
                                    format='FLAC') as out:
      promised = sound.frames
      while len(block := sound.read(_BLOCK, dtype='int32', always_2d=True)):
        out.write(block)
        count += len(block)
  except (soundfile.SoundFileError, ValueError, RuntimeError):
    return None
  return memory.getvalue() if count == promised > 0 else None


def _rounded(blocks, rate):
  """(FLAC of float blocks `[samples]` at 24 bits, or None where there is none of such a rate; factor)."""
  peak = max(float(np.abs(block).max(initial=0.0)) for block in blocks)
  scale = 2.0 ** math.ceil(math.log2(peak)) if peak > 1 - 2 ** -23 else 1.0
  memory = io.BytesIO()
  try:
    with soundfile.SoundFile(memory, 'w', rate, 1, 'PCM_24', format='FLAC') as out:
      for block in blocks:  # each by itself: of an hour the float64 would take gigabytes
        numbers = np.round(block.astype(np.float64) / scale * 2 ** 23).clip(-2 ** 23, 2 ** 23 - 1)
        out.write(numbers.astype(np.int32) << 8)  # libsndfile takes the upper 24 bits
  except (soundfile.SoundFileError, ValueError, TypeError):
    return None, 1.0
  return memory.getvalue(), scale
