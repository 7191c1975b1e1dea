"""What sources of recordings have in common, wherever their bytes lie."""

import logging

from affectcodec_jax.common.errors import UserError
from affectcodec_jax.common.labels import emotion_index
from affectcodec_jax.common.retry import is_transient, with_retries
from affectcodec_jax.data.rows import Rows


class Recordings:
  """Random access to recordings of which rows are known.

  Items are `{'audio': float32 [samples] at 16 kHz, 'emotion': int, 'speaker': str, 'corpus': str,
  'gender': str, 'lang': str, 'text': str, 'name': str}`; what is not known is ''.

  Args:
    rows: a dict a recording, with `key`, `seconds` and what else is known.
    skipped: how many others were left out.
  """

  def __init__(self, rows, skipped):
    self._rows, self.skipped, self._unreadable = Rows(rows), skipped, set()

  def _read(self, i, row, start, seconds):
    """(name, float32 `[samples]`) of a part of item `i`, which `row` describes."""
    raise NotImplementedError

  def __len__(self):
    return len(self._rows)

  def duration(self, i):
    """Seconds of item `i`, from its header."""
    return self._rows[i]['seconds']

  def emotion(self, i):
    """Index of item `i`'s emotion (see `common.labels`), -1 where unknown, without reading its audio."""
    return emotion_index(self._rows[i].get('emotion'))

  def digest(self):
    """Tells sets of other files, lengths or labels apart; where they lie does not matter."""
    return self._rows.digest()

  def read(self, i, start=0.0, seconds=None):
    """A part of item `i`; None where it does not decode, with a warning the first time."""
    row = self._rows[i]
    try:
      try:
        name, audio = with_retries(self._read, i, row, start, seconds)
      except UserError as e:
        if not start or is_transient(e):
          raise
        name, audio = with_retries(self._read, i, row, 0.0, seconds)  # shorter than its header says
    except UserError as e:
      if i not in self._unreadable:
        self._unreadable.add(i)
        self.skipped += 1
        logging.warning('skipped (%d so far): %s', self.skipped, e)
      return None
    return {'audio': audio, 'emotion': emotion_index(row.get('emotion')), 'name': name} | {
        k: str(row.get(k, '')) for k in ('speaker', 'corpus', 'gender', 'lang', 'text')}

  def __getitem__(self, i):
    return self.read(int(i))
