"""Compiles the training step for TPUs that are not there, and reckons what a step needs at least.

libtpu, which jax's `tpu` extra brings, compiles for any slice on any host. Memory, operations and
collectives are those of the compiled program; times are lower bounds by chips' published rates, not
measurements.
"""

import collections
import functools
import math
import os
import re
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp

from affectcodec_jax import config as config_lib
from affectcodec_jax.common.constants import HOP_LENGTH
from affectcodec_jax.common.errors import UserError, brief, require_extra
from affectcodec_jax.emotion.teachers import teacher_shapes
from affectcodec_jax.inference import weights
from affectcodec_jax.training import parallel
from affectcodec_jax.training.state import create_state


class Chip(NamedTuple):
  """Published rates of one chip: bfloat16 operations, bytes of memory, and bytes a second to memory and to
  all neighbours together in one direction."""

  flops: float
  memory: float
  memory_rate: float
  network_rate: float


# cloud.google.com/tpu/docs/v4, v5e, v5p, v6e. The network's is half of the bidirectional one there. Of v4,
# without one, it is a pod's 1.1 PB/s of all-reduce over its 4096 chips: of v5e and v6e both are the same.
CHIPS = {
    'v4': Chip(275e12, 32 * 2 ** 30, 1200e9, 269e9),
    'v5e': Chip(197e12, 16e9, 819e9, 200e9),
    'v5p': Chip(459e12, 95e9, 2765e9, 600e9),
    'v6e': Chip(918e12, 32e9, 1638e9, 400e9),
}

# Bytes that a chip sends for each byte of a collective's result, on many chips. (The result of a
# reduce-scatter is a part of what is reduced: its group's size comes on top.)
_TRAFFIC = {'all-reduce': 2, 'all-gather': 1, 'reduce-scatter': 1, 'all-to-all': 1, 'collective-permute': 1}
_BITS = {'pred': 8, 'bf16': 16}


class Compiled(NamedTuple):
  """What the compiler says of one step, of one chip.

  Attributes:
    chips: of the slice.
    seconds, cpu_seconds: that compiling took, by the clock and of processors.
    text_bytes: of the program before compilation.
    arguments, temporaries, peak: bytes of memory.
    flops: operations; loops count as one turn.
    accessed: bytes read and written.
    collectives: (kind, number, bytes of results, bytes that a chip sends), a row a kind.
  """

  chips: int
  seconds: float
  cpu_seconds: float
  text_bytes: int
  arguments: int
  temporaries: int
  peak: int
  flops: float
  accessed: float
  collectives: list


def slice_of(topology):
  """The devices of a slice such as 'v5e:2x2', on a host without any.

  Raises:
    UserError: libtpu is not installed, or it knows no such slice.
  """
  kind = topology.split(':')[0]
  if kind not in CHIPS or not re.fullmatch(r'\w+:\d+(x\d+)+', topology):
    raise UserError(f'--topology {topology}: give one of {", ".join(CHIPS)} and a shape, such as v5e:4x4')
  require_extra('libtpu', extras="the extra 'tpu' (pip install 'jax[tpu]')")
  from jax.experimental import topologies
  # It would ask the machine, and then the network, what TPU this is.
  os.environ |= {'TPU_SKIP_MDS_QUERY': '1', 'ALLOW_MULTIPLE_LIBTPU_LOAD': 'true',
                 'TPU_WORKER_HOSTNAMES': 'localhost', 'TPU_ACCELERATOR_TYPE': 'v5litepod-4'}
  jax.config.update('jax_platforms', 'cpu')  # whatever else is here is not asked for
  # A v4 chip's two cores run as one device, as later chips' do by themselves.
  options = {'chip_config_name': 'megacore'} if kind == 'v4' else {}
  try:
    return topologies.get_topology_desc(platform='tpu', topology_name=topology, **options).devices
  except (RuntimeError, ValueError) as e:
    raise UserError(f'--topology {topology}: {one_line(e)}') from e


def abstract_arguments(config):
  """Shapes of (state, frozen parameters, batch) of `config`; no file is read but a student's."""
  audio = jax.ShapeDtypeStruct((config.train.batch_size, config_lib.crop_samples(config)), jnp.float32)
  frames = jax.ShapeDtypeStruct((audio.shape[0], audio.shape[1] // HOP_LENGTH), jnp.float32)
  rng = jax.ShapeDtypeStruct((2,), jnp.uint32)
  frozen = {'teacher': teacher_shapes(config)}
  if config.teacher.student:
    frozen['student'] = weights.load_student(config, config.teacher.student)
  state = jax.eval_shape(functools.partial(create_state, config), rng, frozen, audio)
  batch = {'audio': audio} | ({'f0': frames, 'voiced': frames} if config.model.backbone == 'lite' else {})
  return state, frozen, batch


def lower_step(config, devices, adversarial, platform='tpu'):
  """The training step of `config` over `devices` of `platform`, lowered, not compiled.

  Raises:
    UserError: the batch does not divide over the devices.
  """
  parallel.check_batch(config, len(devices))
  state, frozen, batch = abstract_arguments(config)
  if config.train.parallel == 'pmap':
    count = len(devices)
    copies = jax.tree.map(lambda x: jax.ShapeDtypeStruct((count, *x.shape), x.dtype), (state, frozen))
    parts = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((count, x.shape[0] // count, *x.shape[1:]), x.dtype), batch)
    return parallel.pmap_train_step(config, adversarial, devices).lower(*copies, parts)
  mesh = parallel.make_mesh(config, devices)
  sharding = parallel.batch_sharding(mesh)
  traced = parallel.mesh_train_step(config, mesh, adversarial).trace(
      *(parallel.laid_out(x, parallel.state_sharding(mesh, x)) for x in (state, frozen)),
      parallel.laid_out(batch, jax.tree.map(lambda _: sharding, batch)))
  return traced.lower(lowering_platforms=(platform,))


def compile_step(config, devices, adversarial) -> Compiled:
  """Compiles the step for TPU `devices`.

  Raises:
    UserError: the compiler's own words where the step does not fit.
  """
  lowered = lower_step(config, devices, adversarial)
  start, cpu_start = time.time(), time.process_time()
  try:
    compiled = lowered.compile()
  except jax.errors.JaxRuntimeError as e:
    raise UserError(one_line(e)) from e
  seconds, cpu_seconds = time.time() - start, time.process_time() - cpu_start
  memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
  peak = (memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
          + memory.temp_size_in_bytes + memory.generated_code_size_in_bytes)
  return Compiled(
      chips=len({tuple(d.coords) for d in devices}), seconds=seconds, cpu_seconds=cpu_seconds,
      text_bytes=len(lowered.as_text()), arguments=memory.argument_size_in_bytes,
      temporaries=memory.temp_size_in_bytes, peak=peak,
      flops=cost['flops'], accessed=cost['bytes accessed'], collectives=collectives(compiled.as_text()))


def collectives(text):
  """(kind, number, bytes of results, bytes that a chip sends) of a compiled program's text, by kind."""
  found = collections.defaultdict(lambda: [0, 0, 0])
  kinds = '|'.join(_TRAFFIC)
  for line in text.splitlines():
    match = re.search(rf' = (.*?) ({kinds})(-start)?\(', line)
    if not match:
      continue
    results, kind, started = match.groups()
    arrays = re.findall(r'\b([a-z]+\d*)\[([\d,]*)\]', results)
    if started and kind != 'all-reduce':  # those hold their operands too, and some a number or two
      arrays = [(dtype, shape) for dtype, shape in arrays if shape]
      arrays = arrays[len(arrays) // 2:]
    size = sum(_bits(dtype) * math.prod(int(n) for n in shape.split(',') if n)
               for dtype, shape in arrays) // 8
    row = found[kind]
    row[0] += 1
    row[1] += size
    row[2] += size * _TRAFFIC[kind] * (_group_size(line) if kind == 'reduce-scatter' else 1)
  return [(kind, *row) for kind, row in sorted(found.items())]


def _bits(dtype):
  return _BITS.get(dtype) or int(re.sub(r'\D', '', dtype))


def _group_size(line):
  listed = re.search(r'replica_groups=\{\{([\d,]+)\}', line)
  counted = re.search(r'replica_groups=\[\d+,(\d+)\]', line)
  return len(listed[1].split(',')) if listed else int(counted[1]) if counted else 1


def bounds(chip, compiled):
  """Least seconds of a step by what it computes, moves to and from memory, and sends: {name: seconds}."""
  sent = sum(row[3] for row in compiled.collectives)
  return {'matrix units': compiled.flops / chip.flops, 'memory': compiled.accessed / chip.memory_rate,
          'network': sent / chip.network_rate}


def one_line(error):
  """The sentence of a compiler's error that says what is wrong."""
  text = brief(error, None)
  at = text.find('Ran out of memory')
  return text[max(at, 0):][:400]


def report(config, topology, compiled):
  """What is printed: lines of text."""
  chip = CHIPS[topology.split(':')[0]]
  least = bounds(chip, compiled)
  binding = max(least, key=least.get)
  hours = least[binding] * config.train.steps / 3600
  clips = config.train.batch_size / compiled.chips
  room = (chip.memory - compiled.peak) / compiled.temporaries  # what else there is grows little with clips
  giga, mega = (lambda x: f'{x / 1e9:.2f} GB'), (lambda x: f'{x / 1e6:.2f} MB')
  sent = ', '.join(f'{n} {kind} of {mega(size)}' for kind, n, size, _ in compiled.collectives) or 'none'
  return [
      f'program      {mega(compiled.text_bytes)} of text, compiled in {compiled.seconds:.0f} s '
      f'({compiled.cpu_seconds:.0f} s of processors)',
      f'memory       {giga(compiled.peak)} of {giga(chip.memory)} a chip at the peak: arguments '
      f'{giga(compiled.arguments)}, temporaries {giga(compiled.temporaries)}',
      f'clips        {clips:g} a chip; {int(clips * (1 + room))} would fit if temporaries grew as clips do',
      f'operations   {compiled.flops / 1e9:.1f} GFLOP and {giga(compiled.accessed)} moved a chip',
      f'collectives  {sent}',
      f'bound        {binding}: {1000 * least[binding]:.2f} ms a step at least ('
      + ', '.join(f'{name} {1000 * s:.2f}' for name, s in least.items()) + ')',
      f'schedule     {config.train.steps} steps on {compiled.chips} chips: {hours:.2f} hours, '
      f'{hours * compiled.chips:.2f} chip-hours at least']
