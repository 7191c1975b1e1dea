"""Encoder and decoder of `configs/paper.py` beside PyTorch's DAC of those sizes: a clip of 10 s, float32.

`configs/lite.py`'s networks stand beside them as seconds a clip, without a peer.
"""

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from affectcodec_jax.models import source_filter
from affectcodec_jax.models.dac import Decoder, Encoder
from affectcodec_jax.models.lite import LiteEncoder
from benchmarks.measure import in_turn, matmul_peak, rows, share_of_peak
from benchmarks.peers import STRIDES, load_dac, make_dac

SECONDS = 10


def run(threads, rounds):
  """Rows of encoding and decoding."""
  rng = np.random.default_rng(0)
  audio = 0.06 * rng.normal(size=(1, SECONDS * 16000)).astype(np.float32)
  latent = rng.normal(size=(1, SECONDS * 50, 1024)).astype(np.float32)
  small = latent[..., :256]
  modules = {
      'encode': {'affectcodec_jax': (Encoder(64, STRIDES, 1024), audio),
                 'lite': (LiteEncoder(256, 4, 256), audio)},
      'decode': {'affectcodec_jax': (Decoder(1536, STRIDES[::-1]), latent),
                 'lite': (_Lite(), small)}}
  peak = matmul_peak()
  dac = load_dac()
  if dac is None:
    yield {'system': 'DAC', 'absent': 'descript-audio-codec is not installed'}
  for what, systems in modules.items():
    calls, flops = {}, 0
    for name, (module, x) in systems.items():
      calls[name] = _call(module, jnp.asarray(x))
    if dac:
      import torch
      from torch.utils.flop_counter import FlopCounterMode
      torch.set_num_threads(threads)
      model = make_dac(dac)['encoder' if what == 'encode' else 'decoder'].eval()
      x = torch.tensor(audio[:, None] if what == 'encode' else latent.transpose(0, 2, 1))

      def peer(model=model, x=x):
        with torch.inference_mode():
          model(x)

      calls['DAC'] = peer
      with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(x)
      flops = counter.get_total_flops()
    seconds = in_turn(calls, rounds)
    shares = share_of_peak(flops, {k: v for k, v in seconds.items() if k != 'lite'}, peak)
    yield from rows(what, seconds, 'DAC', audio_seconds=SECONDS,
                    share_of_peak=shares if flops else {})


class _Lite(nn.Module):
  """The decoder of `configs/lite.py` as one module, from latent to audio."""

  @nn.compact
  def __call__(self, latent):
    controls = source_filter.SourceFilterDecoder(256, 6)(latent)
    increments = source_filter.predicted_increments(controls.pitch)
    return source_filter.render(controls, source_filter.beginning(increments))


def _call(module, x):
  params = jax.jit(module.init)(jax.random.key(0), x)
  forward = jax.jit(module.apply)
  return lambda: forward(params, x).block_until_ready()
