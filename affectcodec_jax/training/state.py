"""The training state: one pytree with everything a step reads and writes."""

from flax import struct
import jax
import jax.numpy as jnp
import optax

from affectcodec_jax.emotion.teachers import encoder_features
from affectcodec_jax.models.codec import Codec, init_params, make_codec
from affectcodec_jax.models.layers import whiten


@struct.dataclass
class TrainState:
  """Generator, its EMA, discriminator, both optimisers, step count and the base random key."""

  step: jax.Array
  rng: jax.Array
  params: dict
  ema: dict
  opt_state: optax.OptState
  disc_params: dict
  disc_opt_state: optax.OptState


def learning_rate(config, peak):
  """Linear warm-up to `peak`, then cosine decay to `final_lr_fraction` of it over `train.steps`.

  By the count of updates: the discriminator, which joins later, ends somewhat higher.
  """
  t = config.train
  warmup = min(t.warmup_steps, t.steps // 2)
  return optax.warmup_cosine_decay_schedule(
      0.0, peak, warmup, max(t.steps, warmup + 1), peak * t.final_lr_fraction)


def make_optimizer(config, peak):
  """AdamW with gradient clipping; only matrices decay, not gains, scales, biases or Snake's alpha.

  Weight-normalised directions do not decay either: their length has no effect but on their step size.
  """
  t = config.train

  def decay(updates, params):
    return jax.tree_util.tree_map_with_path(
        lambda path, u, p: u + t.weight_decay * p if path[-1].key == 'kernel' and p.ndim > 1 else u,
        updates, params)

  # optax.adamw's own mask would be in the state, which then no longer fits runs of before.
  return optax.chain(
      optax.clip_by_global_norm(t.clip_norm),
      optax.chain(optax.scale_by_adam(b1=t.beta1, b2=t.beta2), optax.stateless(decay),
                  optax.scale_by_learning_rate(learning_rate(config, peak))))


def calibrate(config, params, frozen, audio):
  """Fits the path into the quantiser to a first batch of audio `[batch, samples]`.

  The two projections are rescaled so that U has zero mean and unit variance a channel, then the
  quantiser's affine, or an RVQ's codebooks, are fitted to it. An untrained encoder's output is some
  hundredths wide: without this nearly every code would be the same for the first thousand steps.
  """
  codec = make_codec(config)
  features = encoder_features(config, frozen, audio)
  mask = jnp.ones(features.shape[:2], bool)
  u = codec.apply({'params': params}, audio, features, mask, method=Codec.analyse)
  names = ('to_emotion', 'to_acoustic')
  convs, u = whiten([params[name] for name in names], u)
  params = params | dict(zip(names, convs))
  return params | {'quantizer': codec.apply({'params': params}, u, method=Codec.calibrate_quantizer)}


def create_state(config, rng, frozen, audio) -> TrainState:
  """State at step 0.

  `frozen` are the emotion networks; `audio` `[batch, samples]` a first batch, for the calibration.
  jit or eval_shape this: it runs the untrained networks once.
  """
  params, disc_params = init_params(config, rng)
  params = calibrate(config, params, frozen, audio)
  return TrainState(
      step=jnp.zeros((), jnp.int32),
      rng=rng,
      params=params,
      ema=jax.tree.map(jnp.copy, params),
      opt_state=make_optimizer(config, config.train.lr).init(params),
      disc_params=disc_params,
      disc_opt_state=make_optimizer(config, config.train.disc_lr).init(disc_params))
