"""A small network trained by one loss: what making a teacher and making a student have in common."""

import json
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

from affectcodec_jax.common.errors import UserError

# What is needed of a configuration besides what the command itself needs.
FIT_FIELDS = ('steps', 'batch_size', 'lr', 'weight_decay', 'ema_decay', 'log_every')


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
