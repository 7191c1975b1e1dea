"""AffectCodec with Block-Diagonal Residual FSQ (arXiv 2605.23373), in JAX and Flax."""

__version__ = '0.2.0'


def load(path='pretrained'):
  """Loads a trained codec, the packaged one by default; see `affectcodec_jax.api.load`."""
  from affectcodec_jax import api  # JAX is imported only when it is needed
  return api.load(path)
