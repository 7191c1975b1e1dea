"""Scores a trained codec on held-out files at every rate: mel distance and STOI.

  python -m affectcodec_jax.evaluate --checkpoint runs/speech --data SPEECH/manifest.jsonl \
      --split test --out runs/speech/test

Each file is encoded once, at the highest rate, and decoded from every prefix of its tokens. Writes
OUT/files.csv (one row a file and rate) and OUT/results.json (means, changes from the rate below on the
same files, and 95 % bootstrap intervals over speakers), and prints the table. STOI needs
requirements-eval.txt; without it that column is empty.
"""

import argparse
import csv
import json
import sys

from affectcodec_jax.errors import UserError, run_command


def main(argv=None):
  """Entry point; returns the exit status."""
  parser = argparse.ArgumentParser(
      prog='python -m affectcodec_jax.evaluate', description=__doc__,
      formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--checkpoint', required=True, help='workdir of a training run')
  parser.add_argument('--data', required=True, help='a directory or a .jsonl manifest')
  parser.add_argument('--split', default='test', help="which split of it (default 'test')")
  parser.add_argument('--limit', type=int, default=0, help='at most so many files, evenly spread')
  parser.add_argument('--out', required=True, help='folder for files.csv and results.json')
  args = parser.parse_args(argv)
  return run_command(lambda: evaluate(args))


def evaluate(args):
  """Scores the files and writes the results."""
  import numpy as np
  import tqdm

  from affectcodec_jax.api import load
  from affectcodec_jax.data.folder import FolderSource
  from affectcodec_jax.files import make_folder

  if args.limit < 0:
    raise UserError(f'--limit {args.limit}: give the number of files, or 0 for all')
  out = make_folder(args.out)
  codec = load(args.checkpoint)
  source = FolderSource(args.data, args.split)
  stoi = _find_stoi()
  count = min(args.limit or len(source), len(source))
  rows = []
  for i in tqdm.tqdm(np.linspace(0, len(source) - 1, count).astype(int), unit='file'):
    item = source[int(i)]
    if item is None:
      continue
    tokens = codec.encode(item['audio'], codec.sample_rate)
    for stages in codec.config.rates:
      kbps = codec.stage_kbps * stages
      decoded = codec.decode(tokens, kbps)
      rows.append({'file': item['name'], 'speaker': item['speaker'], 'kbps': kbps,
                   'mel': _mel(item['audio'], decoded),
                   'stoi': stoi(item['audio'], decoded) if stoi else None})
  if not rows:
    raise UserError(f'{args.data}: no file of it could be read')
  summary = {'checkpoint': str(args.checkpoint), 'step': codec.step, 'split': args.split,
             'files': len({r['file'] for r in rows}), 'rates': _summarise(rows)}
  with open(out / 'files.csv', 'w', newline='') as f:
    writer = csv.DictWriter(f, rows[0].keys())
    writer.writeheader()
    writer.writerows(rows)
  (out / 'results.json').write_text(json.dumps(summary, indent=2) + '\n')
  print(f'{summary["files"]} files, step {codec.step}; mean [95 % interval over speakers]')
  for kbps, metrics in summary['rates'].items():
    print(f'{kbps:>4} kbps  ' + '  '.join(
        f'{name} ' + (f'{m["mean"]:.4f} [{m["low"]:.4f}, {m["high"]:.4f}]' if m else 'absent')
        for name, m in metrics.items()))


def _find_stoi():
  """STOI of (reference, decoded) at 16 kHz, None for clips too short; None where pystoi is absent."""
  try:
    from pystoi import stoi
  except ImportError:
    return None

  def score(reference, decoded):
    if len(reference) < 0.5 * 16000:  # STOI needs 30 frames of speech; pystoi says 1e-5 to less
      return None
    return float(stoi(reference, decoded, 16000))

  return score


def _mel(reference, decoded):
  """Mean absolute distance in log10 of 80-band mel spectra, both at the reference's level."""
  import numpy as np

  from affectcodec_jax.audio import level_gain
  from affectcodec_jax.spectral import log_mel
  gain = 10 ** (level_gain(reference) / 20)
  pad = (0, max(0, 2048 - len(reference)))
  a, b = (np.asarray(log_mel(np.pad(x * gain, pad), 1024, 256, 80)) for x in (reference, decoded))
  return float(np.abs(a - b).mean())


def _summarise(rows):
  """Of each rate and metric the mean, and the mean change from the rate below on the same files."""
  rates = sorted({r['kbps'] for r in rows})
  scores = {kbps: {r['file']: r for r in rows if r['kbps'] == kbps} for kbps in rates}
  out = {}
  for lower, kbps in zip([None, *rates], rates):
    out[f'{kbps:g}'] = {}
    for name in ('mel', 'stoi'):
      scored = [r for r in scores[kbps].values() if r[name] is not None]
      values = [r[name] for r in scored]
      out[f'{kbps:g}'][name] = _mean(scored, values)
      if lower is not None:
        change = [r[name] - scores[lower][r['file']][name] for r in scored]
        out[f'{kbps:g}'][f'{name}_change'] = _mean(scored, change)
  return out


def _mean(rows, values, draws=1000):
  """Mean of one value a row with a 95 % bootstrap interval over speakers; None without values.

  Rows without a speaker count as speakers of their own.
  """
  import numpy as np
  groups = {}
  for row, value in zip(rows, values):
    groups.setdefault(row['speaker'] or row['file'], []).append(value)
  if not groups:
    return None
  sums = np.array([[sum(g), len(g)] for g in groups.values()])
  picks = np.random.default_rng(0).integers(len(groups), size=(draws, len(groups)))
  totals = sums[picks].sum(axis=1)  # [draws, (sum, count)]
  low, high = np.percentile(totals[:, 0] / totals[:, 1], [2.5, 97.5])
  return {'mean': float(sums[:, 0].sum() / sums[:, 1].sum()), 'low': float(low), 'high': float(high)}


if __name__ == '__main__':
  sys.exit(main())
