"""Commands that look into a codec's codes, and into the choice of its emotion block: analyse …"""

from affectcodec_jax.cli.command import Command, add_checkpoint, add_kbps

_DATA = '--checkpoint runs/mine --data SPEECH/manifest.jsonl --out runs/'


def _add_data(p, name, limit):
  p.add_argument('--data', required=True, help='a directory or a .jsonl manifest')
  p.add_argument('--out', required=True, help=f'folder for results.json and {name}.png')
  p.add_argument('--limit', type=int, default=limit,
                 help=f'at most so many files of a split, evenly spread; 0 for all (default {limit})')


def _add_run_data(p, name, limit):
  p.add_argument('--checkpoint', required=True, help='workdir of a training run')
  _add_data(p, name, limit)


def _add_split(p):
  p.add_argument('--split', default='test', help="which split of it (default 'test')")


def _add_splits(p):
  p.add_argument('--train-split', default='train', help="what is fitted to (default 'train')")
  p.add_argument('--test-split', default='test', help="what is scored (default 'test')")


def _leakage_options(p):
  p.add_argument('--checkpoint', required=True, nargs='+', help='workdirs of training runs')
  _add_data(p, 'leakage', 0)
  _add_split(p)


def _stages_options(p):
  _add_run_data(p, 'stages', 0)
  _add_splits(p)


def _usage_options(p):
  _add_run_data(p, 'usage', 0)
  _add_split(p)


def _transplant_options(p):
  _add_run_data(p, 'transplant', 300)
  _add_split(p)
  add_kbps(p)


def _rate_distortion_options(p):
  _add_data(p, 'rate_distortion', 600)
  _add_splits(p)
  p.add_argument('--config', default='configs/base.py',
                 help='sizes and teacher; --config.FIELD=VALUE overrides a field')
  p.add_argument('--dimensions', type=int, nargs='+', default=[1, 2, 3, 4])
  p.add_argument('--levels', type=int, nargs='+', default=[2, 3, 4])
  p.add_argument('--num-stages', type=int, default=2, help='K (default 2)')
  p.add_argument('--steps', type=int, default=500, help='of each training (default 500)')
  p.add_argument('--batch-size', type=int, default=16, help='windows a step (default 16)')
  p.add_argument('--seconds', type=float, default=1.0, help='of a window (default 1)')
  p.add_argument('--seeds', type=int, nargs='+', default=[0], help='each cell is trained with each')


def _streaming_options(p):
  add_checkpoint(p)
  p.add_argument('--data', required=True, help='a directory or a .jsonl manifest')
  _add_split(p)
  p.add_argument('--limit', type=int, default=12, help='so many files, evenly spread (default 12)')
  p.add_argument('--kbps', type=float, default=1.5, help='rate (default 1.5)')
  p.add_argument('--out', required=True, help='folder for quality.json')


def _renderer_options(p):
  add_checkpoint(p)
  p.add_argument('--data', required=True, help='a directory or a .jsonl manifest')
  p.add_argument('--split', default='valid', help="which split of it (default 'valid')")
  p.add_argument('--limit', type=int, default=24, help='so many files, evenly spread (default 24)')
  p.add_argument('--seconds', type=float, default=2.4, help='of the beginning of each (default 2.4)')
  p.add_argument('--steps', type=int, default=250, help='of the fit (default 250)')
  p.add_argument('--out', required=True, help='folder for renderer.json')


def _token_emotion_options(p):
  add_checkpoint(p)
  p.add_argument('--data', required=True, help='a manifest with emotions, speakers and splits')
  p.add_argument('--out', required=True, help='the predictor, .safetensors')
  p.add_argument('--report', help='where to write the scores, .json')


def _run(name):
  """The function of a command whose picture and results `analysis.run` writes."""
  def run(args):
    from affectcodec_jax.analysis.run import analyse
    analyse(name, args)
  return run


def _streaming(args):
  from affectcodec_jax.analysis.streaming import score_streams
  score_streams(args)


def _renderer(args):
  from affectcodec_jax.analysis.renderer import score_renderer
  score_renderer(args)


def _token_emotion(args):
  from affectcodec_jax.analysis.train_token_emotion import make_predictor
  make_predictor(args)


_WRITES = 'Writes OUT/results.json and OUT/{}.png and prints a table. Needs requirements-eval.txt.'

COMMANDS = {
    'analyse leakage': Command(
        'log-mels predicted from emotion digits, runs side by side', f'analyse leakage {_DATA}leakage',
        _leakage_options, _run('leakage'),
        "R^2 of a linear map from a frame's emotion digits to its log-mel spectrum.\n"
        + _WRITES.format('leakage')),
    'analyse stages': Command(
        "emotion and speaker predicted from each stage's digits by linear probes",
        f'analyse stages {_DATA}stages', _stages_options, _run('stages'), _WRITES.format('stages')),
    'analyse usage': Command(
        'codes in use, entropies, and what entropy coding saves', f'analyse usage {_DATA}usage',
        _usage_options, _run('usage'), 'Of each stage and block. ' + _WRITES.format('usage')),
    'analyse transplant': Command(
        'the emotion block of one utterance in another, classified by the judges',
        f'analyse transplant {_DATA}transplant', _transplant_options, _run('transplant'),
        _WRITES.format('transplant')),
    'analyse rate_distortion': Command(
        "error of the teacher's features over sizes of the emotion block",
        'analyse rate_distortion --data SPEECH/manifest.jsonl --out runs/rate_distortion',
        _rate_distortion_options, _run('rate_distortion'),
        'One small training for each number of dimensions and of levels.\n'
        + _WRITES.format('rate_distortion'), takes_overrides=True),
    'analyse streaming': Command(
        'what streaming and lost frames cost, beside the same clips as wholes',
        'analyse streaming --data SPEECH/manifest.jsonl --out runs/streaming', _streaming_options,
        _streaming, """\
Clips are brought to the codec's level. Encoders are compared by the share of codes that are not those of
the whole, and by the sound of their codes from the whole's decoder; decoders by their sound from the
whole's codes. Frames are lost independently, the same ones for both ways of filling them. Writes
OUT/quality.json and prints a table, means over clips: mel distance and STOI to the original, and how far
the emotion by the packaged judge is from that of the original (total variation of its posteriors).
Needs requirements-eval.txt."""),
    'analyse renderer': Command(
        "where sound is lost: in rounding, in the networks, or in the decoder's source and filters",
        'analyse renderer --data SPEECH/manifest.jsonl --out runs/renderer', _renderer_options,
        _renderer, """\
The same clips decoded from rounded codes, from unrounded ones and from refined ones, and with gains and
phases of the decoder's filters fitted to each clip by the mel loss, at the pitch the codec decodes; and as
the vocoder WORLD makes them of what it measures. Writes OUT/renderer.json and prints a table, means over
clips: mel distance, and PESQ-WB, ESTOI and ViSQOL where their packages are installed
(requirements-eval.txt). Lite backbone."""),
    'analyse token_emotion': Command(
        "makes a codec's predictor of emotion from tokens, and scores it",
        'analyse token_emotion --data SPEECH/manifest.jsonl --out token_emotion.safetensors',
        _token_emotion_options, _token_emotion, """\
A logistic regression for one stage and for each rate of the codec. What it reads (the emotion block, the
acoustic block or both) and how strongly it is regularised is chosen on the validation split; all three are
scored on the test split, beside what the codec decodes from its emotion block alone and judges of the
audio. Splits must have different speakers. OUT is for --predictor of emotion. Needs scikit-learn."""),
}
