"""Where a run's numbers go: terminal, metrics.jsonl, TensorBoard, sound and pictures."""

import json
import math
import pathlib
import sys
import time

import numpy as np
from PIL import Image
import tensorboardX
import tqdm

from affectcodec_jax.audio import write_audio
from affectcodec_jax.common.errors import UserError


class MetricWriter:
  """Writes scalars of one run; a resumed run continues the files at its step."""

  def __init__(self, workdir, start_step, total_steps):
    self.path = pathlib.Path(workdir) / 'metrics.jsonl'
    _drop_after(self.path, start_step)
    self.board = tensorboardX.SummaryWriter(str(pathlib.Path(workdir) / 'tensorboard'),
                                            purge_step=start_step + 1)
    terminal = sys.stderr.isatty()
    self.bar = tqdm.tqdm(total=total_steps, initial=start_step, unit='step', smoothing=0.1,
                         dynamic_ncols=True, disable=not terminal)
    self.plain = not terminal
    self.total = total_steps
    self.first = (start_step, time.time())

  def advance(self, step):
    """Moves the progress bar to `step`."""
    self.bar.update(step - self.bar.n)

  def write(self, step, scalars):
    """Logs a dict of floats at `step`."""
    with open(self.path, 'a') as f:
      f.write(json.dumps({'step': step} | {k: float(f'{v:.6g}') for k, v in scalars.items()}) + '\n')
    for k, v in scalars.items():
      self.board.add_scalar(k, v, step)
    names = ('mel', 'emotion', 'cycle', 'feature_matching')
    main = {k: f'{scalars[f"loss/{k}"]:.3f}' for k in names if f'loss/{k}' in scalars}
    self.bar.set_postfix(main)
    if self.plain:
      done, since = step - self.first[0], time.time() - self.first[1]
      eta = (self.total - step) * since / max(done, 1)
      losses = ' '.join(f'{k} {v}' for k, v in main.items())
      print(f'step {step}/{self.total}  {losses}  {scalars.get("steps_per_second", 0):.2f} steps/s'
            f'  ETA {int(eta // 60)}:{int(eta % 60):02d}', flush=True)

  def close(self):
    self.bar.close()
    self.board.close()


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
  for line in path.read_text().splitlines():
    try:
      if json.loads(line)['step'] <= step:
        lines.append(line)
    except (json.JSONDecodeError, KeyError):
      continue  # the half line of a killed run
  path.write_text(''.join(line + '\n' for line in lines))


def write_clips(folder, clips):
  """Writes named clips `{name: [samples]}` as WAV, each with a spectrogram picture beside it."""
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  for name, audio in clips.items():
    write_audio(folder / f'{name}.wav', audio)
    spectrogram_image(audio).save(folder / f'{name}.png')


def spectrogram_image(audio, window=512, hop=128):
  """Picture of the log spectrogram of `[samples]`, 80 dB deep, low frequencies at the bottom."""
  audio = np.pad(audio, (0, max(0, window - len(audio))))
  frames = np.lib.stride_tricks.sliding_window_view(audio, window)[::hop]  # [frames, window]
  db = 20 * np.log10(np.abs(np.fft.rfft(frames * np.hanning(window))) + 1e-6)
  level = np.clip((db - db.max() + 80) / 80, 0, 1).T[::-1]  # [bins, frames]
  stops = np.linspace(0, 1, 5)
  palette = np.array([[0, 0, 4], [81, 18, 124], [183, 55, 121], [252, 137, 97], [252, 253, 191]])
  rgb = np.stack([np.interp(level, stops, palette[:, i]) for i in range(3)], axis=-1)
  return Image.fromarray(rgb.astype(np.uint8))
