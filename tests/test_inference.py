"""Recordings in pieces and in batches: as the whole by itself; contexts: as far as the networks see."""

import functools

import jax
import numpy as np
import pytest

from affectcodec_jax.common.constants import HOP_LENGTH
from affectcodec_jax.emotion import teachers
from affectcodec_jax.inference import weights
from affectcodec_jax.inference.pieces import Inference
from affectcodec_jax.inference.pooling import pool_parts
from affectcodec_jax.models import context, source_filter
from affectcodec_jax.models.codec import Codec, init_params, make_codec
from configs.base import get_config
from tests.conftest import tiny


@functools.lru_cache
def networks(backbone):
  """A small configuration, its parameters at random and the packaged teacher."""
  config = tiny(get_config())
  config.model.backbone = backbone
  config.model.lite.width, config.model.lite.encoder_depth, config.model.lite.decoder_depth = 16, 2, 2
  params = jax.jit(functools.partial(init_params, config))(jax.random.PRNGKey(0))[0]
  # FiLM and biases start at the identity and at zero: moved, so that a wrong embedding or edge would show.
  leaves, tree = jax.tree.flatten(params)
  keys = jax.random.split(jax.random.PRNGKey(1), len(leaves))
  leaves = [x + 0.05 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys)]
  return config, jax.tree.unflatten(tree, leaves), {'teacher': weights.load_teacher(config)}


def sound(seconds, seed=0):
  return (0.1 * np.random.default_rng(seed).normal(size=int(16000 * seconds))).astype(np.float32)


@pytest.mark.parametrize('backbone', ['dac', 'lite'])
def test_pieces_are_as_the_whole(backbone):
  """6.3 s in pieces of 1 s against one piece: every token, and audio within float32's rounding.

  Different shapes may be summed in another order: 1e-4 of a signal of unit range. Tokens could differ
  where a value lies within 1e-6 of a rounding boundary: one in 10^5 to 10^6 of them, here of 315 x 3.
  """
  config, params, frozen = networks(backbone)
  pieces = Inference(config, frozen, chunk=50)
  whole = Inference(config, frozen)
  audio = sound(6.3)
  codes, = pieces.encode(params, frozen, [audio])
  expected, = whole.encode(params, frozen, [audio])
  assert codes.shape == (315, 3) and len(np.unique(codes)) > 20
  np.testing.assert_array_equal(codes, expected)
  if backbone == 'lite':
    # Rounding may move the pitch of a frame by a step of its grid, 1.2 cents, and the phase from there on.
    of_pieces, pitch = (run._increments(params, [codes], 1)[0] for run in (pieces, whole))
    assert np.mean(of_pieces != pitch) < 0.02
    np.testing.assert_allclose(of_pieces, pitch, rtol=1.5e-3)
    pieces._increments = lambda *_: [pitch]
  np.testing.assert_allclose(pieces.decode(params, [codes])[0], whole.decode(params, [codes])[0], atol=1e-4)


@pytest.mark.parametrize('backbone', ['dac', 'lite'])
def test_a_batch_of_unequal_lengths_is_as_each_alone(backbone):
  config, params, frozen = networks(backbone)
  run = Inference(config, frozen, chunk=100)
  recordings = [sound(s, i) for i, s in enumerate((0.02, 0.7, 1.0, 3.3, 0.333, 5.0))]
  together = run.encode(params, frozen, recordings, batch=4)
  audio = run.decode(params, together, batch=4)
  for recording, codes, decoded in zip(recordings, together, audio):
    alone, = run.encode(params, frozen, [recording])
    np.testing.assert_array_equal(codes, alone)
    assert len(codes) == -(-len(recording) // 320)
    np.testing.assert_allclose(decoded, run.decode(params, [alone])[0], atol=1e-4)


@pytest.mark.parametrize('backbone', ['dac', 'lite'])
def test_contexts_reach_as_far_as_the_networks_see_and_hardly_further(backbone):
  """Something else beyond the context leaves a frame as it is, to the bit; at half of it, it does not."""
  config, params, frozen = networks(backbone)
  codec, hop, frames, at = make_codec(config), HOP_LENGTH, 200, 100
  audio = sound(4.0).reshape(frames, hop)
  other = np.roll(audio, 7)
  latent = np.random.default_rng(0).normal(size=(frames, 64)).astype(np.float32)

  @jax.jit
  def emotion(audio):
    features = teachers.encoder_features(config, frozen, audio)
    return codec.apply({'params': params}, features, method=lambda m, f: m.to_emotion(m.adapter(f)))

  encode = jax.jit(lambda a: codec.apply({'params': params}, a, method=lambda m, a: m.encoder(a)))

  @jax.jit
  def decode(latent):
    source = None
    if backbone == 'lite':  # whose phase, at the frame looked at, is all that it needs of what came before
      pitch = codec.apply({'params': params}, latent, method=Codec.pitch)
      source = source_filter.Source(pitch, *(np.array([x], np.int32) for x in (at, 12345, at * hop)))
    return codec.apply({'params': params}, latent, source, method=Codec.synthesise)

  cases = ((lambda x: encode(x.reshape(1, -1))[0, at], audio, other,
            context.encoder_context(config.model)),
           (lambda x: emotion(x.reshape(1, -1))[0, at], audio, other,
            teachers.emotion_context(config, frozen)),
           (lambda z: decode(z[None])[0, at * hop:(at + 1) * hop], latent, latent[::-1],
            context.decoder_context(config.model)))
  for network, x, y, reach in cases:
    def outside(distance, x=x, y=y):
      far = np.abs(np.arange(frames) - at) > distance
      return np.where(far[:, None], y, x)
    np.testing.assert_array_equal(network(x), network(outside(reach)))
    assert np.abs(np.asarray(network(x) - network(outside(reach // 2 - 1)))).max() > 0


def test_context_of_the_reference_sizes():
  """DAC at 16 kHz sees 5314 samples (2657 on either side), and its decoder frames -10 to +9."""
  from configs.paper import get_config as paper
  config = paper()
  assert context.encoder_context(config.model) == 10  # 8.3 frames, and the frame itself, rounded up
  # A transposed convolution's output sees its own frame and one neighbour; both sides are counted as one.
  assert context.decoder_context(config.model) == 11
  config.teacher.kind = 'emotion2vec_base'
  assert teachers.emotion_context(config, {'teacher': {}}) is None


def test_pooling_in_parts_is_pooling():
  config, params, _ = networks('lite')
  codec = make_codec(config)
  x = 3 * jax.random.normal(jax.random.PRNGKey(0), (1, 90, config.model.adapter_dim))
  mask = np.arange(90)[None] < 77
  apply = functools.partial(codec.apply, {'params': params})
  whole = apply(x, mask, method=lambda m, x, k: m.pool(x, k))[0]
  parts = [apply(x[:, i:i + 30], mask[:, i:i + 30], method=lambda m, x, k: m.pool.part(x, k))
           for i in (0, 30, 60)]
  np.testing.assert_allclose(pool_parts([tuple(np.asarray(p[0]) for p in part) for part in parts]), whole,
                             atol=1e-5)
