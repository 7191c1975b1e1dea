"""A small network trained by one loss: what making a teacher and making a student have in common."""

import json
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

from affectcodec_jax.common.compilation_cache import use_compilation_cache
from affectcodec_jax.common.errors import UserError
from affectcodec_jax.common.files import make_folder
from affectcodec_jax.config import save_config
from affectcodec_jax.data import pipeline
from affectcodec_jax.inference.release import is_release
from affectcodec_jax.models.params import save_params

NETWORKS = ('teacher.safetensors', 'student.safetensors', 'judge.safetensors')
# What is needed of a configuration besides what the command itself needs.
FIT_FIELDS = ('steps', 'batch_size', 'lr', 'weight_decay', 'ema_decay', 'log_every')


def open_workdir(workdir):
  """Creates the folder of the training; returns it as a `Path`.

  Raises:
    UserError: it holds a codec or a network, whose logs would be lost, or cannot be written to.
  """
  use_compilation_cache()
  workdir = make_folder(workdir)
  if (workdir / 'checkpoints').exists() or is_release(workdir):
    raise UserError(f'{workdir} holds a codec; give another --workdir')
  for network in NETWORKS:
    if (workdir / network).exists():
      raise UserError(f'{workdir} holds a {network}; give another --workdir, or move it away')
  return workdir


def crops(config, source, crop_samples):
  """Endless batches of random crops of a source, as sections `data` and `train` of `config` describe."""
  c = config.data
  return pipeline.make_iterator(source, c, batch_size=config.train.batch_size, crop_samples=crop_samples,
                                seed=config.seed, num_workers=c.num_workers)


def train_network(config, workdir, model, loss_fn, iterator, start=None):
  """Trains `model` on batches; writes metrics.jsonl and config.json.

  Args:
    config: the configuration, with a section `train`.
    workdir: the folder of `open_workdir`.
    model: a Flax module that is called with audio `[batch, samples]`.
    loss_fn: as `fit`'s.
    iterator: of batches.
    start: parameters to begin with, in the place of random ones of these names.

  Returns:
    the parameters, averaged over steps, on the host.
  """
  base = jax.random.PRNGKey(config.seed)
  params = jax.jit(model.init)(base, jnp.zeros((1, 6400)))['params'] | (start or {})
  save_config(workdir / 'config.json', config)
  with open(workdir / 'metrics.jsonl', 'w') as log:
    return fit(loss_fn, params, iterator, config.train, base, log)


def save_network(path, params):
  """Writes a trained network's parameters as float16."""
  save_params(path, params, np.float16)


def fit(loss_fn, params, iterator, t, rng, log):
  """Minimises `loss_fn(params, batch, rng)` by AdamW over a one-cycle cosine.

  Args:
    loss_fn: a pure function to a scalar.
    params: where to start.
    iterator: of batches.
    t: the `train` section of a configuration.
    rng: base key; step n uses fold_in(rng, n).
    log: an open text file for the metrics, one JSON object a line.

  Returns:
    the exponential moving average of the parameters, on the host.

  Raises:
    UserError: the loss is no longer finite.
  """
  schedule = optax.warmup_cosine_decay_schedule(0.0, t.lr, min(100, t.steps // 4), t.steps)
  optimizer = optax.chain(optax.clip_by_global_norm(5.0),
                          optax.adamw(schedule, weight_decay=t.weight_decay))

  @jax.jit
  def step_fn(params, ema, opt_state, batch, step):
    loss, grads = jax.value_and_grad(loss_fn)(params, batch, jax.random.fold_in(rng, step))
    updates, opt_state = optimizer.update(grads, opt_state, params)
    params = optax.apply_updates(params, updates)
    decay = jnp.minimum(t.ema_decay, (1 + step) / (10 + step))
    return params, jax.tree.map(lambda e, p: decay * e + (1 - decay) * p, ema, params), opt_state, loss

  ema, opt_state = params, optimizer.init(params)
  started, losses = time.time(), []
  for step in range(1, t.steps + 1):
    params, ema, opt_state, loss = step_fn(params, ema, opt_state, next(iterator), step)
    losses.append(loss)
    if step % t.log_every == 0 or step == t.steps:
      mean = float(np.mean(jax.device_get(losses)))
      losses = []
      if not np.isfinite(mean):
        raise UserError(f'the loss is {mean} by step {step}; lower train.lr')
      log.write(json.dumps({'step': step, 'loss': round(mean, 4)}) + '\n')
      log.flush()
      print(f'step {step}/{t.steps}  loss {mean:.3f}  {step / (time.time() - started):.2f} steps/s',
            flush=True)
  return jax.device_get(ema)
