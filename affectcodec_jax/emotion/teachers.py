"""The frozen networks whose features the codec encodes as emotion: the `teacher` section of a config.

Their parameters travel as one tree, {'teacher': …, 'student': …}. Losses use the teacher's features.
The encoder reads the student's where there is one (`teacher.student`), else the teacher's; a codec in
use holds only the one that its encoder reads.
"""

import functools

import jax
import jax.numpy as jnp

from affectcodec_jax.common.errors import UserError
from affectcodec_jax.emotion.compact import Student, Teacher
from affectcodec_jax.emotion.compact import context as speechnet_context
from affectcodec_jax.emotion.emotion2vec import Emotion2Vec
from affectcodec_jax.emotion.whisper import Whisper

EMOTION2VEC = {'emotion2vec_base': (768, 12), 'emotion2vec_plus_large': (1024, 16)}  # width, heads
WHISPER = {'whisper_tiny': (384, 4), 'whisper_base': (512, 6)}  # width, blocks of the whole encoder
WHISPER_LAYER = 3  # of base's 6: docs/emotion.md has how well emotion is read there
COMPACT_DEPTH = 9  # of the first compact teacher, and of what was trained with it
OLDER = {'depth': COMPACT_DEPTH, 'layer': WHISPER_LAYER}  # what runs have that lack the field
KINDS = ('compact', *EMOTION2VEC, *WHISPER)


def check(config):
  """Checks section `teacher` of a configuration.

  Raises:
    UserError: no such kind, or a width or layer that it has not.
  """
  t = config.teacher
  if t.kind not in KINDS:
    raise UserError(f"teacher.kind='{t.kind}'; use one of {', '.join(KINDS)}")
  width = (EMOTION2VEC | WHISPER).get(t.kind, (t.dim,))[0]
  if t.dim != width:
    raise UserError(f'teacher.dim={t.dim}, but features of {t.kind} are {width} wide')
  layer = t.get('layer', WHISPER_LAYER)
  if t.kind in WHISPER and not 1 <= layer <= WHISPER[t.kind][1]:
    raise UserError(f'teacher.layer={layer}, but {t.kind} has blocks 1 to {WHISPER[t.kind][1]}')


def make_teacher(config):
  """The network of `teacher.kind`, with a method `features(audio, mask)`."""
  if config.teacher.kind == 'compact':
    return Teacher(config.teacher.dim, config.teacher.get('depth', COMPACT_DEPTH))
  if config.teacher.kind in WHISPER:
    remat = config.train.get('remat', False)  # configurations of students lack it
    return Whisper(WHISPER[config.teacher.kind][0], config.teacher.layer,
                   dtype=jnp.dtype(config.model.compute_dtype), remat=remat)
  # Its blocks are recomputed in the backward pass: the cycle loss differentiates through all of them.
  return Emotion2Vec(*EMOTION2VEC[config.teacher.kind], dtype=jnp.dtype(config.model.compute_dtype),
                     remat=True)


def teacher_shapes(config):
  """Shapes of the parameters of `make_teacher`, the compact one's head included."""
  method = '__call__' if config.teacher.kind == 'compact' else 'features'
  init = functools.partial(make_teacher(config).init, method=method)
  audio, mask = jnp.zeros((1, 3200)), jnp.ones((1, 10), bool)
  return jax.eval_shape(init, jax.random.PRNGKey(0), audio, mask)['params']


def make_compact(params):
  """The compact teacher that `params` belong to: its sizes are read off them."""
  return Teacher(params['norm']['bias'].shape[0], _depth(params['net']))


def make_student(params):
  """The student that `params` belong to: its sizes are read off them."""
  net = params['SpeechNet_0']
  return Student(params['Dense_0']['bias'].shape[0], net['Conv_0']['bias'].shape[0], _depth(net))


def _depth(net):
  """Residual layers of the `SpeechNet` with these parameters."""
  return sum(name.startswith('Conv_') for name in net) - 1


def identity(config):
  """{field of `teacher`: value} of what a codec's teacher cannot be another's in, files apart."""
  names = {'compact': ('depth',), **dict.fromkeys(WHISPER, ('layer',))}.get(config.teacher.kind, ())
  return {n: config.teacher[n] for n in ('kind', 'dim')} | {
      n: config.teacher.get(n, OLDER[n]) for n in names}


def teacher_features(config, frozen, audio, mask=None):
  """The teacher's features of `[batch, samples]`, a multiple of 320; differentiable in `audio`.

  Args:
    config: the configuration.
    frozen: {'teacher': its parameters}.
    audio: `[batch, samples]` at 16 kHz and at the codec's level.
    mask: `[batch, samples / 320]` bool, False on padding, or None.

  Returns:
    `[batch, samples / 320, teacher.dim]` float32.
  """
  network = make_teacher(config)
  params = jax.lax.stop_gradient(frozen['teacher'])
  return network.apply({'params': params}, audio, mask, method='features')


def teacher_logits(config, frozen, features, mask=None):
  """Utterance logits `[batch, emotions]` of the compact teacher's head.

  Args:
    config: the configuration.
    frozen: {'teacher': its parameters}.
    features: `[batch, T, dim]`.
    mask: `[batch, T]` bool, False on padding, or None.
  """
  params = jax.lax.stop_gradient(frozen['teacher'])
  return make_teacher(config).apply({'params': params}, features, mask, method='logits')


def encoder_features(config, frozen, audio, mask=None):
  """What the encoder reads, as `teacher_features`: the student's guess, or without one the teacher."""
  if 'student' not in frozen:
    return teacher_features(config, frozen, audio, mask)
  params = jax.lax.stop_gradient(frozen['student'])
  return make_student(params).apply({'params': params}, audio, mask)


def emotion_context(config, frozen):
  """Frames on either side that a frame of the emotion path depends on; None means the whole recording.

  Args:
    config: the configuration.
    frozen: parameters of the network that the encoder reads (a student's sizes are read off them).
  """
  if 'student' not in frozen and config.teacher.kind != 'compact':
    return None  # attention over all frames
  network = make_student(frozen['student']) if 'student' in frozen else make_teacher(config)
  return speechnet_context(network.depth) + config.model.adapter_layers * (config.model.adapter_kernel // 2)
