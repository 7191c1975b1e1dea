"""Draws overview.png, the README's picture, from the committed log: `python docs/figures/overview.py`."""

import json
import pathlib

import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt

FOLDER = pathlib.Path(__file__).parent
LOGS = FOLDER.parent / 'logs' / 'evaluation'
FILES = {'test': 'test-0.6.0.json', 'refined': 'refined-0.8.0.json'}
PANELS = {'pesq': 'PESQ-WB', 'visqol': 'ViSQOL',
          'all_agreement': 'same emotion as the original\n(share of clips, mean of three classifiers)'}
LINES = {'affectcodec': ('AffectCodec 0.6.0', '#d1431f', 'o', 2.2),
         'refined': ('the same, codes refined', '#d69e2e', 'D', 1.8), 'opus': ('Opus', '#2b6cb0', '^', 1.3),
         'amrwb': ('AMR-WB', '#6b8e23', 's', 1.3), 'codec2': ('Codec 2', '#805ad5', 'v', 1.3)}


def main():
  """Panels over measured bit rate, all on the same test files."""
  systems = [r for name in ('test', 'refined') for r in read(name)]
  figure, panels = plt.subplots(1, len(PANELS), figsize=(12, 3.7), constrained_layout=True)
  for axes, (metric, heading) in zip(panels, PANELS.items()):
    for name, (label, colour, marker, width) in LINES.items():
      draw(axes, systems, name, metric, label, color=colour, marker=marker, linewidth=width)
    axes.set_title(heading, fontsize=11)
    axes.set_xscale('log', base=2)
    axes.set_xticks([1.5, 3, 6, 12], ['1.5', '3', '6', '12'])
    axes.minorticks_off()
    axes.set_xlabel('kbit/s, measured')
    axes.grid(axis='y', linewidth=0.5)
    axes.spines[['top', 'right']].set_visible(False)
  figure.legend(*panels[0].get_legend_handles_labels(), loc='outside lower center', ncols=5, frameon=False)
  figure.savefig(FOLDER / 'overview.png', dpi=110, metadata={'Software': None})


def read(name):
  """The systems of one evaluation; the codec with refined codes is one of its own."""
  systems = list(json.loads((LOGS / FILES[name]).read_text())['systems'].values())
  if name == 'refined':
    return [r | {'system': 'refined'} for r in systems if r['system'] == 'affectcodec']
  return systems


def draw(axes, systems, name, metric, label, **style):
  """Means of one codec at its rates, with 95 % intervals over speakers."""
  of_codec = [r for r in systems if r['system'] == name]
  points = sorted((r['measured_kbps'], r['scores'][metric]) for r in of_codec)
  x, means = [k for k, _ in points], [s['mean'] for _, s in points]
  spread = [[s['mean'] - s['low'] for _, s in points], [s['high'] - s['mean'] for _, s in points]]
  axes.errorbar(x, means, yerr=spread, label=label, capsize=2, elinewidth=0.8, **style)


if __name__ == '__main__':
  main()
