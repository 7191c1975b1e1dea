"""One training step, a pure function: (state, frozen, batch) -> (state, metrics).

L = L_rec + alpha L_cm + beta L_emo + lambda L_cycle + delta L_mr (AffectCodec, training section).
The multi-rate term decodes every rate of every clip in one batched decoder call. The clip's own
rate, drawn by biased stage dropout, is always one of those, so it costs no decoding of its own.
"""

import functools

import jax
import jax.numpy as jnp
import optax

from affectcodec_jax.emotion.teachers import encoder_features, teacher_features
from affectcodec_jax.models.codec import Codec, make_codec, make_discriminator
from affectcodec_jax.training import losses
from affectcodec_jax.training.state import TrainState, make_optimizer


def draw_rates(config, rng, batch_size):
  """Index into `config.rates` for each clip, `[batch_size]` int32: biased stage dropout.

  With probability `stage_dropout` a rate from the categorical `rate_probs`, else the highest.
  """
  drop_rng, rate_rng = jax.random.split(rng)
  logits = jnp.log(jnp.asarray(config.train.rate_probs))
  drawn = jax.random.categorical(rate_rng, logits, shape=(batch_size,))
  dropped = jax.random.bernoulli(drop_rng, config.train.stage_dropout, (batch_size,))
  return jnp.where(dropped, drawn, len(config.rates) - 1)


def _reconstruct(config, codec, params, audio, features, rate):
  """Decodes each clip at its own rate and, for the multi-rate term, at all of them.

  Returns:
    audio at every rate `[R, B, L]` (R = 1 without the multi-rate term), at the clip's rate
    `[B, L]`, emotion features told from the clip's own latent `[B, T, D]`, commitment `[B]`.
  """
  variables = {'params': params}
  mask = jnp.ones(features.shape[:2], bool)
  u = codec.apply(variables, audio, features, mask, method=Codec.analyse)
  quantized = codec.apply(variables, u, method=Codec.quantize)
  stages = jnp.asarray(config.rates)
  active = jnp.arange(config.model.num_stages)[:, None] < stages[rate]  # [K, B]
  commitment = jnp.sum(active * quantized.commitment, 0) / jnp.sum(active, 0)
  latents = jnp.stack([codec.apply(variables, quantized.values[:m], method=Codec.latent)
                       for m in config.rates])  # [R, B, T, d]
  own = latents[rate, jnp.arange(len(audio))]  # [B, T, d]
  emotion = codec.apply(variables, own, method=Codec.emotion_features)
  if not config.loss.multi_rate:
    decoded = codec.apply(variables, own, method=Codec.synthesise)
    return decoded[None], decoded, emotion, commitment
  flat = latents.reshape(-1, *latents.shape[2:])  # [R*B, T, d]
  decoded = codec.apply(variables, flat, method=Codec.synthesise)
  decoded = decoded.reshape(len(config.rates), *audio.shape)  # [R, B, L]
  return decoded, decoded[rate, jnp.arange(len(audio))], emotion, commitment


def generator_loss(params, disc_params, frozen, audio, rate, config, adversarial):
  """Total loss, (each loss by itself, the decoded audio `[B, L]`)."""
  codec, discriminator = make_codec(config), make_discriminator(config)
  weight = config.loss
  features = teacher_features(config, frozen, audio)
  heard = encoder_features(config, frozen, audio) if 'student' in frozen else features
  decoded, own, emotion, commitment = _reconstruct(config, codec, params, audio, heard, rate)
  rates, batch = decoded.shape[:2]
  flat = decoded.reshape(rates * batch, -1)  # [R*B, L]
  targets = losses.mel_targets(audio)
  repeated = [jnp.tile(t, (rates, 1, 1)) for t in targets]
  mel = losses.mel_distance(losses.mel_targets(flat), repeated).reshape(rates, batch)
  decoded_features = teacher_features(config, frozen, flat)
  cycle = losses.emotion_cycle(
      decoded_features, jnp.tile(features, (rates, 1, 1))).reshape(rates, batch)
  pick = (rate, jnp.arange(batch)) if weight.multi_rate else (0,)
  parts = {
      'mel': mel[pick].mean(),
      'waveform': losses.waveform_l1(own, audio).mean(),
      'commitment': commitment.mean(),
      'emotion': losses.emotion_l2(emotion, features).mean(),
      'cycle': cycle[pick].mean(),
  }
  if weight.multi_rate:
    parts['multi_rate'] = weight.mel * mel.mean() + weight.cycle * cycle.mean()
  if adversarial:
    variables = {'params': disc_params}
    real = discriminator.apply(variables, audio)
    fake = discriminator.apply(variables, own)
    parts['adversarial'] = losses.adversarial_loss(fake).mean()
    parts['feature_matching'] = losses.feature_matching(real, fake).mean()
  total = sum(weight[name] * value for name, value in parts.items())
  if weight.multi_rate:
    parts |= {f'mel_{m}_stages': v for m, v in zip(config.rates, mel.mean(axis=1))}
    parts |= {f'cycle_{m}_stages': v for m, v in zip(config.rates, cycle.mean(axis=1))}
  return total, (parts, own)


def gradients(params, disc_params, frozen, audio, rate, config, adversarial):
  """Gradients of generator and (when `adversarial`, else None) discriminator, and the losses' means.

  The discriminator sees the generator's output of before this step's update, as DAC's does.
  """
  grad_fn = jax.value_and_grad(generator_loss, has_aux=True)
  (total, (parts, decoded)), grads = grad_fn(
      params, disc_params, frozen, audio, rate, config, adversarial)
  metrics = {f'loss/{k}': v for k, v in parts.items()} | {'loss/total': total}
  if not adversarial:
    return grads, None, metrics
  discriminator = make_discriminator(config)

  def disc_loss(disc_params):
    real = discriminator.apply({'params': disc_params}, audio)
    fake = discriminator.apply({'params': disc_params}, jax.lax.stop_gradient(decoded))
    return losses.discriminator_loss(real, fake).mean()

  metrics['loss/discriminator'], disc_grads = jax.value_and_grad(disc_loss)(disc_params)
  return grads, disc_grads, metrics


def accumulated(grad_fn, audio, rate, pieces):
  """Mean of `grad_fn(audio, rate)` over equal pieces of the batch, one after another: a piece's memory."""
  if pieces == 1:
    return grad_fn(audio, rate)
  # Piece i has clips i, i + pieces, ...: so a batch that is split over devices stays split in each piece.
  cut = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(-1, pieces, *x.shape[1:]), 1, 0), (audio, rate))
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype),
                       jax.eval_shape(grad_fn, *jax.tree.map(lambda x: x[0], cut)))

  def add(total, piece):
    return jax.tree.map(jnp.add, total, grad_fn(*piece)), None

  total, _ = jax.lax.scan(add, zeros, cut)
  return jax.tree.map(lambda x: x / pieces, total)


def train_step(state: TrainState, frozen, batch, *, config, adversarial, axis_name=None):
  """Updates generator, EMA and (when `adversarial`) discriminator.

  Args:
    state: the training state.
    frozen: parameters of the emotion networks (see `teachers`).
    batch: {'audio': `[batch, samples]`} of this device, or the whole of it where XLA splits it.
    config: the configuration; static.
    adversarial: static; False leaves the discriminator out of the program.
    axis_name: mapped axis to average over; None on one device and where XLA splits the program.

  Returns:
    the new state and a dict of scalar metrics, the same on every device.
  """
  audio = batch['audio']
  devices = jax.lax.axis_size(axis_name) if axis_name else 1
  index = jax.lax.axis_index(axis_name) if axis_name else 0
  # Rates are drawn for the global batch and sliced, so the number of devices changes nothing.
  rates = draw_rates(config, jax.random.fold_in(state.rng, state.step), devices * len(audio))
  rate = jax.lax.dynamic_slice_in_dim(rates, index * len(audio), len(audio))
  mean = (lambda x: jax.lax.pmean(x, axis_name)) if axis_name else (lambda x: x)

  grad_fn = functools.partial(gradients, state.params, state.disc_params, frozen, config=config,
                              adversarial=adversarial)
  grads, disc_grads, metrics = mean(accumulated(grad_fn, audio, rate, config.train.accumulate))
  updates, opt_state = make_optimizer(config, config.train.lr).update(
      grads, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  # The average starts short and lengthens, so that early checkpoints are not the initial weights.
  decay = jnp.minimum(config.train.ema_decay, (1 + state.step) / (10 + state.step))
  ema = jax.tree.map(lambda e, p: decay * e + (1 - decay) * p, state.ema, params)
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
