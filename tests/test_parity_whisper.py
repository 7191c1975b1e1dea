"""Whisper's encoder against the one of `transformers`, same random weights, in every published form.

requirements-parity.txt says how to install it. Files come to us as a user's do: saved by PyTorch, by
safetensors or by CTranslate2's own converter, converted by the command, loaded from the file.

Tolerances, of the largest entry: 2e-5 for features, 1e-4 for gradients. Both sides compute in float32, each
sum in its own order. A wrong tap, axis or normalisation is of order 1.
"""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from affectcodec_jax import __main__ as cli
from affectcodec_jax.emotion.whisper import Whisper, log_mel
from affectcodec_jax.models.params import load_params
from tests.test_parity_emotion2vec import check_close

HOW = 'see requirements-parity.txt'
torch = pytest.importorskip('torch', reason=f'torch is not installed, {HOW}')
transformers = pytest.importorskip('transformers', reason=f'transformers is not installed, {HOW}')

FEATURES, GRADIENT = 2e-5, 1e-4
DIM, BLOCKS, LAYER = 128, 4, 3


@pytest.fixture(scope='module')
def reference():
  """A small Whisper with random parameters, none of them at its initial value, rounded to float16."""
  torch.manual_seed(0)
  config = transformers.WhisperConfig(
      d_model=DIM, encoder_layers=BLOCKS, encoder_attention_heads=2, encoder_ffn_dim=4 * DIM,
      decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=DIM, vocab_size=60, pad_token_id=0,
      bos_token_id=1, eos_token_id=2, decoder_start_token_id=3)
  model = transformers.WhisperForConditionalGeneration(config).eval()
  with torch.no_grad():
    for name, p in model.model.encoder.named_parameters():
      if p.ndim == 1:
        p.add_(0.3 * torch.randn_like(p))
      elif 'positions' not in name:
        p.copy_(torch.randn_like(p) * (2 / p[0].numel()) ** 0.5)
        if 'q_proj' in name or 'k_proj' in name:
          p.mul_(2)  # attention that chooses
  return model.half().float()


def openai(state):
  """transformers' names to those of OpenAI's checkpoints."""
  pairs = (('model.', ''), ('layers', 'blocks'), ('self_attn_layer_norm', 'attn_ln'),
           ('encoder_attn_layer_norm', 'cross_attn_ln'), ('final_layer_norm', 'mlp_ln'),
           ('encoder.layer_norm', 'encoder.ln_post'), ('self_attn', 'attn'), ('q_proj', 'query'),
           ('k_proj', 'key'), ('v_proj', 'value'), ('out_proj', 'out'), ('fc1', 'mlp.0'), ('fc2', 'mlp.2'),
           ('embed_positions.weight', 'positional_embedding'))
  for old, new in pairs:
    state = {k.replace(old, new): v for k, v in state.items()}
  return state


def save(model, form, folder):
  """Writes the model in a form; returns the file."""
  path = folder / 'model.bin'
  if form.startswith('openai'):
    state = {k: v.half() if 'float16' in form else v for k, v in openai(model.state_dict()).items()}
    torch.save({'dims': {'n_mels': 80, 'n_audio_state': DIM}, 'model_state_dict': state}, path)
  elif form == 'transformers safetensors':
    model.save_pretrained(folder / 'saved')
    path = folder / 'saved/model.safetensors'
  elif form == 'transformers pytorch':
    torch.save(model.state_dict(), path)
  else:
    converters = pytest.importorskip('ctranslate2.converters.transformers')
    spec = converters.WhisperLoader().get_model_spec(copy.deepcopy(model))  # it is changed in place
    spec.register_vocabulary([str(i) for i in range(60)])
    spec.validate()
    spec.optimize(form.split()[1])
    spec.save(str(folder))
  return path


@pytest.fixture(scope='module')
def params(reference, tmp_path_factory):
  """As converted from OpenAI's form."""
  folder = tmp_path_factory.mktemp('openai')
  return converted(save(reference, 'openai', folder), folder / 'out.safetensors')


def converted(path, out):
  assert cli.main(['teacher', 'convert', 'whisper', str(path), str(out), f'--layer={LAYER}']) == 0
  return load_params(out)


@pytest.mark.parametrize('form', [
    'openai float16', 'transformers safetensors', 'transformers pytorch', 'ctranslate2 float32',
    'ctranslate2 float16', 'ctranslate2 bfloat16', 'ctranslate2 int8_float32', 'ctranslate2 int16'])
def test_every_form_gives_the_same_parameters(reference, params, form, tmp_path):
  """Bit for bit, save where the form itself rounds: relative to each tensor's largest entry."""
  found = converted(save(reference, form, tmp_path), tmp_path / 'out.safetensors')
  rounding = {'bfloat16': 2 ** -8, 'int8_float32': 0.51 / 127, 'int16': 0.51 / 1024}.get(form.split()[1], 0)

  def check(a, b):
    assert a.shape == b.shape and np.abs(a - b).max() <= rounding * np.abs(b).max()

  jax.tree.map(check, found, params)


def torch_log_mel(audio):
  """The published front end, differentiable; `test_log_mel…` has it against the extractor itself."""
  filters = torch.tensor(transformers.WhisperFeatureExtractor().mel_filters, dtype=torch.float32)
  spectrum = torch.stft(audio, 400, 160, window=torch.hann_window(400), return_complex=True)
  log = torch.clamp(filters.T @ (spectrum[..., :-1].abs() ** 2), min=1e-10).log10()
  return (torch.maximum(log, log.max() - 8) + 4) / 4


def voice(samples, level=0.1):
  """Noise whose loudness moves, with a faint offset, `[samples]`."""
  rng = np.random.default_rng(samples)
  return (level * (rng.normal(size=samples) * np.sin(np.arange(samples) / 900) + 0.05)).astype(np.float32)


@pytest.mark.parametrize('frames, level', [
    (1, 0.1), (2, 0.1), (50, 0.1), (73, 1e-3), (73, 1e-6), (73, 0), (1499, 0.5), (1500, 0.1)])
def test_log_mel_equals_published(frames, level):
  """On the same audio, values of about [-1, 1] within 1e-4.

  The last windows of a whole 30 s, which the published ones mirror there, are left out.
  """
  audio = voice(frames * 320, level)
  theirs = transformers.WhisperFeatureExtractor()(
      audio, sampling_rate=16000, return_tensors='np')['input_features'][0].T  # [3000, 80]
  ours = np.asarray(jax.jit(log_mel)(audio[None]))[0]
  count = min(2 * frames + 1, 2999)
  np.testing.assert_allclose(ours[:count], theirs[:count], atol=1e-4)
  np.testing.assert_allclose(torch_log_mel(torch.tensor(np.pad(audio, (0, 480000 - len(audio))))).T, theirs,
                             atol=1e-6)


def published(encoder, mel, frames=None):
  """Hidden states `[1, 1500, dim]` after `LAYER` blocks, or of the first frames attending to each other."""
  if frames is None:
    states = []
    hook = encoder.layers[LAYER - 1].register_forward_hook(lambda *args: states.append(args[-1]))
    encoder(mel)
    hook.remove()
    return states[0]
  gelu = torch.nn.functional.gelu
  x = gelu(encoder.conv2(gelu(encoder.conv1(mel)))).transpose(1, 2)
  x = (x + encoder.embed_positions.weight)[:, :frames]
  for block in encoder.layers[:LAYER]:
    x = block(x, None)
  return x


@pytest.mark.parametrize('method', ['published_features', 'features'])
def test_whisper_equals_published(reference, params, method):
  """Features and gradient by the audio: with silence up to 30 s, and of a recording's frames alone."""
  frames = 60
  audio = voice(frames * 320)
  x = torch.tensor(audio, requires_grad=True)
  mel = torch_log_mel(torch.nn.functional.pad(x, (0, 480000 - len(audio))))[None]
  theirs = published(reference.model.encoder, mel, None if method == 'published_features' else frames)
  weight = np.random.default_rng(0).normal(size=theirs.shape).astype(np.float32)
  (theirs * torch.tensor(weight)).sum().backward()

  def ours(audio):
    found = Whisper(DIM, LAYER).apply({'params': params}, audio[None], method=method)
    return jnp.sum(found * weight), found

  (_, found), gradient = jax.jit(jax.value_and_grad(ours, has_aux=True))(audio)
  check_close(found, theirs, FEATURES)
  check_close(gradient, x.grad, GRADIENT)
