"""The peers: PyTorch's DAC at the 16 kHz sizes with its losses, on random weights."""

import importlib
import sys
import types
import warnings

STRIDES = (2, 4, 5, 8)


def load_dac():
  """DAC's module of networks, or None. Its audio tools, which networks do not use, are replaced."""
  try:
    import torch
  except ImportError:
    return None
  tools, ml, utils = (types.ModuleType(n) for n in ('audiotools', 'audiotools.ml', 'dac.utils'))
  ml.BaseModel = type('BaseModel', (torch.nn.Module,), {'INTERN': [], 'EXTERN': []})
  tools.ml, tools.AudioSignal, tools.STFTParams = ml, object, object
  sys.modules |= {module.__name__: module for module in (tools, ml, utils)}
  try:
    return importlib.import_module('dac.model.dac')
  except ImportError:
    return None


def make_dac(dac, num_stages=8):
  """DAC-16k: encoder 64 wide, latent of 1024, decoder 1536 wide; RVQ of 1024 codes a stage."""
  import torch
  warnings.filterwarnings('ignore', '.*weight_norm', FutureWarning)  # the published DAC has the older one
  torch.manual_seed(0)
  return torch.nn.ModuleDict({
      'encoder': dac.Encoder(64, list(STRIDES), 1024),
      'quantizer': dac.ResidualVectorQuantize(input_dim=1024, n_codebooks=num_stages),
      'decoder': dac.Decoder(1024, 1536, list(STRIDES[::-1]))})


def mel_distance(x, y):
  """The seven-scale mel loss of `affectcodec_jax.losses` in PyTorch, of `[batch, samples]`."""
  import librosa
  import torch

  from affectcodec_jax.losses import MEL_BANDS, MEL_WINDOWS
  total = 0.0
  for window, bands in zip(MEL_WINDOWS, MEL_BANDS):
    basis = torch.tensor(librosa.filters.mel(sr=16000, n_fft=window, n_mels=bands))
    logs = [torch.log10(torch.clamp(basis @ torch.stft(
        a, window, window // 4, window=torch.hann_window(window), return_complex=True).abs(), min=1e-5))
            for a in (x, y)]
    total = total + (logs[0] - logs[1]).abs().mean()
  return total
