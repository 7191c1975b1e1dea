"""Eight CPU devices for every test; set before JAX is imported anywhere."""

import functools
import os
import pathlib

os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['XLA_FLAGS'] = (
    os.environ.get('XLA_FLAGS', '') + ' --xla_force_host_platform_device_count=8'
    # Tests compile more than they compute; XLA's older emitter of fusions takes less than half as long.
    ' --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true'
    ' --xla_cpu_use_fusion_emitters=false').strip()

import jax
import numpy as np
import pytest

from affectcodec_jax import config as config_lib
from affectcodec_jax import losses, train
from affectcodec_jax.common.files import write_json
from affectcodec_jax.inference import release, weights
from affectcodec_jax.models.codec import init_params
from affectcodec_jax.models.params import load_params, save_params
from affectcodec_jax.training import held_out
from affectcodec_jax.training.state import create_state
from configs.base import get_config
from tests import small_step

# Of processes that tests start.
ONE_DEVICE = os.environ['XLA_FLAGS'].replace('device_count=8', 'device_count=1')


def tiny(config):
  """Shrinks a configuration to what a unit test can compile in seconds."""
  m, d, t = config.model, config.discriminator, config.train
  m.strides = (16, 20)  # two blocks instead of four: half the program
  m.encoder_dim, m.decoder_dim, m.acoustic_width = 2, 32, 32
  m.emotion_dim, m.acoustic_dim, m.num_stages = 16, 48, 3
  m.adapter_dim, m.adapter_layers = 16, 1
  m.lite.width, m.lite.encoder_depth, m.lite.decoder_depth = 16, 1, 1
  config.rates = (1, 2, 3)
  d.n_ffts, d.filters = (256,), 2
  config.data.num_clips = 24
  config.data.crop_seconds = 0.2
  t.batch_size, t.steps, t.warmup_steps, t.adversarial_start = 8, 6, 2, 3
  t.checkpoint_every, t.log_every, t.sample_every, t.num_samples, t.valid_clips = 2, 1, 100, 0, 0
  return config


@pytest.fixture
def tiny_config():
  return tiny(get_config())


@pytest.fixture(scope='session', autouse=True)
def _compilation_cache(tmp_path_factory):
  """One compile cache for the whole run, of all its processes: many tests build the same programs."""
  folder = tmp_path_factory.getbasetemp()
  folder = folder.parent if 'PYTEST_XDIST_WORKER' in os.environ else folder
  os.environ['JAX_COMPILATION_CACHE_DIR'] = str(folder / 'jax_cache')  # of processes that tests start
  jax.config.update('jax_compilation_cache_dir', os.environ['JAX_COMPILATION_CACHE_DIR'])
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.3)


@pytest.fixture(autouse=True)
def _forget_programs():
  """A step for 8 devices takes thousands of memory maps, of which a process may have 65530."""
  yield
  maps = pathlib.Path('/proc/self/maps')
  if not maps.exists() or maps.read_bytes().count(b'\n') > 16_000:  # some 5 GB of programs
    jax.clear_caches()


@pytest.fixture
def one_mel_scale(monkeypatch):
  """A quarter of the step's program: the seven scales of the mel loss differ in nothing but numbers."""
  monkeypatch.setattr(losses, 'MEL_WINDOWS', (512,))
  monkeypatch.setattr(losses, 'MEL_BANDS', (80,))


def batch(config, seed=0):
  """Noise of a training batch's shape, `[batch_size, samples]`."""
  shape = (config.train.batch_size, config_lib.crop_samples(config))
  return 0.1 * np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def training_batch(config, seed=0):
  """What a training step of `config` takes."""
  data = {'audio': batch(config, seed)}
  if config.model.backbone == 'lite':
    shape = (config.train.batch_size, config_lib.crop_samples(config) // 320)
    rng = np.random.default_rng(seed + 1)
    data |= {'f0': rng.uniform(80, 400, shape).astype(np.float32),
             'voiced': rng.integers(0, 2, shape).astype(np.float32)}
  return data


def untrained_release(config, folder):
  """Writes a codec of random weights as `training.publish` would: there is nothing to wait for."""
  teacher = weights.load_teacher(config)
  init = jax.jit(functools.partial(init_params, config))
  save_params(folder / release.CODEC, init(jax.random.PRNGKey(0))[0])
  save_params(folder / 'teacher.safetensors', teacher)
  params = load_params(folder / release.CODEC)
  fingerprint = weights.fingerprint(config.model.to_dict(), params, {'teacher': teacher}).hex()
  write_json(folder / release.CONFIG, {'step': 0, 'fingerprint': fingerprint, 'config': config.to_dict()})


@pytest.fixture(scope='session')
def untrained(tmp_path_factory):
  """The folder of a released 3-stage codec of random weights, to be left as it is."""
  folder = tmp_path_factory.mktemp('codec')
  untrained_release(tiny(get_config()), folder)
  return folder


@pytest.fixture
def small_run(monkeypatch):
  """Configuration of a run with `small_step`."""
  small_step.install(monkeypatch.setattr)
  monkeypatch.setattr(held_out, 'make_sampler', lambda *a: lambda ema: {'0_original': np.zeros(320)})
  return tiny(get_config())


class Position:
  """A data iterator as far as its position goes."""

  def get_state(self):
    return b'{}'

  def set_state(self, state):
    assert state == b'{}'

  def start_prefetch(self):
    pass


def state_and_teacher(config):
  """A fresh state, on the host, and the packaged teacher."""
  teacher = {'teacher': weights.load_teacher(config)}
  fresh = jax.jit(functools.partial(create_state, config))
  return jax.device_get(fresh(jax.random.PRNGKey(0), teacher, batch(config))), teacher


def run_until(config, workdir, step, **options):
  """Stops a training at `step` as SIGTERM would, with the schedule of the whole run."""
  original = train._catch_signals

  class StopAt(list):
    calls = 0

    def __init__(self, distributed):
      assert not distributed

    def __bool__(self):
      StopAt.calls += 1
      return StopAt.calls >= step

  train._catch_signals = StopAt
  try:
    train.train(config.copy_and_resolve_references(), workdir, **options)
  finally:
    train._catch_signals = original


def check_gradient_by_audio(features, params, audio, mask, weight, step):
  """A teacher's gradient: alive in valid samples, zero in padding, right along itself; the same with remat.

  Args:
    features: a function of (params, audio, mask, remat=…) to features.
    params: its parameters.
    audio: `[2, samples]`, of which the second has padding from frame 3 on.
    mask: its frames, bool `[2, frames]`.
    weight: of each feature in the sum that is differentiated.
    step: the largest change of a sample in the check along the direction.

  Returns:
    the compiled function of audio to (sum, gradient).
  """
  plain, remat = (jax.jit(jax.value_and_grad(
      lambda x, r=r: jax.numpy.sum(features(params, x, mask, remat=r) * weight))) for r in (False, True))
  value, gradient = map(np.asarray, plain(audio))
  assert np.isfinite(gradient).all()
  assert (gradient[0] != 0).all() and (gradient[1, :3 * 320] != 0).all()
  assert (gradient[1, 3 * 320:] == 0).all()
  step = step * gradient / np.abs(gradient).max()
  difference = float(plain(audio + step)[0]) - float(plain(audio - step)[0])
  np.testing.assert_allclose(difference, 2 * np.sum(gradient * step), rtol=0.02)  # third order, rounding
  again, same = remat(audio)
  np.testing.assert_allclose(value, again, rtol=1e-5)
  np.testing.assert_allclose(gradient, same, atol=1e-5 * np.abs(gradient).max())
  return plain
