"""Scores a trained codec on held-out files at every rate: mel distance, STOI and emotion.

  python -m affectcodec_jax.evaluate --checkpoint runs/speech --data SPEECH/manifest.jsonl \
      --split test --out runs/speech/test

Each file is encoded once, at the highest rate, and decoded from every prefix of its tokens. Writes
OUT/files.csv (one row a file and rate) and OUT/results.json (means and 95 % bootstrap intervals over
speakers), and prints the table. Emotion is judged by a packaged network and, with --svm, by the machine
that python -m affectcodec_jax.judges made. STOI needs requirements-eval.txt; without it that column is
empty.
"""

import argparse
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
  parser.add_argument('--labelled', action='store_true', help='only files with a known emotion')
  parser.add_argument('--svm', help='folder that python -m affectcodec_jax.judges wrote')
  parser.add_argument('--out', required=True, help='folder for files.csv and results.json')
  args = parser.parse_args(argv)
  return run_command(lambda: evaluate(args))


def evaluate(args):
  """Scores the files and writes the results."""
  import csv

  import numpy as np
  import tqdm

  from affectcodec_jax import judges, scores
  from affectcodec_jax.api import load
  from affectcodec_jax.data.folder import FolderSource
  from affectcodec_jax.files import make_folder

  if args.limit < 0:
    raise UserError(f'--limit {args.limit}: give the number of files, or 0 for all')
  out = make_folder(args.out)
  codec = load(args.checkpoint)
  source = FolderSource(args.data, args.split)
  stoi = scores.find_stoi()
  judge = {'network': judges.network_judge()}
  if args.svm:
    judge['svm'] = judges.svm_judge(args.svm)
  wanted = [i for i in range(len(source)) if not args.labelled or source.emotion(i) >= 0]
  if not wanted:
    raise UserError(f'{args.data}: no file of split {args.split} has a known emotion')
  count = min(args.limit or len(wanted), len(wanted))
  rows = []
  for at in tqdm.tqdm(np.linspace(0, len(wanted) - 1, count).astype(int), unit='file', smoothing=0):
    item = source[wanted[at]]
    if item is None:
      continue
    tokens = codec.encode(item['audio'], codec.sample_rate)
    original = {name: f(item['audio']) for name, f in judge.items()}
    for stages in codec.config.rates:
      kbps = codec.stage_kbps * stages
      decoded = codec.decode(tokens, kbps)
      row = {'file': item['name'], 'speaker': item['speaker'], 'emotion': item['emotion'], 'kbps': kbps,
             'mel': scores.mel_distance(item['audio'], decoded),
             'stoi': stoi(item['audio'], decoded) if stoi else None}
      for name, f in judge.items():
        row |= {f'{name}_{k}': v for k, v in scores.emotion_scores(original[name], f(decoded)).items()}
      rows.append(row)
  if not rows:
    raise UserError(f'{args.data}: no file of it could be read')
  summary = {'checkpoint': str(args.checkpoint), 'step': codec.step, 'split': args.split,
             'files': len({r['file'] for r in rows}), 'rates': scores.summarise(rows, list(judge))}
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


if __name__ == '__main__':
  sys.exit(main())
