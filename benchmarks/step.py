"""A generator's training step of `configs/paper.py`'s sizes beside PyTorch's DAC, 2 x 0.96 s, float32.

Both: encoder, 8 residual stages (BD-RFSQ against DAC's RVQ), decoder, seven-scale mel + L1 + the
quantiser's loss, all gradients, AdamW. No teacher and no other rates: the peer has neither; `train_step`
measures those. Memory is the peak of a process of its own during one more step, less what that held before
the model was made.
"""

import functools
import multiprocessing
import statistics

from affectcodec_jax.common.constants import HOP_LENGTH
from benchmarks.measure import in_turn, matmul_peak, peak_memory, rows, share_of_peak

SAMPLES = 48 * HOP_LENGTH  # the trainer's crop of 0.96 s
BATCH = 2
LR, BETAS = 1e-4, (0.8, 0.99)


def run(threads, rounds):
  """Rows of both, with share of the peak and memory."""
  del threads
  ours, theirs = _ours(), _theirs()
  calls = {'affectcodec_jax': ours}
  flops = 0
  if theirs is None:
    yield {'system': 'DAC', 'absent': 'descript-audio-codec is not installed'}
  else:
    from torch.utils.flop_counter import FlopCounterMode
    calls['DAC'] = theirs
    with FlopCounterMode(display=False) as counter:
      theirs()
    flops = counter.get_total_flops()
  seconds = in_turn(calls, rounds)
  shares = share_of_peak(flops, seconds, matmul_peak()) if flops else {}
  context = multiprocessing.get_context('spawn')
  memory = {}
  for name in calls:
    with context.Pool(1) as pool:
      memory[name] = pool.apply(_memory, (name,))
  yield from rows('step', seconds, 'DAC', share_of_peak=shares, mib=memory,
                  audio_seconds=BATCH * SAMPLES / 16000,
                  gflops_a_step=round(flops / 1e9, 1))


def _memory(name):
  """MiB that training holds at its peak beyond the libraries, in this fresh process: median of 3 steps."""
  import jax.numpy as jnp
  import numpy as np
  if name == 'DAC':
    import torch
    torch.ones(1)
  jnp.ones(1).block_until_ready()
  _, libraries = peak_memory(lambda: np.zeros(1))
  step = _ours() if name == 'affectcodec_jax' else _theirs()
  step()  # compilation, or the allocator's first growth, is not the step
  return round(statistics.median(peak_memory(step)[0] for _ in range(3)) - libraries)


def _audio():
  import numpy as np
  return 0.06 * np.random.default_rng(0).normal(size=(BATCH, SAMPLES)).astype(np.float32)


def _ours():
  import jax
  import jax.numpy as jnp
  import optax

  from affectcodec_jax import losses
  from affectcodec_jax.models.bd_rfsq import BDRFSQ
  from affectcodec_jax.models.dac import Decoder, Encoder
  from benchmarks.peers import STRIDES
  parts = (Encoder(64, STRIDES, 1024), BDRFSQ((256, 768), ((2,) * 3, (4,) * 6), 8),
           Decoder(1536, STRIDES[::-1]))
  optimizer = optax.adamw(LR, *BETAS)
  audio = jnp.asarray(_audio())

  @jax.jit
  def fresh(rng, audio):
    latent = jnp.zeros((1, SAMPLES // HOP_LENGTH, 1024))
    params = [m.init(rng, x)['params'] for m, x in zip(parts, (audio, latent, latent))]
    return params, optimizer.init(params)

  def loss(params, audio):
    encoder, quantizer, decoder = (functools.partial(m.apply, {'params': p})
                                   for m, p in zip(parts, params))
    quantized = quantizer(encoder(audio))
    decoded = decoder(parts[1].apply({'params': params[1]}, quantized.values, method=BDRFSQ.latent))
    mel = losses.mel_distance(losses.mel_targets(decoded), losses.mel_targets(audio)).mean()
    return 15 * mel + losses.waveform_l1(decoded, audio).mean() + quantized.commitment.mean()

  @functools.partial(jax.jit, donate_argnums=(0, 1))
  def step(params, opt_state, audio):
    grads = jax.grad(loss)(params, audio)
    updates, opt_state = optimizer.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state

  state = list(fresh(jax.random.key(0), audio))

  def call():
    state[:] = jax.block_until_ready(step(*state, audio))

  return call


def _theirs():
  """PyTorch's, or None without it."""
  from benchmarks.peers import load_dac, make_dac, mel_distance
  dac = load_dac()
  if dac is None:
    return None
  import os

  import torch
  torch.set_num_threads(len(os.sched_getaffinity(0)))
  model = make_dac(dac).train()
  optimizer = torch.optim.AdamW(model.parameters(), LR, BETAS)
  audio = torch.tensor(_audio())

  def call():
    optimizer.zero_grad()
    quantized, _, _, commitment, codebook = model['quantizer'](model['encoder'](audio[:, None]))
    decoded = model['decoder'](quantized)[:, 0]
    target = audio[:, :decoded.shape[1]]  # the published stride of 5 gives a few samples less
    loss = (15 * mel_distance(decoded, target) + (decoded - target).abs().mean()
            + 0.25 * commitment.mean() + codebook.mean())
    loss.backward()
    optimizer.step()

  return call
