"""What encoder and decoder keep for the backward pass, with and without `train.remat`: counted by tracing.

Parameters included; the decoder at all rates. XLA may keep less, and on a CPU undoes rematerialisation.
"""

import jax
import jax.numpy as jnp
import numpy as np

from affectcodec_jax import config as config_lib
from affectcodec_jax.common.constants import HOP_LENGTH
from affectcodec_jax.models.codec import Codec, make_codec
from configs import base, lite, paper


def run(threads, rounds):
  """Rows of the three configurations."""
  del threads, rounds
  for name, module in (('base', base), ('lite', lite), ('paper', paper)):
    for remat in (False, True):
      config = module.get_config()
      config.train.remat = remat
      yield {'operation': f'configs/{name}.py', 'remat': remat, 'mib': round(_kept(config) / 2 ** 20)}


def _kept(config):
  """Bytes that a training step's batch leaves between forward and backward pass."""
  codec = make_codec(config)
  batch, samples = config.train.batch_size, config_lib.crop_samples(config)
  frames = samples // HOP_LENGTH
  audio, features, latent = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in (
      (batch, samples), (batch, frames, config.teacher.dim),
      (batch * len(config.rates), frames, config.model.acoustic_width)))
  params = jax.eval_shape(codec.init, jax.random.key(0), audio, features)

  def forward(params, audio, features, latent):
    mask = jnp.ones(features.shape[:2], bool)
    return (codec.apply(params, audio, features, mask, method=Codec.analyse),
            codec.apply(params, latent, method=Codec.synthesise))

  kept = jax.eval_shape(lambda *args: jax.vjp(forward, *args)[1], params, audio, features, latent)
  return sum(np.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(kept))
