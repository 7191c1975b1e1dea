"""Looks into a trained codec's codes, and into the choice of its emotion block.

leakage: R^2 of a linear map from a frame's emotion digits to its log-mel spectrum. stages: emotion and
speaker predicted from each stage's digits. usage: codes in use, entropies, and what entropy coding saves.
transplant: what the emotion block of one utterance does in another. rate_distortion: error of the
teacher's features over dimensions and levels of the emotion block, one small training each. Each writes
OUT/results.json and OUT/NAME.png and prints a table. Needs requirements-eval.txt.
"""

import os

from affectcodec_jax.common.constants import FRAME_RATE
from affectcodec_jax.common.errors import UserError
from affectcodec_jax.evaluation.statistics import text


def analyse(name, args):
  """Runs the analysis of that name and writes what it finds.

  Args:
    name: 'leakage', 'stages', 'usage', 'transplant' or 'rate_distortion'.
    args: those of the command `analyse`.
  """
  from affectcodec_jax.common.files import make_folder, write_json
  from affectcodec_jax.evaluation.charts import require_matplotlib
  require_matplotlib()  # before the long part
  if args.limit < 0:
    raise UserError(f'--limit {args.limit}: give the number of files, or 0 for all')
  out = make_folder(args.out)
  results, table = ANALYSES[name](args, out / f'{name}.png')
  write_json(out / 'results.json', results)
  print('\n'.join(table))


def leakage(args, picture):
  """Cross-stream leakage: log-mels predicted from emotion digits, runs side by side."""
  from affectcodec_jax.analysis import codes, plots
  from affectcodec_jax.analysis.leakage import leakage
  from affectcodec_jax.api import load
  runs, names = {}, _names(args.checkpoint)
  loaded = [load(path) for path in args.checkpoint]
  levels = [codes.emotion_blocks(c.config.model, path) for c, path in zip(loaded, args.checkpoint)]
  for name, codec, n in zip(names, loaded, levels):
    clips = codes.encode_clips(codec, args.data, args.split, args.limit, with_mel=True)
    runs[name] = _about(codec) | {'files': len(clips)} | leakage(clips, n)
  plots.plot_leakage(runs, picture)
  window, hop, bands = codes.MEL
  r = runs[names[0]]
  table = [f'R^2 of {bands}-band log10 mel ({window} samples every {hop}), two-fold over speakers; '
           f'{r["files"]} files, {r["frames"]} frames, {r["speakers"]} speakers',
           *_table(['run', 'quantiser', 'step', 'emotion digits [95 % over speakers]', 'frames shuffled',
                    'acoustic digits'],
                   [[name, r['quantizer'], r['step'], text(r['emotion'], '.4f'),
                     f'{r["shuffled"]["mean"]:.4f}', text(r['acoustic'], '.4f')]
                    for name, r in runs.items()])]
  return {'split': args.split, 'mel': {'window': window, 'hop': hop, 'bands': bands}, 'runs': runs}, table


def stages(args, picture):
  """Linear probes for emotion and for speaker on each stage's digits."""
  from affectcodec_jax.analysis import codes, plots, probes
  from affectcodec_jax.analysis.stages import KINDS, stage_probes
  from affectcodec_jax.api import load
  probes.require_sklearn()
  codec = load(args.checkpoint)
  levels = codes.emotion_blocks(codec.config.model, args.checkpoint)
  train, test = (codes.encode_clips(codec, args.data, split, args.limit)
                 for split in (args.train_split, args.test_split))
  results = stage_probes(train, test, levels)
  plots.plot_stages(results, picture)
  table = []
  for task, scores in results.items():
    for what, stage in (('alone', 'stage'), ('up_to', 'stages 1 to')):
      table += [f'{task}: mean recall [95 % over speakers], {scores["files"]} files, chance '
                f'{scores["chance"]:.3f}',
                *_table([stage, *(plots.NAMES[kind] for kind in KINDS)],
                        [[k + 1, *(text(scores[kind][what][k], '.3f') for kind in KINDS)]
                         for k in range(codec.config.model.num_stages)])]
  about = _about(codec) | {'train_split': args.train_split, 'test_split': args.test_split,
                           'C': probes.LOGISTIC_C}
  return about | results, table


def usage(args, picture):
  """Codes in use, entropies of each stage and block, and what entropy coding saves."""
  from affectcodec_jax.analysis import codes, plots
  from affectcodec_jax.analysis.coding import coding
  from affectcodec_jax.api import load
  from affectcodec_jax.evaluation.usage import usage
  from affectcodec_jax.models.blocks import block_levels
  from affectcodec_jax.models.codec import digit_bits
  codec = load(args.checkpoint)
  clips = codes.encode_clips(codec, args.data, args.split, args.limit)
  results = usage([c.codes for c in clips], block_levels(codec.config.model))
  results['coding'] = coding(clips, digit_bits(codec.config.model), codec.config.rates)
  plots.plot_usage(results, picture)
  rows = [[k + 1, block, f'{s["used"]} of {s["possible"]}', f'{s["bits"]:.3f}',
           f'{s["corrected_bits"]:.3f}', f'{s["nominal_bits"]:.3f}', f'{100 * s["fraction"]:.1f} %',
           f'{s["conditional_bits"]:.3f}' if 'conditional_bits' in s else '',
           ' '.join(f'{b:.2f}' for b in s['dimension_bits'])]
          for k, stage in enumerate(results['stages']) for block, s in stage.items()]
  rates = results['bits_per_second']
  given = (f'; emotion codes given the frame before {rates["ideal_conditional"]:.0f}'
           if 'emotion' in results['stages'][0] else '')
  table = [f'{len(clips)} files, {results["frames"]} frames; bits a frame',
           *_table(['stage', 'block', 'codes used', 'entropy', 'corrected', 'nominal', 'of nominal',
                    'given frame before', 'of each dimension'], rows),
           f'bits a second: nominal {rates["nominal"]:.0f}; each stage and block in its entropy '
           f'{rates["ideal"]:.0f}{given}',
           *_coding_table(results['coding'])]
  return _about(codec) | {'split': args.split, 'files': len(clips)} | results, table


def _coding_table(results):
  rows = [[r['stages'], f'{r["nominal"]:.0f}', text(r['coded'], '.0f'), text(r['saved_percent'], '.1f'),
           *(f'{r[name]["mean"]:.0f}' for name in ('static', 'packed_file', 'coded_file'))]
          for r in results['rates']]
  speeds = (results[name] for name in ('encode_speed', 'decode_speed'))
  return [f'bits a second with --entropy, means over files [95 % over {results["speakers"]} speakers]; '
          'coded {:.0f} times, decoded {:.0f} times as fast as spoken'.format(*speeds),
          *_table(['stages', 'nominal', 'coded, no header', 'saved, %', 'by fixed tables', 'plain file',
                   'coded file'], rows)]


def transplant(args, picture):
  """The emotion block of one utterance with the acoustic block of another, classified by the judges."""
  from affectcodec_jax.analysis import plots
  from affectcodec_jax.analysis import transplant as tp
  from affectcodec_jax.api import load
  codec = load(args.checkpoint)
  results = {'split': args.split} | tp.transplant(codec, args.data, args.split, args.limit, args.kbps)
  plots.plot_transplant(results, picture)
  table = [f'{results["kbps"]:g} kbps, {results["pairs"]} pairs A, B of {results["speakers"]} speakers; '
           'probability of an emotion, and its change from B decoded plainly; [95 % over speakers]']
  for judge, variants in results['judges'].items():
    table += _table([judge, "A's emotion", "B's emotion", "classified as A's", "classified as B's"],
                    [[tp.VARIANTS[v], *(text(scores[k], '.3f') for k in scores)]
                     for v, scores in variants.items()])
    table.append(f"rise of A's emotion, the transplant from A less the control: "
                 f"{text(results['net'][judge], '.3f')}")
  table += _table(['cost', *results['cost']],
                  [[tp.VARIANTS[v], *(text(of[v], '.3f') for of in results['cost'].values())]
                   for v in tp.OF_RECEIVER])
  return _about(codec) | results, table + [f'{k}: absent ({why})' for k, why in results['absent'].items()]


def rate_distortion(args, picture):
  """Error of the teacher's features over dimensions and levels of the emotion block."""
  import numpy as np

  from affectcodec_jax.analysis import plots
  from affectcodec_jax.analysis import rate_distortion as rd
  from affectcodec_jax.common import progress
  from affectcodec_jax.common.compilation_cache import use_compilation_cache
  from affectcodec_jax.config import parse_args, validate
  from affectcodec_jax.inference import weights
  frames = int(args.seconds * FRAME_RATE)
  if min(args.steps, args.batch_size, args.num_stages, frames, *args.dimensions) < 1:
    raise UserError('--steps, --batch-size, --num-stages and --dimensions must be at least 1, '
                    '--seconds 0.02')
  if min(args.levels) < 2 or min(args.seeds) < 0:
    raise UserError('--levels must be at least 2 and --seeds not negative')
  config, _ = parse_args(['analyse', f'--config={args.config}', *args.overrides], __doc__)
  validate(config)
  use_compilation_cache()
  frozen = {'teacher': weights.load_teacher(config, config.teacher.path)}
  train, test = (rd.load_features(config, frozen, args.data, split, args.limit)
                 for split in (args.train_split, args.test_split))
  rd.windows(train, frames)  # says so where every file is too short
  held_out = rd.windows(test, frames)
  cells = []
  for d, n in progress.bar([(d, n) for n in args.levels for d in args.dimensions], unit='cell'):
    errors = [rd.train_cell(config.model, (n,) * d, args.num_stages, train, held_out, steps=args.steps,
                            batch_size=args.batch_size, seed=seed) for seed in args.seeds]
    cells.append({'dimensions': d, 'levels': n, 'bits': rd.bits_per_frame((n,) * d, args.num_stages),
                  'error': float(np.mean(errors)), 'errors': errors})
  cells.sort(key=lambda c: (c['bits'], c['error']))
  bits, errors = [c['bits'] for c in cells], [c['error'] for c in cells]
  results = {k: getattr(args, k) for k in ('num_stages', 'steps', 'batch_size', 'seconds', 'seeds')}
  results |= {'teacher': config.teacher.kind, 'train_files': len(train), 'test_files': len(test),
              'test_frames': int(len(held_out) * frames), 'cells': cells,
              'hull': rd.lower_hull(bits, errors), 'knee': rd.knee(bits, errors)}
  plots.plot_rate_distortion(results, picture)
  return results, [
      f'{args.num_stages} stages, {args.steps} steps a cell, seeds {args.seeds}; '
      f'{results["test_frames"]} held-out frames of {len(test)} files',
      *_table(['bits a frame', 'dimensions', 'levels', 'error / variance', ''],
              [[f'{c["bits"]:.2f}', c['dimensions'], c['levels'], f'{c["error"]:.4f}',
                'knee' if i == results['knee'] else 'hull' if i in results['hull'] else '']
               for i, c in enumerate(cells)])]


def _about(codec):
  return {'quantizer': codec.config.model.quantizer, 'step': codec.step,
          'fingerprint': codec.fingerprint.hex()}


def _names(paths):
  """Short names of runs: their paths from the folder that they share."""
  paths = [os.path.abspath(p) for p in paths]
  if len(set(paths)) < len(paths):
    raise UserError('--checkpoint names a run twice')
  root = os.path.commonpath([os.path.dirname(p) for p in paths])
  return [os.path.relpath(p, root) for p in paths]


def _table(headings, rows):
  """Lines of text, columns aligned."""
  rows = [[str(cell) for cell in row] for row in (headings, *rows)]
  widths = [max(map(len, column)) for column in zip(*rows)]
  return ['  '.join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]


ANALYSES = {f.__name__: f for f in (leakage, stages, usage, transplant, rate_distortion)}
