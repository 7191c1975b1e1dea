"""Trains the small emotion teacher on labelled speech.

  python -m affectcodec_jax.train_teacher --config configs/teacher.py --workdir runs/teacher

Writes WORKDIR/teacher.safetensors (point `teacher.path` of a codec's configuration at it),
WORKDIR/metrics.jsonl and, last, the accuracy on the held-out split.
"""

import functools
import json
import sys
import time

from affectcodec_jax.errors import UserError, run_command

# What is needed of a configuration; all of it is in configs/teacher.py.
TEACHER_FIELDS = {
    'model': ('strides',), 'teacher': ('dim',), 'data': ('source', 'crop_seconds'),
    'train': ('steps', 'batch_size', 'lr', 'weight_decay', 'dropout', 'log_every')}


def main(argv=None):
  """Entry point; returns the exit status."""
  return run_command(lambda: _run(argv or sys.argv))


def _run(argv):
  from affectcodec_jax import config as config_lib
  config, workdir = config_lib.parse_args(argv, __doc__)
  config_lib.require(config, TEACHER_FIELDS, 'this configuration')
  train_teacher(config, workdir or 'runs/teacher')


def _loss(params, audio, labels, rng, model):
  """Cross-entropy over the clips that have a label."""
  import jax.numpy as jnp
  import optax
  mask = jnp.ones((len(audio), audio.shape[1] // 320), bool)
  logits = model.apply({'params': params}, audio, mask, deterministic=False, rngs={'dropout': rng})
  known = labels >= 0
  targets = optax.smooth_labels(
      jnp.eye(logits.shape[-1])[jnp.maximum(labels, 0)], alpha=0.1)
  loss = optax.softmax_cross_entropy(logits, targets)
  return jnp.sum(loss * known) / jnp.maximum(known.sum(), 1)


def _augment(audio, rng):
  """Additive noise at 10–50 dB below speech and a random tilt, so that level and channel say little."""
  import jax
  import jax.numpy as jnp
  keys = jax.random.split(rng, 3)
  b = len(audio)
  level = jnp.sqrt(jnp.mean(audio ** 2, axis=1, keepdims=True))
  snr = jax.random.uniform(keys[0], (b, 1), minval=10.0, maxval=50.0)
  noise = jax.random.normal(keys[1], audio.shape) * level * 10 ** (-snr / 20)
  tilt = jax.random.uniform(keys[2], (b, 1), minval=-0.4, maxval=0.4)
  return audio + noise + tilt * jnp.pad(audio, ((0, 0), (1, 0)))[:, :-1]


def train_teacher(config, workdir):
  """Trains, evaluates and writes the teacher that `config` describes."""
  import jax
  import jax.numpy as jnp
  import numpy as np
  import optax

  from affectcodec_jax import weights
  from affectcodec_jax.api import use_compilation_cache
  from affectcodec_jax.config import crop_samples, save_config
  from affectcodec_jax.data import pipeline
  from affectcodec_jax.files import make_folder
  from affectcodec_jax.models.teacher import Teacher

  use_compilation_cache()
  workdir = make_folder(workdir)
  if (workdir / 'checkpoints').exists():
    raise UserError(f'{workdir} holds a run of the codec; give another --workdir')
  c, t = config.data, config.train
  crop = crop_samples(config)
  source = pipeline.make_source(c, c.train_split, config.seed)
  held_out = pipeline.make_source(c, c.eval_split, config.seed)
  iterator = pipeline.make_iterator(source, batch_size=t.batch_size, crop_samples=crop,
                                    seed=config.seed, gain_db=c.gain_db, num_workers=c.num_workers)
  model = Teacher(config.teacher.dim, dropout=t.dropout)
  base = jax.random.PRNGKey(config.seed)
  params = jax.jit(lambda rng: model.init(rng, jnp.zeros((1, crop)), jnp.ones((1, crop // 320), bool)))(
      base)['params']
  schedule = optax.warmup_cosine_decay_schedule(0.0, t.lr, min(100, t.steps // 4), t.steps)
  optimizer = optax.adamw(schedule, weight_decay=t.weight_decay)
  opt_state = optimizer.init(params)

  @jax.jit
  def step_fn(params, opt_state, audio, labels, step):
    noise, drop = jax.random.split(jax.random.fold_in(base, step))
    loss, grads = jax.value_and_grad(_loss)(params, _augment(audio, noise), labels, drop, model)
    updates, opt_state = optimizer.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, loss

  save_config(workdir / 'config.json', config)
  started = time.time()
  with open(workdir / 'metrics.jsonl', 'w') as log:
    for step in range(1, t.steps + 1):
      batch = next(iterator)
      params, opt_state, loss = step_fn(params, opt_state, batch['audio'], batch['emotion'], step)
      if step % t.log_every == 0 or step == t.steps:
        if not np.isfinite(loss):
          raise UserError(f'loss is {float(loss)} at step {step}; lower train.lr')
        log.write(json.dumps({'step': step, 'loss': round(float(loss), 4)}) + '\n')
        print(f'step {step}/{t.steps}  loss {float(loss):.3f}  '
              f'{step / (time.time() - started):.2f} steps/s', flush=True)
    weights.save_params(workdir / 'teacher.safetensors', params, np.float16)
    accuracy, confusion = evaluate_teacher(params, held_out, config.teacher.dim)
    log.write(json.dumps({'step': t.steps, 'unweighted_accuracy': round(accuracy, 4),
                          'confusion': confusion.tolist()}) + '\n')
  _report(accuracy, confusion, c.eval_split)
  print(f'teacher: {workdir}/teacher.safetensors')


def evaluate_teacher(params, source, dim, max_seconds=6.0):
  """(unweighted accuracy, confusion `[true, predicted]`) over the labelled clips of a source."""
  import jax
  import numpy as np

  from affectcodec_jax.audio import level_gain
  from affectcodec_jax.emotions import EMOTIONS
  from affectcodec_jax.models.teacher import Teacher

  apply = jax.jit(functools.partial(Teacher(dim).apply, {'params': params}))
  confusion = np.zeros((len(EMOTIONS), len(EMOTIONS)), np.int64)
  frames = int(max_seconds * 50)
  for i in range(len(source)):
    item = source[i]
    if item is None or item['emotion'] < 0:
      continue
    audio = item['audio'][:frames * 320]
    padded = np.zeros((1, frames * 320), np.float32)
    padded[0, :len(audio)] = audio * 10 ** (level_gain(audio) / 20)
    mask = np.arange(frames)[None] < -(-len(audio) // 320)
    confusion[item['emotion'], int(np.argmax(apply(padded, mask)[0]))] += 1
  present = confusion.sum(axis=1) > 0
  if not present.any():
    raise UserError('the held-out split has no clip with a known emotion')
  recall = np.diag(confusion)[present] / confusion[present].sum(axis=1)
  return float(recall.mean()), confusion


def _report(accuracy, confusion, split):
  from affectcodec_jax.emotions import EMOTIONS
  print(f'unweighted accuracy on {split}: {accuracy:.3f} over {confusion.sum()} clips')
  print('true \\ predicted ' + ' '.join(f'{name[:6]:>6}' for name in EMOTIONS))
  for name, row in zip(EMOTIONS, confusion):
    print(f'{name:>16} ' + ' '.join(f'{n:>6}' for n in row))


if __name__ == '__main__':
  sys.exit(main())
