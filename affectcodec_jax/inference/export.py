"""The codec as two programs for other runtimes: StableHLO by `jax.export`, ONNX by jax2onnx.

  encoder: levelled audio, float32 [frames, 320], to codes, int32 [frames, stages]
  decoder: codes, int32 [frames, stages], -1 where a stage is left out, to audio, float32 [frames, 320];
           of the lite backbone also start, int32 [2]: phase and position of the source at the first
           frame; zeros, its default in ONNX, are a recording's beginning

The number of frames is free. Both hold their weights, take one recording as a whole and go on beyond its
ends as `inference.pieces` does; the emotion network is part of the encoder. docs/export.md shows how to use
them.
"""

import logging

import jax
import jax.numpy as jnp
import numpy as np

from affectcodec_jax import audio as audio_lib
from affectcodec_jax.common.errors import UserError, require_extra
from affectcodec_jax.common.files import make_folder, write_json, write_whole
from affectcodec_jax.common.platforms import portable
from affectcodec_jax.emotion.teachers import emotion_context, encoder_features
from affectcodec_jax.models import source_filter
from affectcodec_jax.models.codec import Codec, bits_per_stage, make_codec
from affectcodec_jax.models.context import decoder_context, encoder_context

FORMATS = {'stablehlo': ('stablehlo',), 'onnx': ('onnx',), 'both': ('stablehlo', 'onnx')}
PLATFORMS = ('cpu', 'cuda', 'tpu')  # of StableHLO
CHECKED_FRAMES = (1, 7, 150, 551)
AUDIO_TOLERANCE, CODE_TOLERANCE = 1e-4, 0.01  # codes: a value on a border may round either way
_REQUIREMENTS = 'requirements-export.txt && pip install --no-deps jax2onnx==0.17.0'
_OPSET = 21
_LARGE = 1024  # values of an initialiser that is worth a cast


def encoder(codec):
  """The encoder of a `Pretrained` codec as a function of audio `[frames, hop]`.

  Raises:
    UserError: its teacher needs a whole recording at once.
  """
  config, hop = codec.config, codec.hop_length
  if emotion_context(config, codec.frozen) is None:
    raise UserError(f'a codec that asks the teacher {config.teacher.kind} cannot be exported; train it '
                    'with a student (python -m affectcodec_jax teacher distil)')
  network, params, around = make_codec(config), {'params': codec.params}, encoder_context(config.model)
  # Beyond the recording the emotion network sees zeros at every layer, the adapter what comes of that.
  beside = 2 + config.model.adapter_layers * (config.model.adapter_kernel // 2)

  def encode(audio):
    frames = audio.shape[0]
    audio = audio.reshape(1, -1)  # [1, samples]
    emotion_audio = jnp.pad(audio, ((0, 0), (beside * hop, beside * hop)))
    mask = jnp.pad(jnp.ones((1, frames), bool), ((0, 0), (beside, beside)))
    features = encoder_features(config, codec.frozen, emotion_audio, mask)
    u_e, part = network.apply(params, features, mask, beside, method=Codec.analyse_emotion)
    embedding = part[2] / part[1][:, None] if part else jnp.zeros((1, 0))
    encoder_audio = jnp.pad(audio, ((0, 0), (around * hop, around * hop)))
    u = network.apply(params, encoder_audio, u_e, embedding, around, method=Codec.analyse_acoustic)
    return network.apply(params, u, method=Codec.quantize).indices[0]

  return encode


def decoder(codec):
  """The decoder of a `Pretrained` codec as a function of codes `[frames, stages]`, -1 for no code.

  And, of the lite backbone, of start `[2]`, phase and position as in `source_filter.Source`.
  """
  config, hop = codec.config, codec.hop_length
  network, around = make_codec(config), decoder_context(config.model)
  with config.copy_and_resolve_references().unlocked() as one:
    one.model.num_stages = 1
  one = make_codec(one)
  stages = jax.tree.map(lambda x: x[:, None], codec.params['quantizer'])  # one of one stage each

  def lookup(stage, index):
    return one.apply({'params': {'quantizer': stage}}, index[None, :, None], method=Codec.lookup)

  def decode(codes, start=None):
    frames = codes.shape[0]
    latents = jax.vmap(lookup)(stages, jnp.maximum(codes, 0).T)  # [stages, 1, frames, dim]
    latent = jnp.sum(jnp.where((codes >= 0).T[:, None, :, None], latents, 0.0), axis=0)
    latent, source = source_filter.extend(latent, around), None
    if config.model.backbone == 'lite':
      increments = network.apply({'params': codec.params}, latent, method=Codec.pitch)
      increments = source_filter.extend(increments[:, around:around + frames], around)
      source = source_filter.Source(increments, jnp.full(1, around, jnp.int32), start[:1], start[1:])
    audio = network.apply({'params': codec.params}, latent, source, method=Codec.synthesise)
    return audio.reshape(-1, hop)[around:around + frames]

  return decode


def programs(codec):
  """name: (function, {input: (shape, dtype)}, name of the output); 'frames' in a shape is free."""
  start = {'start': ((2,), np.int32)} if codec.config.model.backbone == 'lite' else {}
  codes = {'codes': (('frames', codec.config.model.num_stages), np.int32)}
  return {'encoder': (encoder(codec), {'audio': (('frames', codec.hop_length), np.float32)}, 'codes'),
          'decoder': (decoder(codec), codes | start, 'audio')}


def to_stablehlo(function, inputs, output):
  """Serialised program of any number of frames, for CPUs, CUDA and TPUs."""
  del output
  from jax import export
  frames, = export.symbolic_shape('frames', constraints=['frames >= 1'])
  with portable():
    exported = export.export(jax.jit(function), platforms=PLATFORMS)(*(
        jax.ShapeDtypeStruct([frames if n == 'frames' else n for n in shape], dtype)
        for shape, dtype in inputs.values()))
  return bytes(exported.serialize())


def to_onnx(function, inputs, output):
  """Serialised ONNX model of any number of frames; inputs of a fixed shape default to zeros.

  Raises:
    UserError: jax2onnx is not installed.
  """
  for name in ('jax2onnx', 'onnx_ir'):  # tracebacks about frameworks that are not there
    logging.getLogger(name).setLevel(logging.CRITICAL)
  jax2onnx = require_extra('jax2onnx', extras=_REQUIREMENTS)
  with portable():
    model = jax2onnx.to_onnx(function, [jax.ShapeDtypeStruct(*x) for x in inputs.values()], opset=_OPSET,
                             input_names=list(inputs), output_names=[output])
  del model.graph.value_info[:]  # guesses at inner shapes, some wrong; runtimes infer them
  _store_as_float16(model.graph)
  for name, (shape, dtype) in inputs.items():
    if 'frames' not in shape:
      import onnx
      model.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(shape, dtype), name))
  return model.SerializeToString()


def _store_as_float16(graph):
  """Halves the weights that float16 holds exactly, a released codec's; they are cast on loading."""
  import onnx
  casts = []
  for tensor in graph.initializer:
    if tensor.data_type == onnx.TensorProto.FLOAT and np.prod(tensor.dims) >= _LARGE:
      values = onnx.numpy_helper.to_array(tensor)
      with np.errstate(over='ignore'):
        half = values.astype(np.float16)
      if np.array_equal(half, values):
        casts.append(onnx.helper.make_node('Cast', [f'{tensor.name}/half'], [tensor.name],
                                           to=onnx.TensorProto.FLOAT))
        tensor.CopyFrom(onnx.numpy_helper.from_array(half, f'{tensor.name}/half'))
  nodes = [*casts, *graph.node]
  del graph.node[:]
  graph.node.extend(nodes)


def load_stablehlo(data):
  """A serialised StableHLO program as a function; inputs that are left out are zeros."""
  from jax import export
  program = export.deserialize(bytearray(data))

  def call(*values):
    rest = (np.zeros(x.shape, x.dtype) for x in program.in_avals[len(values):])
    return program.call(*values, *rest)

  return call


def load_onnx(data):
  """A serialised ONNX model as a function, by onnxruntime on the CPU."""
  onnxruntime = require_extra('onnxruntime', extras=_REQUIREMENTS)
  options = onnxruntime.SessionOptions()
  options.log_severity_level = 3
  session = onnxruntime.InferenceSession(data, options, providers=['CPUExecutionProvider'])
  names = [x.name for x in [*session.get_inputs(), *session.get_overridable_initializers()]]
  return lambda *values: session.run(None, dict(zip(names, map(np.asarray, values))))[0]


WRITERS = {'stablehlo': (to_stablehlo, load_stablehlo), 'onnx': (to_onnx, load_onnx)}


def compare(codec, encode, decode, speech, frames):
  """Exported programs beside the codec itself.

  Args:
    codec: `Pretrained`.
    encode, decode: the exported programs as functions.
    speech: `[samples]` at 16 kHz, at least as long as the longest of `frames`.
    frames: lengths of the recordings.

  Returns:
    (largest share of codes that differ in a recording, largest difference of a sample at any rate).
  """
  top, hop = codec.config.model.num_stages, codec.hop_length
  codes_off, audio_off = 0.0, 0.0
  for n in frames:
    tokens = codec.encode(speech[:n * hop - 5], audio_lib.SAMPLE_RATE)  # its last frame is not full
    levelled, _ = audio_lib.pad_to_frames(audio_lib.apply_gain(speech[:n * hop - 5], tokens.gain_db), n)
    codes = np.asarray(encode(levelled.reshape(n, hop)))
    codes_off = max(codes_off, float(np.mean(codes != tokens.codes)))
    for m in codec.config.rates:
      part = np.where(np.arange(top) < m, tokens.codes, -1).astype(np.int32)
      difference = np.asarray(decode(part)).reshape(-1) - codec.decode(tokens.codes[:, :m])
      audio_off = max(audio_off, float(np.abs(difference).max()))
  return codes_off, audio_off


def save(codec, out, speech, formats=('stablehlo',)):
  """Writes the programs and `export.json` to the folder `out`, after comparing them with the codec.

  Args:
    codec: `Pretrained`.
    out: folder.
    speech: `[samples]` at 16 kHz to compare them on, 11.02 s or more.
    formats: of 'stablehlo' and 'onnx'.

  Returns:
    What `export.json` says.

  Raises:
    UserError: an extra is missing, the codec cannot be exported, a program differs from the codec, or the
      folder cannot be written.
  """
  if 'onnx' in formats:  # before the long part
    require_extra('jax2onnx', extras=_REQUIREMENTS)
    require_extra('onnxruntime', extras=_REQUIREMENTS)
  out, m = make_folder(out), codec.config.model
  card = {'fingerprint': codec.fingerprint.hex(), 'sample_rate': codec.sample_rate,
          'hop_length': codec.hop_length, 'stages': m.num_stages, 'bits_per_code': bits_per_stage(m),
          'emotion_levels': list(m.emotion_levels), 'acoustic_levels': list(m.acoustic_levels),
          'target_db': audio_lib.TARGET_DB,
          'rates': [{'kbps': codec.stage_kbps * n, 'stages': n} for n in codec.config.rates], 'files': {}}
  written = {}
  for form in formats:
    write, read = WRITERS[form]
    data = {name: write(*program) for name, program in programs(codec).items()}
    codes_off, audio_off = compare(codec, *(read(data[name]) for name in ('encoder', 'decoder')),
                                   speech, CHECKED_FRAMES)
    if codes_off > CODE_TOLERANCE or not audio_off < AUDIO_TOLERANCE:
      raise UserError(f'the {form} programs differ from the codec ({codes_off:.2%} of codes, audio by '
                      f'{audio_off:.1e}); nothing was written; install requirements-export.txt anew')
    card['files'][form] = {name: f'{name}.{form}' for name in data} | {
        'codes_that_differ': codes_off, 'audio_difference': audio_off}
    written |= {f'{name}.{form}': content for name, content in data.items()}
  (out / 'export.json').unlink(missing_ok=True)  # no card says that programs of two codecs belong together
  for left in {f'{name}.{form}' for name in ('encoder', 'decoder') for form in WRITERS} - set(written):
    (out / left).unlink(missing_ok=True)  # perhaps of another codec
  for name, content in written.items():
    write_whole(out / name, content)
  write_json(out / 'export.json', card)
  return card
