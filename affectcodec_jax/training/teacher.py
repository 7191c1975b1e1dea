"""Trains the compact emotion teacher on labels, and on a large network's features of all speech.

The large one, the guide (`guide.path`), reads clean clips; the compact one reads them degraded and learns
the guide's features of every frame, and their mean and deviation over the crop. Two linear maps predict
these from the compact one's features and from what it pools of them, and are dropped afterwards. With
a guide clips are degraded by `augment.degrade` alone: `data.gain_db`, `speed`, `equalise_db` and
`num_workers` change nothing.

Writes WORKDIR/teacher.safetensors (point `teacher.path` of a codec's configuration at it),
WORKDIR/metrics.jsonl, and WORKDIR/results.json with the accuracy on the held-out split and, where
there is one, on the test split.
"""

import functools

from flax import linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np

from affectcodec_jax import config as config_lib
from affectcodec_jax.common.constants import HOP_LENGTH
from affectcodec_jax.common.errors import UserError
from affectcodec_jax.common.files import write_json
from affectcodec_jax.config import crop_samples
from affectcodec_jax.data import pipeline
from affectcodec_jax.data.augment import MAX_SPEED, augment, degrade, play, speeds
from affectcodec_jax.emotion.accuracy import labelled, score
from affectcodec_jax.emotion.compact import Teacher
from affectcodec_jax.emotion.judges import first_seconds
from affectcodec_jax.inference import weights
from affectcodec_jax.training import guide
from affectcodec_jax.training.fit import FIT_FIELDS, crops, open_workdir, save_network, train_network
from affectcodec_jax.training.labelled import check_labels, cross_entropy, held_out_splits, report

# What is needed of a configuration.
FIELDS = {'teacher': ('dim', 'depth'), 'guide': ('kind', 'dim', 'layer', 'path', 'weight'),
          'data': config_lib.FIELDS['data'], 'train': (*FIT_FIELDS, 'start', 'dropout', 'label_smoothing')}


class Guided(nn.Module):
  """A teacher, and guesses at the features of a guide `dim` wide."""

  teacher: Teacher
  dim: int

  @nn.compact
  def __call__(self, audio, mask=None, deterministic=True):
    """Logits `[B, emotions]`, the guide's features `[B, T, dim]`, their mean and deviation `[B, 2 dim]`."""
    features = self.teacher.features(audio, mask, deterministic)
    pooled = self.teacher.pool(features, mask)
    guess = lambda width, name: nn.Dense(width, kernel_init=nn.initializers.zeros, name=name)
    return (self.teacher.classify(pooled, deterministic), guess(self.dim, 'frames')(features),
            guess(2 * self.dim, 'clips')(pooled))


def label_loss(params, batch, rng, model, samples, smoothing):
  """Cross-entropy on augmented speech."""
  augment_rng, dropout_rng = jax.random.split(rng)
  audio = augment(batch['audio'], augment_rng, samples)
  logits = model.apply({'params': params}, audio, deterministic=False, rngs={'dropout': dropout_rng})
  return cross_entropy(logits, batch['emotion'], smoothing)


def guided_loss(params, batch, rng, model, frames, scale, weight, smoothing):
  """The same on degraded speech, and `weight` times the squared errors of both guesses.

  What is guessed has variance 1: that is the error of a constant.

  Args:
    params: of `Guided`.
    batch: of `guide.batches`.
    rng: of this step.
    model: a `Guided`.
    frames: of a crop once its speed is changed; those of the batch are longer.
    scale: `guide.Scale` of its features.
    weight: of the guide, over that of the labels.
    smoothing: of the labels.
  """
  speed_rng, dropout_rng, *degrade_rngs = jax.random.split(rng, 4)
  speed = speeds(speed_rng, len(batch['audio']))
  audio = degrade(play(batch['audio'], speed, frames * HOP_LENGTH), *degrade_rngs)
  # The guide's features are of the clip as recorded: at another speed they are interpolated.
  mask = play(batch['mask'].astype(jnp.float32), speed, frames) == 1  # [B, T]
  of_frame = (play(batch['features'], speed, frames) - scale.frames[0]) / scale.frames[1]  # [B, T, dim]
  of_clip = (guide.moments(of_frame, mask) - scale.crops[0]) / scale.crops[1]  # [B, 2 dim]
  logits, *guesses = model.apply({'params': params}, audio, mask, deterministic=False,
                                 rngs={'dropout': dropout_rng})
  frame_error = jnp.mean((guesses[0] - of_frame) ** 2, axis=-1)  # [B, T]
  frame_error = jnp.sum(frame_error * mask) / mask.sum()
  clip_error = jnp.mean((guesses[1] - of_clip) ** 2)
  return cross_entropy(logits, batch['emotion'], smoothing) + weight * (frame_error + clip_error)


def train_teacher(config, workdir):
  """Trains, evaluates and writes the teacher that `config` describes."""
  if config.teacher.get('kind', 'compact') != 'compact':
    raise UserError(f'teacher.kind={config.teacher.kind}: the compact teacher is trained here; a large '
                    'network that it is to learn from goes to guide.kind, guide.dim and guide.path')
  source = pipeline.make_source(config.data, config.data.train_split, config.seed)
  held_out = held_out_splits(config)
  check_labels({config.data.train_split: source} | held_out)
  workdir = open_workdir(workdir)
  model = Teacher(config.teacher.dim, config.teacher.depth, config.train.dropout)
  start = weights.load_teacher(config, config.train.start) if config.train.start else {}
  train = _train_guided if config.guide.path else _train_on_labels
  params = train(config, workdir, model, source, start)
  path = workdir / 'teacher.safetensors'
  save_network(path, params)
  params = weights.load_teacher(config, path)  # as it was written, in float16
  results = {'parameters': sum(x.size for x in jax.tree.leaves(params))}
  for split, items in held_out.items():
    results[split] = evaluate_teacher(params, items, model)
    report(split, results[split])
  write_json(workdir / 'results.json', results)
  print(f'teacher: {path}')


def _train_on_labels(config, workdir, model, source, start):
  samples, longer = _lengths(config)
  loss_fn = functools.partial(label_loss, model=model, samples=samples,
                              smoothing=config.train.label_smoothing)
  return train_network(config, workdir, model, loss_fn, crops(config, source, longer), start)


def _train_guided(config, workdir, model, source, start):
  frames, longer = (samples // HOP_LENGTH for samples in _lengths(config))
  of_guide = ConfigDict(dict(config) | {'teacher': config.guide})
  clips = guide.read_clips(source, of_guide, weights.load_teacher(of_guide, config.guide.path),
                           workdir / 'guide')
  guided = Guided(model, config.guide.dim)
  loss_fn = functools.partial(guided_loss, model=guided, frames=frames, scale=guide.scale(clips, frames),
                              weight=config.guide.weight, smoothing=config.train.label_smoothing)
  batches = guide.batches(clips, config.train.batch_size, longer, config.seed)
  start = {'teacher': start} if start else {}
  return train_network(config, workdir, guided, loss_fn, batches, start)['teacher']


def _lengths(config):
  """Samples of a training crop, and of what is read for one that is played faster; both of whole frames."""
  samples = crop_samples(config)
  return samples, -(-int(samples * MAX_SPEED) // HOP_LENGTH) * HOP_LENGTH


def evaluate_teacher(params, source, model):
  """Scores of a teacher over the labelled clips of a source (see `accuracy.score`).

  `degraded` is its accuracy on the same clips after `augment.degrade`: noise, filters, codec-like
  distortion.
  """
  apply = jax.jit(lambda audio, mask: model.apply({'params': params}, audio, mask).argmax())
  rough = jax.jit(degrade)
  items = labelled(source)
  clean, degraded = [], []
  for i, item in enumerate(items):
    audio, mask = first_seconds(item['audio'])
    clean.append(int(apply(audio, mask)))
    degraded.append(int(apply(rough(audio, *jax.random.split(jax.random.PRNGKey(i))), mask)))
  return score(items, np.array(clean)) | {'degraded': score(items, np.array(degraded))['accuracy']}
