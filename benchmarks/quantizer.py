"""BD-RFSQ beside `vector_quantize_pytorch`'s ResidualFSQ: 8 stages, 4 clips of 5 s, 1024 wide.

The peer projects 1024 to 9 dimensions once and refines those; ours reads every stage's 9 from the 1024
and projects back from all, so it does more. Forward: indices and the quantised latent. Gradient: of the
latent's sum, to input and parameters.
"""

import jax
import jax.numpy as jnp
import numpy as np

from affectcodec_jax.models.bd_rfsq import BDRFSQ
from benchmarks.measure import in_turn, rows

LEVELS = ((2, 2, 2), (4, 4, 4, 4, 4, 4))
DIMS = (256, 768)


def run(threads, rounds):
  """Rows of the forward pass and of the gradient."""
  x = np.random.default_rng(0).normal(size=(4, 250, sum(DIMS))).astype(np.float32)
  module = BDRFSQ(DIMS, LEVELS, 8)
  u = jnp.asarray(x)
  params = jax.jit(module.init)(jax.random.key(0), u)

  @jax.jit
  def forward(params, u):
    q = module.apply(params, u)
    return module.apply(params, q.values, method=BDRFSQ.latent), q.indices

  @jax.jit
  def gradient(params, u):
    def loss(params, u):
      q = module.apply(params, u)
      return module.apply(params, q.values, method=BDRFSQ.latent).sum() + q.commitment.sum()
    return jax.grad(loss, (0, 1))(params, u)

  calls = {'forward': {'affectcodec_jax': lambda: jax.block_until_ready(forward(params, u))},
           'gradient': {'affectcodec_jax': lambda: jax.block_until_ready(gradient(params, u))}}
  try:
    import torch
    from vector_quantize_pytorch import ResidualFSQ
  except ImportError:
    yield {'system': 'ResidualFSQ', 'absent': 'vector-quantize-pytorch is not installed'}
  else:
    torch.set_num_threads(threads)
    peer = ResidualFSQ(dim=sum(DIMS), levels=list(sum(LEVELS, ())), num_quantizers=8)
    t = torch.tensor(x)

    def peer_forward():
      with torch.inference_mode():
        peer(t)

    def peer_gradient():
      leaf = t.clone().requires_grad_()
      peer(leaf)[0].sum().backward()

    calls['forward']['ResidualFSQ'] = peer_forward
    calls['gradient']['ResidualFSQ'] = peer_gradient
  for what, of_what in calls.items():
    yield from rows(what, in_turn(of_what, 4 * rounds), 'ResidualFSQ')
