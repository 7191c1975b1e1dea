"""AffectCodec with Block-Diagonal Residual FSQ (arXiv 2605.23373), in JAX and Flax."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
  from affectcodec_jax.api import Pretrained
  from affectcodec_jax.common.files import AnyPath

__version__ = '0.8.0'


def load(path: 'AnyPath' = 'pretrained') -> 'Pretrained':
  """Loads a trained codec, the packaged one by default; see `affectcodec_jax.api.load`."""
  from affectcodec_jax import api  # JAX is imported only when it is needed
  return api.load(path)
