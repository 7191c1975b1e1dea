"""One training step, a pure function: (state, frozen, batch) -> (state, metrics).

L = L_rec + alpha L_cm + beta L_emo + lambda L_cycle + delta L_mr (AffectCodec, training section).
The multi-rate term decodes every rate of every clip in one batched decoder call. The clip's own
rate, drawn by biased stage dropout, is always one of those, so it costs no decoding of its own. It shares
the weights of mel and cycle with the term at the clip's rate: mel to adversarial stays as configured.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from affectcodec_jax import losses
from affectcodec_jax.emotion.teachers import encoder_features, teacher_features, teacher_logits
from affectcodec_jax.models.codec import Codec, make_codec, make_discriminator
from affectcodec_jax.training.state import TrainState, make_optimizer


def draw_rates(config, rng, batch_size):
  """Index into `config.rates` for each clip, `[batch_size]` int32: biased stage dropout.

  With probability `train.stage_dropout` a rate from the categorical `rate_probs`, else the highest.
  """
  drop_rng, rate_rng = jax.random.split(rng)
  logits = jnp.log(jnp.asarray(config.train.rate_probs))
  drawn = jax.random.categorical(rate_rng, logits, shape=(batch_size,))
  dropped = jax.random.bernoulli(drop_rng, config.train.stage_dropout, (batch_size,))
  return jnp.where(dropped, drawn, len(config.rates) - 1)


class Schedule(NamedTuple):
  """What changes from step to step.

  Attributes:
    rounding: as in `fsq.quantize`; none for `unquantized_steps`, then by and by within `rounding_steps`.
    true_pitch: probability that a clip's source has its true pitch, falling from 1 to 0 within
      `true_pitch_steps`: the predicted one means nothing yet.
  """

  rounding: jax.Array
  true_pitch: jax.Array


def schedule(config, step) -> Schedule:
  """The `Schedule` of section `train` at `step`."""
  t = config.train
  return Schedule(
      rounding=jnp.clip((step + 1 - t.unquantized_steps) / max(t.rounding_steps, 1), 0.0, 1.0),
      true_pitch=jnp.clip(1 - step / t.true_pitch_steps, 0.0, 1.0) if t.true_pitch_steps else jnp.zeros(()))


def is_trainable(config, name):
  """Whether parameters of this name change: all of them, or with `train.decoder_only` the decoder's."""
  return not config.train.decoder_only or name == 'decoder'


def _reconstruct(config, codec, params, batch, features, rounding):
  """Decodes each clip at its rate and, for the multi-rate term, at all of them.

  Returns:
    audio at every rate `[B, R, L]` (R = 1 without the multi-rate term), at the clip's rate
    `[B, L]`, emotion features `[B, T, D]` from the latent at the clip's rate, commitment `[B]`, and
    pitch losses `[B * R]` by name (of a source-filter decoder).
  """
  variables, audio, rate = {'params': params}, batch['audio'], batch['rate']
  mask = jnp.ones(features.shape[:2], bool)
  u = codec.apply(variables, audio, features, mask, method=Codec.analyse)
  quantized = codec.apply(variables, u, rounding, method=Codec.quantize)
  stages = jnp.asarray(config.rates)
  active = jnp.arange(config.model.num_stages)[:, None] < stages[rate]  # [K, B]
  commitment = jnp.sum(active * quantized.commitment, 0) / jnp.sum(active, 0)
  latents = jnp.stack([codec.apply(variables, quantized.values[:m], method=Codec.latent)
                       for m in config.rates], axis=1)  # [B, R, T, d]
  at_rate = select_rate(latents, rate)  # [B, T, d]
  emotion = codec.apply(variables, at_rate, method=Codec.emotion_features)
  every = latents if config.loss.multi_rate else at_rate[:, None]  # [B, R, T, d]
  rates = every.shape[1]
  flat = every.reshape(-1, *every.shape[2:])  # [B*R, T, d]
  if 'f0' not in batch:
    decoded, pitch = codec.apply(variables, flat, method=Codec.synthesise), {}
  else:
    f0, voiced, use_true_pitch = (jnp.repeat(batch[name], rates, axis=0)
                                  for name in ('f0', 'voiced', 'use_true_pitch'))
    decoded, controls = codec.apply(variables, flat, f0, use_true_pitch, method=Codec.synthesise_with_pitch)
    pitch = {'pitch': losses.pitch_distance(controls.pitch, f0, voiced),
             'voicing': losses.voicing_distance(controls.voicing, voiced)}
  decoded = decoded.reshape(-1, rates, audio.shape[1])  # [B, R, L]
  decoded_at_rate = select_rate(decoded, rate) if config.loss.multi_rate else decoded[:, 0]
  return decoded, decoded_at_rate, emotion, commitment, pitch


def select_rate(by_rate, rate):
  """Of `[B, R, ...]` what is at the rates `[B]` of the clips: `[B, ...]`."""
  chosen = jax.nn.one_hot(rate, by_rate.shape[1], dtype=bool)  # [B, R]
  chosen = chosen.reshape(*chosen.shape, *(1,) * (by_rate.ndim - 2))
  return jnp.sum(jnp.where(chosen, by_rate, 0), axis=1)


def generator_loss(params, disc_params, frozen, batch, rounding, config, adversarial):
  """Total loss, (each loss by itself, the decoded audio `[B, L]`)."""
  params = {name: value if is_trainable(config, name) else jax.lax.stop_gradient(value)
            for name, value in params.items()}
  codec, discriminator = make_codec(config), make_discriminator(config)
  weight, audio, rate = config.loss, batch['audio'], batch['rate']
  features = teacher_features(config, frozen, audio)
  encoder_input = encoder_features(config, frozen, audio) if 'student' in frozen else features
  decoded, at_rate, emotion, commitment, pitch = _reconstruct(
      config, codec, params, batch, encoder_input, rounding)
  clips, rates = decoded.shape[:2]
  flat = decoded.reshape(clips * rates, -1)  # [B*R, L]
  targets = [jnp.repeat(t, rates, axis=0) for t in losses.mel_targets(audio, weight.mel_floor)]
  mel = losses.mel_distance(losses.mel_targets(flat, weight.mel_floor), targets).reshape(clips, rates)

  def mixed(by_rate):
    """Mean of `[B, R]` at the clips' rates and, `multi_rate` times as much, at all: one weight in all."""
    if not weight.multi_rate:
      return by_rate.mean()
    at_rates = select_rate(by_rate, rate).mean()
    return (at_rates + weight.multi_rate * by_rate.mean()) / (1 + weight.multi_rate)

  parts = {
      'mel': mixed(mel),
      'waveform': losses.waveform_l1(at_rate, audio).mean(),
      'commitment': commitment.mean(),
      'emotion': losses.emotion_l2(emotion, features).mean(),
  } | {name: value.mean() for name, value in pitch.items()}
  of_rates = {'mel': mel}  # [B, R] each
  if weight.cycle:  # costs the teacher on all that is decoded
    cycle = losses.emotion_cycle(
        teacher_features(config, frozen, flat), jnp.repeat(features, rates, axis=0)).reshape(clips, rates)
    of_rates['cycle'], parts['cycle'] = cycle, mixed(cycle)
  if weight.posterior:
    logits = [teacher_logits(config, frozen, x) for x in (emotion, features)]
    parts['posterior'] = losses.emotion_posterior(*logits).mean()
  if adversarial:
    real, fake = discriminated(discriminator, disc_params, audio, at_rate)
    parts['adversarial'] = losses.adversarial_loss(fake).mean()
    parts['feature_matching'] = losses.feature_matching(real, fake).mean()
  total = sum(weight[name] * value for name, value in parts.items())
  if weight.multi_rate:
    parts |= {f'{name}_{m}_stages': v for name, values in of_rates.items()
              for m, v in zip(config.rates, values.mean(axis=0))}
  return total, (parts, at_rate)


def discriminated(discriminator, params, real, fake):
  """What it says of `[B, L]` each, by one call: half the program, and half of its compilation."""
  both = jnp.stack([real, fake], axis=1).reshape(-1, real.shape[1])  # [B*2, L]
  maps = discriminator.apply({'params': params}, both)
  maps = jax.tree.map(lambda x: x.reshape(-1, 2, *x.shape[1:]), maps)  # [B, 2, …]
  return jax.tree.map(lambda x: x[:, 0], maps), jax.tree.map(lambda x: x[:, 1], maps)


def gradients(params, disc_params, frozen, batch, rounding, config, adversarial):
  """Gradients of generator and (when `adversarial`, else None) discriminator, and the losses' means.

  The discriminator sees the generator's output of before this step's update, as DAC's does.
  """
  grad_fn = jax.value_and_grad(generator_loss, has_aux=True)
  (total, (parts, decoded)), grads = grad_fn(
      params, disc_params, frozen, batch, rounding, config, adversarial)
  metrics = {f'loss/{k}': v for k, v in parts.items()} | {'loss/total': total}
  if not adversarial:
    return grads, None, metrics
  discriminator = make_discriminator(config)

  def disc_loss(disc_params):
    real, fake = discriminated(discriminator, disc_params, batch['audio'], jax.lax.stop_gradient(decoded))
    return losses.discriminator_loss(real, fake).mean()

  metrics['loss/discriminator'], disc_grads = jax.value_and_grad(disc_loss)(disc_params)
  return grads, disc_grads, metrics


def accumulated(grad_fn, batch, pieces):
  """Mean of `grad_fn(batch)` over equal pieces of the batch, one after another: a piece's memory."""
  if pieces == 1:
    return grad_fn(batch)
  cut = jax.tree.map(lambda x: x.reshape(pieces, -1, *x.shape[1:]), batch)  # [pieces, B / pieces, ...]
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype),
                       jax.eval_shape(grad_fn, jax.tree.map(lambda x: x[0], cut)))

  def add(total, piece):
    return jax.tree.map(jnp.add, total, grad_fn(piece)), None

  total, _ = jax.lax.scan(add, zeros, cut)
  return jax.tree.map(lambda x: x / pieces, total)


def mean_gradients(params, disc_params, frozen, rng, step, batch, *, config, adversarial, axis_name=None):
  """As `gradients`, of the means over the global batch, of which `batch` is this device's part.

  Args:
    params, disc_params, frozen: of generator, discriminator and emotion networks, whole.
    rng: the base key.
    step: the step's number.
    batch, config, adversarial, axis_name: as in `train_step`.
  """
  clips = len(batch['audio'])
  devices = jax.lax.axis_size(axis_name) if axis_name else 1
  index = jax.lax.axis_index(axis_name) if axis_name else 0
  now = schedule(config, step)
  # Drawn for the global batch and sliced, so the number of devices changes nothing.
  rng = jax.random.fold_in(rng, step)
  every = devices * clips
  drawn = {'rate': draw_rates(config, rng, every),
           'use_true_pitch': jax.random.bernoulli(jax.random.fold_in(rng, 2), now.true_pitch, (every,))}
  batch = batch | {name: jax.lax.dynamic_slice_in_dim(x, index * clips, clips) for name, x in drawn.items()}
  grad_fn = functools.partial(gradients, params, disc_params, frozen, rounding=now.rounding, config=config,
                              adversarial=adversarial)
  found = accumulated(grad_fn, batch, config.train.accumulate)
  return jax.lax.pmean(found, axis_name) if axis_name else found


def train_step(state: TrainState, frozen, batch, *, config, adversarial, axis_name=None,
               map_devices=lambda function: function):
  """Updates generator, EMA and (when `adversarial`) discriminator.

  Args:
    state: the training state.
    frozen: parameters of the emotion networks (see `teachers`).
    batch: {'audio': `[batch, samples]`} of this device, or with `map_devices` of all; for a source-filter
      decoder also 'f0' (Hz, above 0) and 'voiced' (1 or 0), `[batch, frames]`.
    config: the configuration; static.
    adversarial: static; False leaves the discriminator out of the program.
    axis_name: mapped axis or axes to average over; None on one device.
    map_devices: maps `mean_gradients` over the devices, where they do not all run the whole step.

  Returns:
    the new state and a dict of scalar metrics, the same on every device.
  """
  grad_fn = functools.partial(mean_gradients, config=config, adversarial=adversarial, axis_name=axis_name)
  grads, disc_grads, metrics = map_devices(grad_fn)(
      state.params, state.disc_params, frozen, state.rng, state.step, batch)
  updates, opt_state = make_optimizer(config, config.train.lr).update(
      grads, state.opt_state, state.params)
  # Without a gradient there would still be decay, and what is left of earlier steps' moments.
  updates = {name: value if is_trainable(config, name) else jax.tree.map(jnp.zeros_like, value)
             for name, value in updates.items()}
  params = optax.apply_updates(state.params, updates)
  # The average starts short and lengthens, so that early checkpoints are not the initial weights.
  decay = jnp.minimum(config.train.ema_decay, (1 + state.step) / (10 + state.step))
  # What does not change keeps its average too, which may be another: tokens are made with that.
  ema = {name: jax.tree.map(lambda e, p: decay * e + (1 - decay) * p, old, params[name])
         if is_trainable(config, name) else old for name, old in state.ema.items()}
  state = state.replace(step=state.step + 1, params=params, ema=ema, opt_state=opt_state)
  metrics['grad_norm/generator'] = optax.global_norm(grads)

  if adversarial:
    updates, disc_opt_state = make_optimizer(config, config.train.disc_lr).update(
        disc_grads, state.disc_opt_state, state.disc_params)
    state = state.replace(disc_params=optax.apply_updates(state.disc_params, updates),
                          disc_opt_state=disc_opt_state)
    metrics['grad_norm/discriminator'] = optax.global_norm(disc_grads)
  metrics['finite'] = jnp.all(jnp.isfinite(jnp.stack(list(metrics.values()))))
  return state, metrics
