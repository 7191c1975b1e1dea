"""The training step: every configuration takes one, n devices equal one, stage dropout."""

import functools

import jax
import numpy as np
import pytest
import scipy.stats

from affectcodec_jax import config as config_lib
from affectcodec_jax import losses
from affectcodec_jax.common.errors import UserError
from affectcodec_jax.emotion.teachers import make_teacher, teacher_features
from affectcodec_jax.models.codec import Codec, init_params, make_codec
from affectcodec_jax.training import parallel
from affectcodec_jax.training.held_out import make_validator
from affectcodec_jax.training.state import make_optimizer
from affectcodec_jax.training.step import draw_rates, generator_loss, schedule, train_step
from configs import base, lite, paper
from tests.conftest import batch, state_and_teacher, tiny, training_batch

pytestmark = pytest.mark.usefixtures('one_mel_scale')


@pytest.mark.parametrize('module, change', [
    (base, {}), (paper, {}), (lite, {}), (lite, {'quantizer': 'full_rfsq'}),
    (lite, {'quantizer': 'rvq', 'acoustic_levels': (4, 4)}), (lite, {'conditioning': False})])
def test_every_config_takes_one_step(module, change):
  """Sizes shrunk, everything else as the configuration says; the paper's in bfloat16.

  The three configurations themselves with a discriminator, which the changes have nothing to do with.
  """
  config = tiny(module.get_config())
  config.model.update(change)
  config_lib.validate(config)
  state, teacher = state_and_teacher(config)
  before = jax.tree.map(np.copy, state.params)
  step = jax.jit(functools.partial(train_step, config=config, adversarial=not change))
  state, metrics = step(state, teacher, training_batch(config))
  state, metrics = step(state, teacher, training_batch(config))  # the first has a rate of zero
  assert bool(metrics['finite'])
  changed = jax.tree.map(lambda a, b: bool(np.any(a != b)), before, jax.device_get(state.params))
  still = [k for k, v in jax.tree_util.tree_leaves_with_path(changed) if not v]
  assert not still, f'parameters without gradient: {still}'


def test_paper_has_the_paper_s_size():
  """135.05 M trainable parameters with a teacher of width 1024."""
  config = paper.get_config()
  config.teacher.dim = 1024
  params = jax.eval_shape(functools.partial(init_params, config), jax.random.PRNGKey(0))[0]
  millions = sum(x.size for x in jax.tree.leaves(params)) / 1e6
  assert abs(millions - 135.05) < 0.5, millions


def test_without_multi_rate_each_clip_is_decoded_once():
  config = tiny(lite.get_config())
  config.loss.multi_rate = 0.0
  state, teacher = state_and_teacher(config)
  state = state.replace(step=np.int32(2))  # past the warm-up's zero rate
  step = jax.jit(functools.partial(train_step, config=config, adversarial=False))
  after, metrics = step(state, teacher, training_batch(config))
  assert bool(metrics['finite']) and 'loss/mel_1_stages' not in metrics
  loss = functools.partial(generator_loss, config=config, adversarial=False)
  data = training_batch(config) | {'rate': np.zeros(8, np.int32), 'use_true_pitch': np.ones(8, bool)}
  decoded = jax.eval_shape(loss, state.params, state.disc_params, teacher, data, 1.0)[1][1]
  assert decoded.shape == batch(config).shape
  for old, new, average in zip(*(jax.tree.leaves(t) for t in (state.ema, after.params, after.ema))):
    # By hand, of step 2: (1 + 2) / (10 + 2) of the old average; float32's rounding.
    np.testing.assert_allclose(average, 0.25 * old + 0.75 * new, rtol=1e-5, atol=1e-7)


def test_decoder_only_leaves_the_tokens():
  """All but the decoder stays, in spite of decay and of moments, and so does its average, which is what is
  released, in spite of being another; the decoder moves as without it."""
  config = tiny(lite.get_config())
  config.train.update(weight_decay=0.1, clip_norm=1e9)  # the norm that is clipped is of other gradients
  state, teacher = state_and_teacher(config)
  data = training_batch(config)
  step = jax.jit(functools.partial(train_step, config=config, adversarial=False))
  state = step(step(state, teacher, data)[0], teacher, data)[0]
  free = step(state, teacher, data)[0]
  config = config.copy_and_resolve_references()
  config.train.decoder_only = True
  step = jax.jit(functools.partial(train_step, config=config, adversarial=False))
  held, metrics = step(state, teacher, data)
  assert bool(metrics['finite'])
  for name in state.params:
    for old, new, other in zip(*(jax.tree.leaves(s.params[name]) for s in (state, held, free))):
      if name == 'decoder':
        assert np.any(old != new)
        np.testing.assert_allclose(new, other, atol=1e-6)  # another program's rounding, times the rate
      else:
        np.testing.assert_array_equal(old, new)
    for old, new, params in zip(*(jax.tree.leaves(t[name]) for t in (state.ema, held.ema, state.params))):
      if name != 'decoder':
        np.testing.assert_array_equal(old, new)
        assert not np.any(params) or np.any(old != params)  # there was something to move it


@pytest.mark.parametrize('multi_rate', [1.0, 0.0])
def test_the_loss_is_of_each_clip_at_its_own_rate(multi_rate):
  """Against every clip decoded by itself, from its own prefix; sums in another order, so 1e-4."""
  config = tiny(lite.get_config())
  config.loss.multi_rate = multi_rate
  state, teacher = state_and_teacher(config)
  rate = np.array([2, 0, 1, 0])
  data = {k: v[:4] for k, v in training_batch(config).items()} | {
      'rate': rate, 'use_true_pitch': np.ones(4, bool)}
  audio, f0, voiced = data['audio'], data['f0'], data['voiced']
  features = jax.jit(functools.partial(teacher_features, config))(teacher, audio)
  codec, mask = make_codec(config), np.ones(features.shape[:2], bool)

  @jax.jit
  def of_prefixes(params):
    def call(method, *args):
      return codec.apply({'params': params}, *args, method=method)
    u = call(Codec.analyse, audio, features, mask)
    q = call(Codec.quantize, u)
    latents = [call(Codec.latent, q.values[:m]) for m in config.rates]
    return ([call(Codec.synthesise_with_pitch, z, f0, data['use_true_pitch']) for z in latents],
            q.commitment, [call(Codec.emotion_features, z) for z in latents])

  decoded, commitment, emotion = of_prefixes(state.params)
  controls, decoded = [c for _, c in decoded], [d for d, _ in decoded]
  own = np.stack([decoded[r][i] for i, r in enumerate(rate)])
  floor = config.loss.mel_floor

  def mel_of(audio_at_a_rate):
    return losses.mel_distance(losses.mel_targets(audio_at_a_rate, floor), losses.mel_targets(audio, floor))
  held = np.stack([emotion[r][i] for i, r in enumerate(rate)])
  head = functools.partial(make_teacher(config).apply, {'params': teacher['teacher']}, method='logits')
  predicted, wanted = (jax.nn.softmax(head(x)) for x in (held, features))
  expected = {
      'mel': mel_of(own).mean(),
      'waveform': np.abs(own - audio).mean(),
      'commitment': np.mean([commitment[:config.rates[r], i].mean() for i, r in enumerate(rate)]),
      'emotion': losses.emotion_l2(held, features).mean(),
      'posterior': scipy.stats.entropy(wanted, predicted, axis=-1).mean(),
      'cycle': losses.emotion_cycle(teacher_features(config, teacher, own), features).mean(),
  }
  if multi_rate:  # half at the clips' rates, half at all rates alike
    mel = [mel_of(d).mean() for d in decoded]
    cycle = [losses.emotion_cycle(teacher_features(config, teacher, d), features).mean() for d in decoded]
    expected['mel'] = (expected['mel'] + np.mean(mel)) / 2
    expected['cycle'] = (expected['cycle'] + np.mean(cycle)) / 2
    # Each clip is decoded at every rate, so the losses of its pitch are means over rates.
    pitch = [(losses.pitch_distance(c.pitch, f0, voiced), losses.voicing_distance(c.voicing, voiced))
             for c in controls]
  else:
    pitch = [(losses.pitch_distance(controls[r].pitch, f0, voiced)[i],
              losses.voicing_distance(controls[r].voicing, voiced)[i]) for i, r in enumerate(rate)]
  expected['pitch'], expected['voicing'] = np.mean([p for p, _ in pitch]), np.mean([v for _, v in pitch])
  total, (parts, decoded_at_rate) = jax.jit(functools.partial(
      generator_loss, config=config, adversarial=False))(
          state.params, state.disc_params, teacher, data, 1.0)
  np.testing.assert_allclose(decoded_at_rate, own, atol=1e-5)
  for name, value in expected.items():
    np.testing.assert_allclose(parts[name], value, rtol=1e-4, err_msg=name)
  np.testing.assert_allclose(total, sum(config.loss[k] * v for k, v in expected.items()), rtol=1e-4)


def test_validation_is_the_loss_of_held_out_clips():
  """At every rate, the step's mel loss of clips that all have that rate; other order of sums, so 1e-4."""
  config = tiny(lite.get_config())
  state, teacher = state_and_teacher(config)
  data = training_batch(config)
  found = make_validator(config, data['audio'])(state.params, teacher)
  assert list(found) == [f'valid/mel_{m}_stages' for m in config.rates]
  loss = jax.jit(functools.partial(generator_loss, config=config, adversarial=False))
  for rate, value in enumerate(found.values()):
    clips = data | {'rate': np.full(8, rate), 'use_true_pitch': np.zeros(8, bool)}
    parts = loss(state.params, state.disc_params, teacher, clips, 1.0)[1][0]
    np.testing.assert_allclose(value, parts['mel'], rtol=1e-4)


def test_stage_dropout_is_biased(tiny_config):
  """Frequencies of 20000 draws: 0.25 + 0.75 * 0.2 at the top; 0.02 is five standard errors."""
  tiny_config.train.stage_dropout = 0.75
  rates = np.asarray(draw_rates(tiny_config, jax.random.key(0), 20000))
  share = np.bincount(rates, minlength=3) / 20000
  np.testing.assert_allclose(share, [0.375, 0.225, 0.4], atol=0.02)


def _same_update(one, many, one_metrics, many_metrics):
  """Sums in another order: 2e-4 of the largest entry of each first and second moment.

  (Of moments, not of parameters: Adam's first steps are the signs of gradients, also of those that are
  all rounding.)
  """
  for name in one_metrics:
    np.testing.assert_allclose(many_metrics[name], one_metrics[name], rtol=2e-4, atol=1e-5, err_msg=name)
  moments = lambda s: jax.tree.leaves((s.opt_state, s.disc_opt_state))
  for a, b in zip(moments(one), moments(many)):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    np.testing.assert_allclose(b, a, rtol=1e-2, atol=2e-4 * max(np.abs(a).max(), 1e-12))


@pytest.mark.parametrize('kind, fsdp, accumulate', [('pmap', 1, 2), ('mesh', 2, 2)])
def test_n_devices_equal_one(kind, fsdp, accumulate):
  """8 devices, with whole states and with states split over 2 of them, in two pieces; against one in one.

  Of the backbone that compiles soonest.
  """
  config = tiny(lite.get_config())
  config.train.batch_size = 16
  state, teacher = state_and_teacher(config)
  state = state.replace(step=np.int32(2))  # past the warm-up's zero rate
  data = training_batch(config)
  one, m1 = jax.jit(functools.partial(train_step, config=config, adversarial=True))(state, teacher, data)
  config.train.update(parallel=kind, fsdp=fsdp, accumulate=accumulate)
  config_lib.validate(config)
  devices = parallel.make_parallel(config)
  placed = devices.place(state)
  if fsdp > 1:
    largest = max(jax.tree.leaves(placed.params), key=lambda x: x.size)
    assert largest.addressable_shards[0].data.size == largest.size // fsdp
  many, mn = devices.compile(True)(placed, devices.place(teacher), devices.split(data))
  _same_update(one, devices.fetch(many), m1, parallel.fetch_scalars(mn))
  # A second step takes the state as the first one left it, without being traced and compiled again.
  assert [x.sharding for x in jax.tree.leaves(many)] == [x.sharding for x in jax.tree.leaves(placed)]


def test_batch_must_divide_over_devices_and_pieces(tiny_config):
  tiny_config.train.batch_size = 12
  with pytest.raises(UserError, match='multiple of 8'):
    parallel.local_batch_size(tiny_config)
  tiny_config.train.update(batch_size=24, accumulate=2)
  with pytest.raises(UserError, match='multiple of 16'):
    parallel.local_batch_size(tiny_config)
  tiny_config.train.update(parallel='mesh', fsdp=3)
  with pytest.raises(UserError, match='does not divide 8 devices'):
    parallel.make_parallel(tiny_config)
  tiny_config.train.update(parallel='pmap')
  with pytest.raises(UserError, match='needs train.parallel=mesh'):
    config_lib.validate(tiny_config)


def test_a_teacher_that_classifies_nothing_has_no_posterior():
  config = tiny(lite.get_config())
  config.teacher.update(kind='whisper_base', dim=512, path='w.safetensors')
  with pytest.raises(UserError, match='does not classify emotions; give --config.loss.posterior=0'):
    config_lib.validate(config)
  config.loss.posterior = 0.0
  config_lib.validate(config)


def test_strides_are_asked_of_the_dac_style_backbone_alone(tiny_config):
  config = tiny(lite.get_config())
  del config.model.strides
  config_lib.validate(config)
  assert config_lib.crop_samples(config) == 3200
  assert jax.eval_shape(lambda: init_params(config, jax.random.PRNGKey(0)))[0]
  tiny_config.model.strides = (16, 10)
  with pytest.raises(UserError, match='multiply to 160'):
    config_lib.validate(tiny_config)
  del tiny_config.model.strides
  with pytest.raises(UserError, match="no field 'model.strides'"):
    config_lib.validate(tiny_config)


def test_the_schedule_at_its_corners():
  config = tiny(lite.get_config())
  config.train.update(unquantized_steps=500, rounding_steps=300, true_pitch_steps=800)
  found = jax.tree.map(lambda *x: np.stack(x), *[schedule(config, s) for s in (0, 499, 649, 799, 5000)])
  np.testing.assert_allclose(found.rounding, [0, 0, 0.5, 1, 1], atol=1e-6)
  np.testing.assert_allclose(found.true_pitch, [1, 301 / 800, 151 / 800, 1 / 800, 0], atol=1e-6)
  config.train.update(true_pitch_steps=0)  # never, not in the first step either
  assert schedule(config, 0).true_pitch == 0


def test_only_matrices_decay():
  """With a gradient of zero AdamW moves a parameter by its decay alone."""
  config = tiny(lite.get_config())
  config.train.update(weight_decay=0.1, warmup_steps=0)
  shapes = jax.eval_shape(functools.partial(init_params, config), jax.random.PRNGKey(0))[0]
  params = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), shapes)
  optimizer = make_optimizer(config, 1e-3)
  zeros = jax.tree.map(np.zeros_like, params)
  updates, _ = jax.jit(optimizer.update)(zeros, optimizer.init(params), params)
  moved = {jax.tree_util.keystr(path): bool(np.any(x)) for path, x in
           jax.tree_util.tree_leaves_with_path(updates)}
  decaying = {name for name, m in moved.items() if m}
  assert decaying and all(name.endswith("['kernel']") for name in decaying)
  assert not any('DepthwiseConv' in name and 'bias' in name for name in decaying)
