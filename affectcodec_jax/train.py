"""Trains the codec.

  python -m affectcodec_jax.train --config configs/base.py --workdir runs/base \
      --config.train.steps=1000

The state of a run is chosen in this order:
  1. the newest intact checkpoint in WORKDIR/checkpoints: the run continues as if never stopped;
  2. otherwise, with --init_from=pretrained (or a folder of python -m affectcodec_jax release), that codec
     and its discriminator, with a fresh optimiser and step 0: fine-tuning;
  3. otherwise fresh parameters from `config.seed`.
"""

import collections
import os
import pathlib
import signal
import sys
import threading
import time

from affectcodec_jax.common import buckets, progress
from affectcodec_jax.common.errors import UserError, run_command
from affectcodec_jax.common.files import check_local
from affectcodec_jax.common.run_files import RunFiles

STOPPED_EARLY = 75  # exit status of a preempted distributed run; launch/tpu.sh starts it again


def main(argv=None):
  """Entry point; returns the exit status."""
  return run_command(lambda: _run(argv or progress.take_options(sys.argv)))


def _run(argv):
  from affectcodec_jax import config as config_lib
  config, workdir, init_from = config_lib.parse_args(argv, __doc__, init_from='Codec to fine-tune.')
  config_lib.validate(config)
  if config.train.distributed and not workdir:
    raise UserError('train.distributed needs --workdir: one folder that all processes share')
  if not buckets.is_address(workdir or ''):
    check_local(workdir or '')
    workdir = pathlib.Path(workdir or f'runs/{time.strftime("%Y%m%d-%H%M%S")}')
  finished = train(config, workdir, init_from)
  # A launcher of many machines must tell preemption from the end; for a person both are well.
  return 0 if finished or not config.train.distributed else STOPPED_EARLY


def train(config, workdir, init_from=None):
  """Runs `config` in `workdir`, resuming whatever is there.

  Args:
    config: the configuration.
    workdir: the run's folder, or its address in a bucket.
    init_from: where the run starts anew, 'pretrained' or a released folder to start from.

  Returns:
    True at the last step, False if the run was asked to stop before it.
  """
  with RunFiles(workdir) as files:
    return _train(config, workdir, files, init_from)


def _train(config, workdir, files, init_from):
  import jax

  from affectcodec_jax import config as config_lib
  from affectcodec_jax.api import use_compilation_cache
  from affectcodec_jax.data import pipeline
  from affectcodec_jax.inference import release, weights
  from affectcodec_jax.models.params import save_params
  from affectcodec_jax.training import checkpoints, metric_writer, parallel
  from affectcodec_jax.training.samples import make_sampler
  from affectcodec_jax.training.state import create_state
  from affectcodec_jax.training.validation import make_validator
  from affectcodec_jax.training.workdir import open_run

  # ---- Devices and folder ----
  use_compilation_cache()
  if config.train.distributed:
    parallel.join_processes()
  origin, init_from = init_from, release.find(init_from) if init_from else None
  chief = jax.process_index() == 0
  say = (lambda *a: print(*a, flush=True)) if chief else (lambda *a: None)
  local_batch = parallel.local_batch_size(config)
  devices = parallel.make_parallel(config)
  changed = open_run(config, workdir, files.folder)
  if changed:
    say(f'not as this run was before: {", ".join(changed)}')
  say(f'{jax.device_count()} {jax.default_backend()} device(s), batch {config.train.batch_size} x '
      f'{config.data.crop_seconds} s, run in {workdir}')

  # ---- Data ----
  source = pipeline.make_source(config.data, config.data.train_split, config.seed)
  # Clips are dealt out, and the first state is made, by the same list everywhere.
  parallel.check_same('the training data', lambda: f'{len(source)} {getattr(source, "digest", str)()}')
  pitch = None
  if config.model.backbone == 'lite':
    from affectcodec_jax.data.pitch import crop_pitch as pitch
  iterator = pipeline.make_iterator(
      source, config.data, batch_size=local_batch, crop_samples=config_lib.crop_samples(config),
      seed=config.seed, num_workers=config.data.num_workers, pitch=pitch, process_index=jax.process_index(),
      process_count=jax.process_count())
  held_out = pipeline.make_source(config.data, config.data.eval_split, config.seed)
  clips = pipeline.eval_clips(held_out, config.train.num_samples, max_seconds=4.0)
  say(f'{len(source)} training clips from {config.data.source}')

  # ---- Teacher and student ----
  # Copied into the run, which stays whole when the originals move. A run without a checkpoint begins anew.
  manager = checkpoints.make_manager(workdir, config.train.keep_checkpoints)
  copies = {'teacher': files.folder / 'teacher.safetensors'}
  resuming = manager.latest_step() is not None and copies['teacher'].exists()
  original = config.teacher.path or (init_from / 'teacher.safetensors' if init_from else '')
  frozen = {'teacher': weights.load_teacher(config, copies['teacher'] if resuming else original)}
  if config.teacher.student:
    copies['student'] = files.folder / 'student.safetensors'
    frozen['student'] = weights.load_student(
        config, copies['student'] if resuming else config.teacher.student)

  # ---- State ----
  # Calibration must see the same clips in every process: it draws from an unsharded iterator. The k-means
  # of an RVQ needs some frames a word.
  first_clips = 64 if config.model.quantizer == 'rvq' else min(config.train.batch_size, 16)
  first = next(pipeline.make_iterator(
      source, config.data, batch_size=first_clips, crop_samples=config_lib.crop_samples(config),
      seed=config.seed))

  def fresh(frozen, audio):
    return create_state(config, jax.random.PRNGKey(config.seed), frozen, audio)

  # Made or read where it will be: no device, and no host, has to hold all of it.
  shapes = jax.eval_shape(fresh, frozen, first['audio'])
  sharding = devices.sharding(shapes)
  state = checkpoints.restore_latest(manager, parallel.laid_out(shapes, sharding), iterator)
  if state is None:
    state = jax.jit(fresh, out_shardings=sharding)(frozen, first['audio'])
    if init_from:
      state = release.initialise(state, config, init_from)
      say(f'starting from the codec in {origin}')
  else:
    say(f'resumed at step {int(state.step)}')
  step = int(state.step)
  if step >= config.train.steps:
    say(f'already at step {step} of {config.train.steps}; raise train.steps to go on')
  # Only now, when all is known to fit, is anything written that a later start reads.
  if chief and not resuming:
    for name in sorted(copies):  # the teacher last: it says that all is there
      save_params(copies[name], frozen[name])
  if chief:
    config_lib.save_config(files.folder / 'config.json', config)
    if changed := pipeline.data_changed(files.folder, source):
      say(f'warning: {changed}')
    files.send()
  frozen_copies = devices.place(frozen)
  state = devices.place(state)

  # ---- Loop ----
  writer = metric_writer.MetricWriter(files.folder, step, config.train.steps) if chief else None
  stop = _catch_signals(config.train.distributed)
  pending = collections.deque()  # metrics of steps still running; the loop never waits for them
  advice = (f'the last good checkpoint is in {workdir}/checkpoints; lower train.lr or look at the '
            'data, then run again to continue from it')
  # All stop at the first count beyond what any of them has named, which is 1 before the loop: counted from
  # there, a TERM while the first step is compiled is not missed by a run that goes on at a later step.
  begun = step
  clock = [time.time(), step]
  programs = {}
  sampler = make_sampler(config, frozen, clips) if chief and clips else None
  validator = None
  if chief and config.train.valid_clips:
    validator = make_validator(config, pipeline.eval_crops(
        held_out, config.data, config.train.valid_clips, config_lib.crop_samples(config), config.seed))

  def drain(keep):
    while len(pending) > keep:
      at, values = pending.popleft()
      finite = {'finite': values.pop('finite')}
      if at % config.train.log_every == 0 or not parallel.numbers(finite)['finite']:
        scalars = parallel.numbers(values)
        metric_writer.check_finite(at, scalars, advice)
        scalars['steps_per_second'] = (at - clock[1]) / max(time.time() - clock[0], 1e-9)
        if hasattr(source, 'skipped') and not config.data.num_workers:  # workers keep their own count
          scalars['data/skipped'] = float(source.skipped)
        clock[:] = [time.time(), at]
        if writer:
          writer.write(at, scalars)
      if writer:
        writer.advance(at)

  def checkpoint(at):
    drain(0)  # never save a state whose losses were not finite
    if at not in manager.all_steps():
      if writer:  # before it: what a run goes on from has its metrics
        writer.flush()
        files.send()
      checkpoints.save(manager, devices.to_save(state), iterator)

  def sample(at):
    drain(0)  # nor sample it
    # Every process has a part in that.
    ema = devices.fetch(state.ema) if clips or config.train.valid_clips else None
    if validator:
      writer.write(at, {name: float(value) for name, value in validator(ema, frozen).items()})
    if sampler:
      metric_writer.write_clips(files.folder / 'samples' / f'step_{at:07d}', sampler(ema))

  try:
    while step < config.train.steps:
      adversarial = step >= config.train.adversarial_start and config.loss.adversarial > 0
      if adversarial not in programs:
        say(f'compiling the training step {"with" if adversarial else "without"} discriminator')
        programs[adversarial] = devices.compile(adversarial)
      batch = {k: v for k, v in next(iterator).items() if k in ('audio', 'f0', 'voiced')}
      batch = devices.split(batch)
      with jax.transfer_guard_device_to_host('disallow'):  # nothing here waits for the device
        state, values = programs[adversarial](state, frozen_copies, batch)
      step += 1
      pending.append((step, values))
      drain(2)
      # First what is heard and measured at this step: a run goes on after its checkpoint.
      if step % config.train.sample_every == 0 or step == config.train.steps:
        sample(step)
      if step % config.train.checkpoint_every == 0 or step == config.train.steps:
        checkpoint(step)
      preempted = config.train.distributed and manager.reached_preemption(step - begun)
      if preempted or stop:
        checkpoint(step)
        checkpoints.finish(manager)
        say(f'stopped at step {step}; the same command continues from there')
        break
  finally:
    checkpoints.finish(manager)
    newest = manager.latest_step()
    manager.close()
    if writer:
      writer.close()
  say(f'checkpoint: {manager.directory}/{newest}')
  if (files.folder / 'samples').exists():
    say(f'audio:      {workdir}/samples')
  say(f'try it:     python -m affectcodec_jax encode IN.wav OUT.afc --checkpoint {workdir} --kbps 1.5')
  return step >= config.train.steps


def _catch_signals(distributed):
  """A list that becomes non-empty when this process is asked to end, by TERM or Ctrl-C.

  With several processes it stays empty: JAX has a handler for TERM of its own there, by which all of
  them agree on the step to stop at; Ctrl-C is made to ask the same.
  """
  stop = []

  def ask(number, frame):
    del frame
    signal.signal(number, signal.SIG_DFL)  # the second time ends it at once
    if distributed:
      os.kill(os.getpid(), signal.SIGTERM)
    else:
      stop.append(True)

  if threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, ask)
    if not distributed:
      signal.signal(signal.SIGTERM, ask)
  return stop


if __name__ == '__main__':
  sys.exit(main())
