"""Trains the codec.

  python -m affectcodec_jax.train --config configs/base.py --workdir runs/base \
      --config.train.steps=1000

The state of a run is chosen in this order:
  1. the newest intact checkpoint in WORKDIR/checkpoints: the run continues as if never stopped;
  2. otherwise, with --init_from=pretrained (or a folder of python -m affectcodec_jax release), that codec
     and its discriminator, with a fresh optimiser and step 0: fine-tuning;
  3. otherwise fresh parameters from `config.seed`.
"""

import os
import pathlib
import signal
import sys
import threading
import time

import numpy as np

from affectcodec_jax.common import buckets, progress
from affectcodec_jax.common.errors import UserError, run_command
from affectcodec_jax.common.files import check_local
from affectcodec_jax.common.run_files import RunFiles

STOPPED_EARLY = 75  # exit status of a preempted distributed run; launch/tpu.sh starts it again


def main(argv=None):
  """Entry point; returns the exit status."""
  words = argv or ['python -m affectcodec_jax.train', *progress.take_options(sys.argv[1:])]
  return run_command(lambda: _run(words))


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

  from affectcodec_jax.common.compilation_cache import use_compilation_cache
  from affectcodec_jax.inference import release
  from affectcodec_jax.training import checkpoints, metric_writer, parallel
  from affectcodec_jax.training.held_out import make_listener
  from affectcodec_jax.training.workdir import open_run

  # ---- Devices and folder ----
  use_compilation_cache()
  if config.train.distributed:
    parallel.join_processes()
  # Before anything is made or read. What a run began from may have gone when it goes on.
  begun = (files.folder / 'config.json').exists()
  start = release.find(init_from) if init_from and not begun else None
  primary = jax.process_index() == 0
  say = (lambda *a: print(*a, flush=True)) if primary else (lambda *a: None)
  batch_size = parallel.local_batch_size(config)
  devices = parallel.make_parallel(config)
  parallel.check_same('the configuration', config.to_json)
  changed = open_run(config, workdir, files.folder)
  if changed:
    say(f'not as this run was before: {", ".join(changed)}')
  say(f'{jax.device_count()} {jax.default_backend()} device(s), batch {config.train.batch_size} x '
      f'{config.data.crop_seconds} s, run in {workdir}')

  # ---- Data, frozen networks, state ----
  source, held_out, clips, iterator = _open_data(config, batch_size)
  say(f'{len(source)} training clips from {config.data.source}')
  manager = checkpoints.make_manager(workdir, config.train.keep_checkpoints)
  parallel.check_same('the checkpoints', lambda: str(manager.all_steps()))
  copies = {name: files.folder / f'{name}.safetensors' for name in ('teacher', 'student')
            if name == 'teacher' or config.teacher.student}
  # A run without a checkpoint begins anew.
  resuming = manager.latest_step() is not None and copies['teacher'].exists()
  if init_from and begun and not resuming:
    start = release.find(init_from)
  frozen = _load_frozen(config, copies if resuming else {}, start)
  state, resumed = _make_state(config, source, frozen, devices, manager, iterator, start)
  step = int(state.step)
  if resumed:
    say(f'resumed at step {step}')
  elif init_from:
    say(f'starting from the codec in {init_from}')
  if step >= config.train.steps:
    say(f'already at step {step} of {config.train.steps}; raise train.steps to go on')
  if primary:  # only now, when all is known to fit, is anything written that a later start reads
    _write_files(config, files, source, {} if resuming else copies, frozen)
  frozen_copies = devices.place(frozen)
  state = devices.place(state)

  # ---- Loop ----
  writer = metric_writer.MetricWriter(files.folder, step, config.train.steps) if primary else None
  pending = metric_writer.PendingMetrics(
      writer, step, config.train.log_every,
      f'the last good checkpoint is in {workdir}/checkpoints; lower train.lr or look at the data, then run '
      'again to continue from it')
  listen = make_listener(config, held_out, clips, frozen, files.folder, writer, devices.fetch)
  stop = _catch_signals(config.train.distributed)
  programs = {}

  def skipped():
    known = hasattr(source, 'skipped') and not config.data.num_workers  # workers keep their own count
    return {'data/skipped': float(source.skipped)} if known else {}

  def checkpoint():
    pending.drain()
    if step not in manager.all_steps():
      if writer:  # before it: what a run goes on from has its metrics
        writer.flush()
        files.send()
      checkpoints.save(manager, devices.to_save(state), iterator)

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
      pending.add(step, values, skipped())
      last = step == config.train.steps
      # First what is heard and measured at this step: a run goes on after its checkpoint.
      if last or step % config.train.sample_every == 0:
        pending.drain()  # nothing is heard or saved of a state whose losses were not finite
        listen(step, state.ema)
      if last or step % config.train.checkpoint_every == 0:
        checkpoint()
      if (config.train.distributed and manager.reached_preemption(step)) or stop:
        checkpoint()
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


def _open_data(config, batch_size):
  """(training source, held-out source, clips of it to listen to, iterator of this process's batches)."""
  import jax

  from affectcodec_jax import config as config_lib
  from affectcodec_jax.data import pipeline
  from affectcodec_jax.training import parallel
  source = pipeline.make_source(config.data, config.data.train_split, config.seed)
  # Clips are dealt out, and the first state is made, by the same list everywhere.
  parallel.check_same('the training data', lambda: f'{len(source)} {getattr(source, "digest", str)()}')
  pitch = None
  if config.model.backbone == 'lite':
    from affectcodec_jax.data.pitch import crop_pitch as pitch
  iterator = pipeline.make_iterator(
      source, config.data, batch_size=batch_size, crop_samples=config_lib.crop_samples(config),
      seed=config.seed, num_workers=config.data.num_workers, pitch=pitch,
      process_index=jax.process_index(), process_count=jax.process_count())
  held_out = pipeline.make_source(config.data, config.data.eval_split, config.seed)
  clips = pipeline.eval_clips(held_out, config.train.num_samples, max_seconds=4.0)
  return source, held_out, clips, iterator


def _load_frozen(config, copies, init_from):
  """Parameters of the emotion networks, by name.

  Args:
    config: the configuration.
    copies: those of a run that goes on; without them they are read from where the configuration says.
    init_from: released codec whose teacher is taken where the configuration names none, or None.
  """
  from affectcodec_jax.inference import weights
  from affectcodec_jax.training import parallel
  teacher = config.teacher.path or (init_from / 'teacher.safetensors' if init_from else '')
  frozen = {'teacher': weights.load_teacher(config, copies.get('teacher', teacher))}
  if config.teacher.student:
    frozen['student'] = weights.load_student(config, copies.get('student', config.teacher.student))
  parallel.check_same('the emotion networks', lambda: weights.fingerprint({}, frozen, {}).hex())
  return frozen


def _make_state(config, source, frozen, devices, manager, iterator, init_from):
  """(a `TrainState` laid out for the devices, whether it is of a checkpoint), see the top of this file.

  With a checkpoint's state `iterator` is set to where that stood.
  """
  import jax

  from affectcodec_jax import config as config_lib
  from affectcodec_jax.data import pipeline
  from affectcodec_jax.inference import release
  from affectcodec_jax.training import checkpoints, parallel
  from affectcodec_jax.training.state import create_state
  # Calibration must see the same clips in every process: it draws from an unsharded iterator. The k-means
  # of an RVQ needs some frames a word.
  count = 64 if config.model.quantizer == 'rvq' else min(config.train.batch_size, 16)
  samples = config_lib.crop_samples(config)

  def fresh(frozen, audio):
    return create_state(config, jax.random.PRNGKey(config.seed), frozen, audio)

  # Made or read where it will be: no device, and no host, has to hold all of it.
  shapes = jax.eval_shape(fresh, frozen, jax.ShapeDtypeStruct((count, samples), np.float32))
  sharding = devices.sharding(shapes)
  state = checkpoints.restore_latest(manager, parallel.laid_out(shapes, sharding), iterator)
  if state is not None:
    return state, True
  first = next(pipeline.make_iterator(source, config.data, batch_size=count, crop_samples=samples,
                                      seed=config.seed))
  state = jax.jit(fresh, out_shardings=sharding)(frozen, first['audio'])
  if init_from:
    parallel.check_same('the codec to start from', lambda: str(release.read_card(init_from)[1:]))
    state = release.initialise(state, config, init_from)
  return state, False


def _write_files(config, files, source, copies, frozen):
  """Writes what a later start reads: the configuration, and the emotion networks to `copies`.

  Copied into the run, which stays whole when the originals move.
  """
  from affectcodec_jax import config as config_lib
  from affectcodec_jax.data import pipeline
  from affectcodec_jax.models.params import save_params
  for name in sorted(copies):  # the teacher last: it says that all is there
    save_params(copies[name], frozen[name])
  config_lib.save_config(files.folder / 'config.json', config)
  if changed := pipeline.data_changed(files.folder, source):
    print(f'warning: {changed}', flush=True)
  files.send()


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
