"""emotion2vec against the published PyTorch definition (in `funasr` 1.4.16), same random weights.

requirements-parity.txt says how to install it. Its checkpoints come to us as a user's do: saved by
PyTorch, converted by the command, loaded from the file.

Tolerances, of the largest entry: 2e-5 for features, 1e-4 for gradients. Both sides compute in float32:
some 60 matrix products and 40 normalisations deep, sums of 48 to 4096 terms, each in its own order. A
wrong tap, slope, axis or normalisation is of order 1.
"""

import functools
import importlib
import importlib.util
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from affectcodec_jax import __main__ as cli
from affectcodec_jax.emotion.emotion2vec import CLASSES, Emotion2Vec
from affectcodec_jax.emotion.teachers import EMOTION2VEC
from affectcodec_jax.models.params import load_params

HOW = 'see requirements-parity.txt'
torch = pytest.importorskip('torch', reason=f'torch is not installed, {HOW}')

FEATURES, GRADIENT = 2e-5, 1e-4


class Settings(dict):
  """Stands for a node of OmegaConf: entries are attributes too."""

  __getattr__ = dict.__getitem__
  create = classmethod(lambda cls, settings: settings)


@pytest.fixture(scope='module')
def reference():
  """The module of the model alone. What the package would import, and networks do not use, is replaced."""
  spec = importlib.util.find_spec('funasr')
  if spec is None:
    pytest.skip(f'funasr is not installed, {HOW}')

  def module(name, path=None, **attributes):
    m = types.ModuleType(name)
    m.__dict__.update(attributes)
    if path is not None:
      m.__path__ = path
    return m

  root = list(spec.submodule_search_locations)
  tables = types.SimpleNamespace(register=lambda *args: lambda cls: cls)
  stubs = [
      module('funasr', root), module('funasr.models', [f'{p}/models' for p in root]),
      module('funasr.register', tables=tables), module('funasr.utils', []),
      module('funasr.utils.load_utils', load_audio_text_image_video=None),
      module('funasr.utils.amp', autocast=None),
      module('omegaconf', OmegaConf=Settings, MISSING=None, II=str),
      module('distutils', []), module('distutils.version', LooseVersion=str)]
  with pytest.MonkeyPatch.context() as patch:
    for m in stubs:
      patch.setitem(sys.modules, m.__name__, m)
    yield importlib.import_module('funasr.models.emotion2vec.model')
  for name in [n for n in sys.modules if n.startswith('funasr')]:
    del sys.modules[name]


def build(reference, dim, heads, per_layer, classes):
  """The published architecture with random parameters, none of them at its initial value."""
  audio = Settings(
      feature_encoder_spec='[(512, 10, 5)] + [(512, 3, 2)] * 4 + [(512, 2, 2)] * 2',
      extractor_mode='layer_norm', conv_pos_depth=5, conv_pos_width=95, conv_pos_groups=16,
      conv_pos_pre_ln=False, prenet_depth=4, model_depth=8, start_drop_path_rate=0.0,
      end_drop_path_rate=0.0, prenet_layerdrop=0.0, prenet_dropout=0.0, decoder=None,
      use_alibi_encoder=True, num_alibi_heads=heads, alibi_scale=1.0, learned_alibi=False,
      learned_alibi_scale=True, learned_alibi_scale_per_head=True,
      learned_alibi_scale_per_layer=per_layer, num_extra_tokens=10, init_extra_token_zero=False,
      local_grad_mult=1.0)
  torch.manual_seed(0)
  model = reference.Emotion2vec(vocab_size=classes, model_conf=Settings(
      modalities=Settings(audio=audio), embed_dim=dim, num_heads=heads, depth=8, mlp_ratio=4.0,
      norm_eps=1e-5, norm_affine=True, layer_norm_first=False, end_of_block_targets=False,
      start_drop_path_rate=0.0, end_drop_path_rate=0.0, dropout_input=0.0, encoder_dropout=0.0,
      attention_dropout=0.0, activation_dropout=0.0, post_mlp_drop=0.0, normalize=True)).eval()
  with torch.no_grad():
    for name, p in model.named_parameters():
      if name.endswith('alibi_scale'):
        p.copy_(1 + torch.randn_like(p))  # some of them negative, which counts as 0
      elif name.endswith('bias'):
        p.add_(0.1 * torch.randn_like(p))
      elif p.ndim == 1:
        p.mul_(1 + 0.5 * torch.rand_like(p))
      else:
        p.mul_(1 + 0.3 * torch.randn_like(p))
        if '.qkv.' in name:
          p.mul_(2)  # attention that chooses
  return model


class Anything:
  """As the objects of a training run that a checkpoint drags along."""

  def __init__(self):
    self.options = {'lr': [1e-4]}


def published(kind, model):
  """The forms of the published files: base in float32 and with its training state, plus in float16."""
  state = model.state_dict()
  extra = torch.ones(3)
  if kind == 'emotion2vec_base':
    state |= {'_ema': extra, 'modality_encoders.AUDIO.decoder.proj.weight': extra}
    return {'args': None, 'cfg': Anything(), 'model': state,
            'last_optimizer_state': {'state': {0: {'exp_avg': extra}}}}
  model.half().float()  # both sides have the same rounded weights
  return {f'd2v_model.{k}' if not k.startswith('proj.') else k: v.half()
          for k, v in model.state_dict().items()}


def check_close(ours, theirs, tolerance):
  ours, theirs = np.asarray(ours), theirs.detach().numpy()
  assert ours.shape == theirs.shape
  scale = np.abs(theirs).max()
  error = np.abs(ours - theirs).max() / scale
  print(f'{error:.1e} of {scale:.1e}')
  assert scale > 1e-2  # a network that says nothing would agree with anything
  assert error < tolerance


@pytest.mark.parametrize('kind', EMOTION2VEC)
def test_emotion2vec_equals_published(reference, kind, tmp_path, capsys):
  """Features, utterance, head and gradient by the audio, at real size; as published and in step.

  In step with the codec's frames means: of the same normalised audio between 40 zeros on each side.
  """
  dim, heads = EMOTION2VEC[kind]
  plus = kind != 'emotion2vec_base'
  model = build(reference, dim, heads, per_layer=plus, classes=9 if plus else -1)
  torch.save(published(kind, model), tmp_path / 'model.pt')
  out = tmp_path / 'out.safetensors'
  assert cli.main(['teacher', 'convert', 'emotion2vec', str(tmp_path / 'model.pt'), str(out)]) == 0
  (tmp_path / 'model.pt').unlink()
  said = capsys.readouterr().out
  assert f'--config.teacher.kind={kind} --config.teacher.dim={dim} --config.teacher.path={out}' in said
  params = load_params(out)
  network = Emotion2Vec(dim, heads, num_classes=9 if plus else 0)
  shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), jnp.zeros((1, 3200))))['params']
  assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, shapes)

  rng = np.random.default_rng(0)
  # Quiet, so that the epsilon of the variance shows, and with an offset.
  audio = (0.01 * rng.normal(size=(1, 16000)) + 0.005).astype(np.float32)
  weight = rng.normal(size=(1, 50, dim)).astype(np.float32)  # of the scalar: each frame counts otherwise

  def ours(method, params, x):
    """The scalar; features, utterance and logits."""
    bound = network.bind({'params': params})
    features = getattr(bound, method)(x)
    more = bound.logits(features) if plus else None
    return jnp.sum(features * weight[:, :features.shape[1]]), (features, bound.utterance(features), more)

  for method, edge in (('published_features', 0), ('features', 40)):
    x = torch.tensor(audio, requires_grad=True)
    source = torch.nn.functional.layer_norm(x, x.shape)
    theirs = model.extract_features(torch.nn.functional.pad(source, (edge, edge)))['x']
    assert theirs.shape == (1, 50 if edge else 49, dim)
    (theirs * torch.tensor(weight)[:, :theirs.shape[1]]).sum().backward()
    both = jax.jit(jax.value_and_grad(functools.partial(ours, method), argnums=1, has_aux=True))
    (_, (features, utterance, more)), gradient = both(params, audio)
    check_close(features, theirs, FEATURES)
    check_close(utterance, theirs.mean(dim=1), FEATURES)
    if plus:
      assert more.shape == (1, len(CLASSES))
      check_close(more, model.proj(theirs.mean(dim=1)), FEATURES)
    check_close(gradient, x.grad, GRADIENT)
