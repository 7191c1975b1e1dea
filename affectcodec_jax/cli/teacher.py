"""Commands on emotion teachers: teacher train, distil, convert, judge."""

from affectcodec_jax.cli.command import Command, add_config


def _train_options(p):
  add_config(p, 'configs/teacher.py', 'runs/teacher')


def _distil_options(p):
  add_config(p, 'configs/student.py', 'runs/student')


def _convert_options(p):
  p.add_argument('model', choices=['emotion2vec'])
  p.add_argument('checkpoint', metavar='CKPT', help='PyTorch checkpoint')
  p.add_argument('output', metavar='OUT', help='.safetensors, for teacher.path')
  p.add_argument('--float16', action='store_true', help='half the size; float32 otherwise')


def _judge_options(p):
  p.add_argument('--data', required=True, help='a manifest with emotions and splits')
  p.add_argument('--out', required=True, help='folder for results.json and egemaps.npz')


def _train(words):
  from affectcodec_jax.config import parse_args, require
  from affectcodec_jax.training import teacher
  config, workdir = parse_args(words, teacher.__doc__)
  require(config, teacher.FIELDS, 'this configuration')
  teacher.train_teacher(config, workdir or 'runs/teacher')


def _distil(words):
  from affectcodec_jax.config import parse_args, require
  from affectcodec_jax.training import student
  config, workdir = parse_args(words, student.__doc__)
  require(config, student.FIELDS, 'this configuration')
  student.distil(config, workdir or 'runs/student')


def _convert(args):
  from affectcodec_jax.emotion import convert
  convert.convert(args.checkpoint, args.output, args.float16)


def _judge(args):
  from affectcodec_jax.evaluation.emotion_judges import score_judges
  score_judges(args.data, args.out)


_SPEECH = '--config.data.source=folder --config.data.path=SPEECH/manifest.jsonl'

COMMANDS = {
    'teacher train': Command(
        'trains the compact emotion teacher on labelled speech',
        f'teacher train --config configs/teacher.py --workdir runs/teacher \\\n      {_SPEECH}',
        _train_options, _train, """\
Writes WORKDIR/teacher.safetensors (point teacher.path of a codec's configuration at it),
WORKDIR/metrics.jsonl, and WORKDIR/results.json with the accuracy on the held-out split and, where there is
one, on the test split.""", takes_config=True),
    'teacher distil': Command(
        'trains a student of a teacher, so that encoding needs no teacher',
        f'teacher distil --config configs/student.py --workdir runs/student \\\n      {_SPEECH}',
        _distil_options, _distil, """\
It guesses the features of any teacher (teacher.kind, teacher.path). Writes WORKDIR/student.safetensors, to
be named in teacher.student of a codec's configuration, WORKDIR/metrics.jsonl and WORKDIR/results.json.""",
        takes_config=True),
    'teacher convert': Command(
        "emotion2vec's published PyTorch checkpoint to a teacher",
        'teacher convert emotion2vec emotion2vec_base.pt e2v.safetensors', _convert_options, _convert, """\
CKPT is of base, or of one of the plus models (seed, base, large). It is read without PyTorch and without
running what it contains. OUT is for teacher.path."""),
    'teacher judge': Command(
        'fits and scores the emotion classifiers that are independent of the teacher',
        'teacher judge --data SPEECH/manifest.jsonl --out runs/judges', _judge_options, _judge, """\
The packaged network, and eGeMAPS functionals with a support vector machine fitted to the training split,
beside the packaged teacher. Needs opensmile (its own licence, free for research) and scikit-learn. OUT is
for --svm of evaluate and ablate."""),
}
