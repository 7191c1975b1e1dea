"""Pictures of a report: SVG that takes its colours from the page, and spectrograms with pitch."""

import base64
import io
import re

import numpy as np
from PIL import ImageDraw

from affectcodec_jax.common.constants import SAMPLE_RATE
from affectcodec_jax.common.errors import require_extra
from affectcodec_jax.common.pictures import spectrogram
from affectcodec_jax.evaluation.statistics import spread

# Stand-ins that become the page's variables, so that one picture serves light and dark.
INK, GRID = '#010101', '#020202'
SERIES = [f'#0302{i:02d}' for i in range(10)]


def require_matplotlib():
  """pyplot, drawing to files only.

  Raises:
    UserError: matplotlib is not installed.
  """
  require_extra('matplotlib').use('Agg')
  import matplotlib.pyplot as plt
  return plt


def _themed(figure):
  """A figure as SVG text with the page's font and colours, and no size of its own."""
  plt = require_matplotlib()
  file = io.StringIO()
  figure.savefig(file, format='svg', transparent=True, metadata={'Date': None, 'Creator': None})
  plt.close(figure)
  svg = file.getvalue()
  svg = svg[svg.index('<svg'):]
  for side in ('width', 'height'):
    svg = re.sub(rf'(<svg[^>]*?) {side}="[^"]*"', r'\1', svg, count=1)
  svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r'font-size: \1px', svg)
  svg = svg.replace(INK, 'var(--ink)').replace(GRID, 'var(--grid)')
  for i, colour in enumerate(SERIES):
    svg = svg.replace(colour, f'var(--series-{i})')
  return svg


def _axes(width=4.6, height=3.1):
  plt = require_matplotlib()
  plt.rcParams.update({
      'svg.fonttype': 'none', 'svg.hashsalt': 'report', 'font.size': 11, 'text.color': INK,
      'axes.edgecolor': GRID, 'axes.labelcolor': INK, 'xtick.color': INK, 'ytick.color': INK,
      'grid.color': GRID})
  figure, axes = plt.subplots(figsize=(width, height), constrained_layout=True)
  axes.spines[['top', 'right']].set_visible(False)
  axes.set_axisbelow(True)
  return figure, axes


def rate_curve(systems, metric):
  """A metric over measured kbit/s, a line a codec with its 95 % intervals; the original as a dashed line.

  Args:
    systems: {codec: [(kbps, score)]}, score as of `summary`; 'original' among them.
    metric: its heading.
  """
  figure, axes = _axes()
  for i, points in enumerate(p for name, p in systems.items() if name != 'original'):
    points = sorted((k, s) for k, s in points if s)
    if points:
      x, means = [k for k, _ in points], [s['mean'] for _, s in points]
      reach = spread([s for _, s in points])
      axes.errorbar(x, means, yerr=reach if reach.any() else None, marker='o^svDPX*pd'[i % 10],
                    markersize=7 if i == 0 else 5, linewidth=2.4 if i == 0 else 1.4, capsize=3,
                    color=SERIES[i % 10], elinewidth=1)
  for _, score in systems.get('original', []):
    if score:
      axes.axhline(score['mean'], color=INK, linestyle=(0, (4, 4)), linewidth=1)
  axes.set_xscale('log', base=2)
  low, high = axes.get_xlim()
  ticks = [k for k in (0.5, 1, 1.5, 3, 6, 12, 24) if low <= k <= high]
  axes.set_xticks(ticks, [f'{k:g}' for k in ticks])
  axes.minorticks_off()
  axes.set_xlabel('kbit/s, measured')
  axes.set_title(metric, loc='left', fontsize=12)
  axes.grid(axis='y', linewidth=0.8)
  return _themed(figure)


def emotion_bars(scores, title):
  """Bars of each emotion, one a system, with 95 % intervals.

  Args:
    scores: {system: {emotion: score or None}}.
    title: what they are.
  """
  figure, axes = _axes(width=13, height=3.4)
  emotions = list(next(iter(scores.values())))
  wide = 0.8 / len(scores)
  for i, of_emotion in enumerate(scores.values()):
    for at, emotion in enumerate(emotions):
      score = of_emotion.get(emotion)
      if score:
        axes.bar(at - 0.4 + (i + 0.5) * wide, score['mean'], wide * 0.9, color=SERIES[i % 10],
                 yerr=spread([score]), ecolor=INK, error_kw={'linewidth': 0.8})
  axes.set_xticks(range(len(emotions)), emotions)
  axes.set_ylim(bottom=0)
  axes.set_title(title, loc='left', fontsize=12)
  axes.grid(axis='y', linewidth=0.8)
  return _themed(figure)


def spectrogram_with_pitch(audio, f0):
  """`[samples]` as a picture of 0–8 kHz over time, 80 dB of range, with F0 over it on a scale of 0–800 Hz.

  Args:
    audio: at 16 kHz.
    f0: Hz every 5 ms, 0 where unvoiced.

  Returns:
    A data URL of a PNG.
  """
  width, height = 840, 260  # twice the size of the result: lines come out smooth
  picture = spectrogram(audio, loudest=30).resize((width, height))
  draw = ImageDraw.Draw(picture)
  x, y = np.arange(len(f0)) * 0.005 * SAMPLE_RATE / len(audio) * width, height * (1 - f0 / 800)
  for i in np.flatnonzero((f0[:-1] > 0) & (f0[1:] > 0)):
    draw.line([(x[i], y[i]), (x[i + 1], y[i + 1])], fill='#7fffd4', width=4)
  file = io.BytesIO()
  picture.resize((width // 2, height // 2)).quantize(48).save(file, format='png', optimize=True)
  return data_url('image/png', file.getvalue())


def data_url(kind, data):
  """Bytes as a URL that holds them."""
  return f'data:{kind};base64,{base64.b64encode(data).decode()}'
