"""Where a run's numbers go: terminal, metrics.jsonl, TensorBoard, sound and pictures."""

import collections
import json
import logging
import math
import os
import pathlib
import time

import tensorboardX

from affectcodec_jax.audio import write_audio
from affectcodec_jax.common import progress
from affectcodec_jax.common.errors import UserError
from affectcodec_jax.common.files import parse_json, whole, write_whole
from affectcodec_jax.common.pictures import spectrogram
from affectcodec_jax.training.parallel import fetch_scalars

_EVENTS = 'run'  # names the writer that TensorBoard's events go through


class MetricWriter:
  """Writes scalars of one run; a resumed run continues the files at its step."""

  def __init__(self, workdir, start_step, total_steps):
    self.path = pathlib.Path(workdir) / 'metrics.jsonl'
    _drop_after(self.path, start_step)
    self.events = _EventFiles()
    tensorboardX.record_writer.REGISTERED_FACTORIES.pop(_EVENTS, None)
    tensorboardX.record_writer.register_writer_factory(_EVENTS, self.events)
    folder = pathlib.Path(workdir).absolute() / 'tensorboard'
    self.board = tensorboardX.SummaryWriter(f'{_EVENTS}:{folder}', purge_step=start_step + 1)
    self.bar = progress.bar(total=total_steps, initial=start_step, unit='step', smoothing=0.1)
    self.plain = progress.is_hidden() and not progress.is_quiet()
    self.total = total_steps
    self.first = (start_step, time.time())

  def advance(self, step):
    """Moves the progress bar to `step`."""
    self.bar.update(step - self.bar.n)

  def write(self, step, scalars):
    """Logs a dict of floats at `step`.

    Raises:
      UserError: it cannot be written.
    """
    try:
      if self.events.error:
        raise self.events.error
      with open(self.path, 'a') as f:
        f.write(json.dumps({'step': step} | {k: float(f'{v:.6g}') for k, v in scalars.items()}) + '\n')
    except OSError as e:
      raise UserError(f'{self.path.parent}: metrics cannot be written there ({e.strerror}); make '
                      'room, the same command then continues from the last checkpoint') from e
    for k, v in scalars.items():
      self.board.add_scalar(k, v, step)
    names = ('mel', 'emotion', 'cycle', 'feature_matching')
    main = {k: f'{scalars[f"loss/{k}"]:.3f}' for k in names if f'loss/{k}' in scalars}
    if not main:  # not of a step but of held-out clips
      self.bar.write(f'step {step}  ' + '  '.join(f'{k} {v:.3f}' for k, v in scalars.items()))
      return
    self.bar.set_postfix(main)
    if self.plain:
      done, since = step - self.first[0], time.time() - self.first[1]
      eta = (self.total - step) * since / max(done, 1)
      losses = ' '.join(f'{k} {v}' for k, v in main.items())
      print(f'step {step}/{self.total}  {losses}  {scalars.get("steps_per_second", 0):.2f} steps/s'
            f'  ETA {int(eta // 60)}:{int(eta % 60):02d}', flush=True)

  def flush(self):
    """Writes what TensorBoard's writer still holds."""
    self.board.flush()

  def close(self):
    self.bar.close()
    self.board.close()
    if self.events.error:
      logging.warning('tensorboard/: not all could be written (%s)', self.events.error.strerror)


class PendingMetrics:
  """Metrics of steps, written in order when they are known: the loop never waits for the last two.

  Args:
    writer: a `MetricWriter`, or None in a process that writes nothing.
    step: where the run begins.
    log_every: steps between two that are written.
    advice: what to do about a loss that is not finite.
  """

  def __init__(self, writer, step, log_every, advice):
    self._writer, self._log_every, self._advice = writer, log_every, advice
    self._pending = collections.deque()
    self._clock = (time.time(), step)

  def add(self, step, values, others):
    """Takes the metrics of a step: `values` scalars on the devices, `others` of this process.

    Raises:
      UserError: one of an earlier step is not finite.
    """
    self._pending.append((step, values, others))
    self.drain(2)

  def drain(self, keep=0):
    """Waits for all but the last `keep` steps.

    Raises:
      UserError: a metric is not finite.
    """
    while len(self._pending) > keep:
      step, values, others = self._pending.popleft()
      finite = {'finite': values.pop('finite')}
      if step % self._log_every == 0 or not fetch_scalars(finite)['finite']:
        scalars = fetch_scalars(values)
        check_finite(step, scalars, self._advice)
        before, at = self._clock
        scalars['steps_per_second'] = (step - at) / max(time.time() - before, 1e-9)
        self._clock = time.time(), step
        if self._writer:
          self._writer.write(step, scalars | others)
      if self._writer:
        self._writer.advance(step)


class _EventFiles:
  """Where TensorBoard's events go.

  Errors are kept: by one of them its thread would end, and whoever has more for it wait for ever.
  """

  def __init__(self):
    self.error = None  # the first

  def directory_check(self, path):
    self._try(os.makedirs, _place(path), exist_ok=True)

  def open(self, path):
    return _EventFile(self._try, self._try(open, _place(path), 'ab'))

  def _try(self, function, *args, **options):
    try:
      return function(*args, **options)
    except OSError as e:
      self.error = self.error or e
      return None


class _EventFile:
  """A file whose errors `_EventFiles` keeps."""

  def __init__(self, attempt, file):
    self._try, self._file = attempt, file

  def write(self, data):
    if self._file:
      self._try(self._file.write, data)

  def flush(self):
    if self._file:
      self._try(self._file.flush)

  def close(self):
    if self._file:
      self._try(self._file.close)


def _place(path):
  return path.removeprefix(_EVENTS + ':')


def check_finite(step, scalars, advice):
  """Raises UserError naming a metric that is NaN or infinite at `step`, a loss if there is one."""
  bad = sorted((name for name, value in scalars.items() if not math.isfinite(value)),
               key=lambda name: not name.startswith('loss/'))
  if bad:
    raise UserError(f'{bad[0]} is {scalars[bad[0]]} at step {step}; {advice}')


def _drop_after(path, step):
  """Forgets lines past `step`, which a killed run wrote after its last checkpoint."""
  if not path.exists():
    return
  lines = []
  for line in path.read_text(errors='replace').splitlines():
    try:
      if parse_json(line)['step'] <= step:
        lines.append(line)
    except (ValueError, KeyError, TypeError):
      continue  # the half line of a killed run
  write_whole(path, ''.join(line + '\n' for line in lines).encode())


def write_clips(folder, clips):
  """Writes named clips `{name: [samples]}` as WAV, each with a spectrogram picture beside it."""
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  for name, audio in clips.items():
    write_audio(folder / f'{name}.wav', audio)
    with whole(folder / f'{name}.png') as temporary:
      spectrogram(audio).save(temporary, format='PNG')
