"""Commands that train codecs and score them: train, compile, evaluate, compare, ablate."""

from affectcodec_jax.cli.command import Command, add_config, add_refine
from affectcodec_jax.common.errors import UserError

_JUDGES = "folder of 'teacher judge', with the judges of emotion (default: the packaged ones)"


def _train_options(p):
  add_config(p, 'configs/base.py', 'runs/DATE-TIME')
  p.add_argument('--init_from', metavar='CODEC',
                 help="start from a released codec: 'pretrained', or a folder that 'release' made")


def _compile_options(p):
  add_config(p, 'configs/lite.py')
  p.add_argument('--topology', required=True, metavar='SLICE',
                 help='chips and their shape: v4:2x2x4, v5e:4x4, v5p:2x2x4, v6e:2x4 …')


def _evaluate_options(p):
  from affectcodec_jax.common import workers
  p.add_argument('--checkpoint', default='pretrained',
                 help="workdir of a training run (default: the packaged codec); 'none': peers alone")
  p.add_argument('--data', required=True, help='a directory, a .jsonl manifest or a recording')
  p.add_argument('--split', default='test', help="which split of it (default 'test'), or all")
  p.add_argument('--limit', type=int, default=0, help='at most so many files, evenly spread')
  p.add_argument('--labelled', action='store_true', help='only files with a known emotion')
  p.add_argument('--metrics', nargs='+', default=['all'],
                 help="'all', 'quick' (without the two slowest), or names (see docs/evaluation.md)")
  p.add_argument('--peers', nargs='+', default=['opus', 'codec2', 'amrwb', 'speex'],
                 help="codecs to compare with, neural ones as MODEL@KBPS,KBPS; 'none' for none")
  add_refine(p)
  p.add_argument('--classifier', nargs='+', default=[], metavar='MODEL',
                 help='emotion classifiers or valence/arousal/dominance regressors for transformers')
  p.add_argument('--judges', help=_JUDGES)
  p.add_argument('--jobs', type=int, default=workers.cores(), help='processes')
  p.add_argument('--clips', type=int, default=4, help='files to play and show in the report')
  p.add_argument('--no-report', action='store_true', help='leave report.html out')
  p.add_argument('--cache', help="folder of scores (default: the user's cache folder)")
  p.add_argument('--out', required=True, help='folder for the results')


def _compare_options(p):
  p.add_argument('files', help='files.csv of an evaluation')
  p.add_argument('first', help="a system, such as 'affectcodec 1.5'")
  p.add_argument('second', help="another, such as 'codec2 3.2'")
  p.add_argument('--second-from', metavar='FILES', help='files.csv of the evaluation that has the second, '
                 'where that is another one: of another checkpoint, say')


def _ablate_options(p):
  from affectcodec_jax.evaluation.ablate import VARIANTS
  p.add_argument('--config', default='configs/ablation.py')
  p.add_argument('--variants', nargs='+', default=list(VARIANTS), help='of the configuration')
  p.add_argument('--seeds', nargs='+', type=int, default=[0, 1])
  p.add_argument('--steps', type=int, default=1000, help='of each run')
  p.add_argument('--data', required=True, help='a .jsonl manifest')
  p.add_argument('--metrics', nargs='+', default=['quick'], help="of evaluate (default 'quick')")
  p.add_argument('--judges', help=_JUDGES)
  p.add_argument('--limit', type=int, default=240, help='test files to score; 0 for all')
  p.add_argument('--jobs', type=int, default=1, help='runs at a time, sharing the processors')
  p.add_argument('--out', required=True, help='folder for the runs and the tables')


def _train(words):
  from affectcodec_jax import train
  return train.main(words)


def _compile(words):
  from affectcodec_jax import config as config_lib
  config, workdir, topology = config_lib.parse_args(words, 'Compiles the training step.', topology='Slice.')
  if workdir or not topology:
    raise UserError('compile writes no run: leave --workdir out' if workdir else
                    '--topology is missing, e.g. --topology v5e:2x2')
  config_lib.validate(config)
  from affectcodec_jax.training import aot
  devices = aot.slice_of(topology)
  adversarial, t = config.loss.adversarial > 0, config.train
  print(f'step         {"with" if adversarial else "without"} discriminator, batch {t.batch_size} x '
        f'{config.data.crop_seconds} s, {t.parallel} of {len(devices)} devices of {topology}, '
        f'fsdp={t.fsdp}', flush=True)
  print('\n'.join(aot.report(config, topology, aot.compile_step(config, devices, adversarial))))


def _evaluate(args):
  from affectcodec_jax.evaluation.run import evaluate
  evaluate(args.data, args.out, checkpoint=args.checkpoint, split=args.split, limit=args.limit,
           labelled=args.labelled, metrics=args.metrics, peers=[] if args.peers == ['none'] else args.peers,
           refine=args.refine, classifiers=args.classifier, judges=args.judges, jobs=args.jobs,
           clips=args.clips, report=not args.no_report, cache=args.cache)


def _compare(args):
  from affectcodec_jax.evaluation import compare
  found = compare.compare(args.files, args.first, args.second, args.second_from)
  print(compare.table(found, args.first, args.second))


def _ablate(args):
  from affectcodec_jax.evaluation.ablate import ablate
  ablate(args.data, args.out, config=args.config, variants=args.variants, seeds=args.seeds,
         steps=args.steps, metrics=args.metrics, judges=args.judges, limit=args.limit, jobs=args.jobs)


COMMANDS = {
    'train': Command(
        'trains a codec, or goes on where its folder left off',
        'train --config configs/base.py --workdir runs/base --config.train.steps=1000', _train_options,
        _train, takes_config=True),
    'compile': Command(
        'compiles the training step for a TPU slice that need not be there',
        'compile --config configs/lite.py --topology v5e:2x2', _compile_options, _compile, """\
Ahead of time, on any host, by the TPU's own compiler (pip install 'jax[tpu]'). Prints the memory that a
chip needs, operations, collectives, which of matrix units, memory and network bounds the step, and the time
and chip-hours that this bound allows: by published rates of the chip, not by measurements. What does not
fit ends in the compiler's message. The step is that of train.parallel, mesh or pmap, with the
discriminator where loss.adversarial is above 0. It takes minutes at least (docs/scaling.md).""",
        takes_config=True),
    'evaluate': Command(
        'scores a codec on a set of files at every rate, beside other codecs',
        'evaluate --checkpoint runs/speech --data SPEECH/manifest.jsonl --out runs/speech/test',
        _evaluate_options, _evaluate, """\
Each file is brought to the codec's level, encoded once and decoded from every prefix of its tokens (with
--refine it is encoded for every rate by itself, on CPU); so do the peers at their rates. Writes
OUT/results.json (means, 95 % bootstrap intervals over speakers), OUT/files.csv (one row a file and system)
and OUT/report.html, a page that needs nothing else. Scores are kept: the same command goes on where it
stopped, and peers are not measured again for the next checkpoint. Packages of requirements-eval.txt that
are not installed are reported as absent."""),
    'compare': Command(
        'two systems of an evaluation on the same files, with the confidence of what is between',
        'compare runs/speech/test/files.csv "affectcodec 1.5" "codec2 3.2"', _compare_options,
        _compare, """\
Prints a row a metric: the mean of each, and their difference with its 95 % interval, by drawing speakers:
both systems of a draw on the same files, so what makes a file hard does not widen it. `better` and `worse`
are said of the first system where the interval leaves zero out."""),
    'ablate': Command(
        "trains the ablation's variants and scores them side by side",
        'ablate --data SPEECH/manifest.jsonl --judges runs/judges --out runs/ablation', _ablate_options,
        _ablate, """\
Variants are those of --config (see configs/ablation.py), trained for an equal number of steps, each with
every seed of --seeds, in processes of their own, --jobs at a time. The same command continues where it was
stopped and scores what is finished. Writes OUT/table.md (means), OUT/steps.md (each variant against the
one before it, with intervals), OUT/results.json and OUT/ablation.png; the runs with their logs are
OUT/VARIANT/SEED."""),
}
