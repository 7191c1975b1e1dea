"""The compiled step: what crosses devices, how long its program is, what the TPU's compiler makes of it."""

import math
import re

import jax
import pytest

from affectcodec_jax.cli import program
from affectcodec_jax.training import aot
from configs import base, lite, paper
from tests.conftest import tiny


def _crossing(config, adversarial):
  """What the step compiled for 8 CPU devices exchanges: (kind, shape) of every array in a collective."""
  text = aot.lower_step(config, jax.devices(), adversarial, 'cpu').compile().as_text()
  kinds = 'all-gather|all-to-all|collective-permute|reduce-scatter|all-reduce'
  found = re.findall(rf' = (.*?) ({kinds})(?:-start)?\(', text)
  return [(kind, tuple(int(n) for n in shape.split(',') if n))
          for arrays, kind in found for shape in re.findall(r'\[([\d,]*)\]', arrays)]


def _sizes(tree):
  return [x.size for x in jax.tree.leaves(tree)]


@pytest.mark.parametrize('module', [lite, paper])
def test_only_gradients_and_metrics_cross_devices(module, one_mel_scale):
  """Averages alone, of as many numbers as there are parameters and metrics, whatever the batch.

  Of both backbones: base is the paper's, in float32.
  """
  config = tiny(module.get_config())
  crossing = _crossing(config, adversarial=True)
  state, _, _ = aot.abstract_arguments(config)
  assert {kind for kind, _ in crossing} == {'all-reduce'}
  numbers = sum(math.prod(shape) for _, shape in crossing)
  assert 0 <= numbers - sum(_sizes((state.params, state.disc_params))) < 50


def test_only_parameters_are_gathered(one_mel_scale):
  """With the state split over two devices: no array is gathered that is not of a parameter's size."""
  config = tiny(lite.get_config())
  config.train.update(parallel='mesh', fsdp=2)
  crossing = _crossing(config, adversarial=False)
  state, frozen, _ = aot.abstract_arguments(config)
  assert {kind for kind, _ in crossing} <= {'all-reduce', 'all-gather', 'reduce-scatter'}
  gathered = [math.prod(shape) for kind, shape in crossing if kind == 'all-gather']
  assert gathered and set(gathered) <= set(_sizes((state.params, state.disc_params, frozen)))


def test_the_program_of_base_is_short():
  """Matrices are not in its text; as constants they were 186 MB of it and more."""
  text = aot.lower_step(base.get_config(), jax.devices()[:4], True).as_text()
  assert 'stablehlo.fft' not in text  # the TPU's, on this host
  assert len(text) < 10e6


def test_collectives_are_counted_with_their_bytes():
  """By hand; an asynchronous gather names its operand too, a scatter's group sends what it reduces."""
  text = '''
  %a = (f32[8,2]{1,0}, bf16[3]{0}) all-reduce(%x, %y), replica_groups={{0,1,2,3}}, to_apply=%sum
  %b = (f32[4]{0}, f32[16]{0}) all-gather-start(%z), replica_groups=[1,4]<=[4], dimensions={0}
  %c = f32[16]{0} all-gather-done(%b)
  %d = s32[] all-reduce-start(%w), replica_groups={}
  %e = f32[5]{0} reduce-scatter(%v), replica_groups=[2,2]<=[4], dimensions={0}
  '''
  assert aot.collectives(text) == [
      ('all-gather', 1, 64, 64), ('all-reduce', 2, 74, 148), ('reduce-scatter', 1, 20, 40)]


def test_the_binding_bound_is_the_longest():
  chip = aot.Chip(flops=10, memory=1, memory_rate=4, network_rate=2)
  compiled = aot.Compiled(4, 0, 0, 0, 0, 0, 0, flops=20, accessed=12, collectives=[('all-reduce', 1, 4, 8)])
  assert aot.bounds(chip, compiled) == {'matrix units': 2, 'memory': 3, 'network': 4}


@pytest.mark.parametrize('words, message', [
    (['--topology', 'v9:2x2'], 'give one of v4, v5e, v5p, v6e'), ([], '--topology is missing'),
    (['--topology', 'v5e:2x2', '--config.train.batch_size=6'], 'does not divide over 4 devices')])
def test_what_cannot_be_compiled_is_said_in_one_line(words, message, capsys):
  if '--config.train.batch_size=6' in words:
    pytest.importorskip('libtpu', reason="the TPU's compiler is not installed: pip install 'jax[tpu]'")
  assert program.main(['compile', '--config', 'configs/lite.py', *words]) == 2
  error = capsys.readouterr().err.strip()
  assert message in error and '\n' not in error


@pytest.mark.parametrize('topology, chips', [
    ('v4:2x2x4', 16), ('v5e:4x4', 16), ('v5p:2x2x2', 8), ('v6e:2x2', 4)])
def test_a_device_is_a_chip(topology, chips):
  """Also on v4, whose chips have two cores: bounds and memory are a chip's."""
  pytest.importorskip('libtpu', reason="the TPU's compiler is not installed: pip install 'jax[tpu]'")
  assert len(aot.slice_of(topology)) == chips


def test_pmap_is_lowered_for_a_tpu(one_mel_scale):
  """For each of four chips, whose transforms are products of matrices."""
  pytest.importorskip('libtpu', reason="the TPU's compiler is not installed: pip install 'jax[tpu]'")
  config = tiny(lite.get_config())
  config.train.parallel = 'pmap'
  text = aot.lower_step(config, aot.slice_of('v5e:2x2'), False).as_text()
  assert re.search(r'num_(replicas|partitions) = 4', text) and 'fft' not in text


def test_a_small_step_compiles_for_a_tpu(one_mel_scale):
  """By the TPU's own compiler, for four chips that are not here; with the least effort, half a minute."""
  pytest.importorskip('libtpu', reason="the TPU's compiler is not installed: pip install 'jax[tpu]'")
  config = tiny(lite.get_config())
  config.model.num_stages, config.rates, config.train.rate_probs = 2, (1, 2), (0.5, 0.5)
  config.data.crop_seconds = 0.14
  devices = aot.slice_of('v5e:2x2')
  effort = 'jax_exec_time_optimization_effort'
  before = getattr(jax.config, effort)
  jax.config.update(effort, -1.0)
  try:
    compiled = aot.compile_step(config, devices, adversarial=False)
  finally:
    jax.config.update(effort, before)
  state, frozen, _ = aot.abstract_arguments(config)
  held = 4 * sum(_sizes((state, frozen)))  # bytes; padding to tiles of 128 comes on top
  assert compiled.chips == 4 and held < compiled.arguments < 2 * held
  assert compiled.arguments + compiled.temporaries < compiled.peak < aot.CHIPS['v5e'].memory
  (kind, _, size, _), = compiled.collectives
  assert kind == 'all-reduce' and 0 <= size / 4 - sum(_sizes(state.params)) < 50
  lines = aot.report(config, 'v5e:2x2', compiled)
  fits = next(int(line.split()[4]) for line in lines if line.startswith('clips        2 a chip; '))
  more = compiled.temporaries * (fits - 2) / 2  # that one and not the next one, by hand
  assert 0 <= aot.CHIPS['v5e'].memory - compiled.peak - more < compiled.temporaries / 2
  assert any(line.startswith('bound') and 'ms a step at least' in line for line in lines)
