"""Neural codecs to compare with, where the user has their weights: by `transformers` or their package.

A peer is named `MODEL@RATES`: a name on the hub or a folder, and kbit/s parted by commas, by default those
of 1.5, 3 and 6 that the codec has. EnCodec, DAC, Mimi and X-Codec are recognised by their configuration;
`speechtokenizer:FOLDER` is a folder with SpeechTokenizer's `config.json` and `SpeechTokenizer.pt`.
"""

import functools
import math
import pathlib

from affectcodec_jax.audio import resample
from affectcodec_jax.common.constants import SAMPLE_RATE
from affectcodec_jax.common.errors import UserError, require_extra
from affectcodec_jax.evaluation.systems import System, fit_length, model_stamp, model_version

RATES = (1.5, 3.0, 6.0)
# How each kind takes its rate: EnCodec and X-Codec in kbit/s, the others in codebooks.
RATE_ARGUMENT = {'encodec': 'bandwidth', 'xcodec': 'bandwidth', 'dac': 'n_quantizers',
                 'mimi': 'num_quantizers'}


def load(spec):
  """The systems of one peer.

  Raises:
    UserError: a package or the model is not there, it is of another kind, or has no such rate.
  """
  name, _, rates = spec.partition('@')
  try:
    rates = [float(r) for r in rates.split(',')] if rates else None
  except ValueError as e:
    raise UserError(f'{spec}: rates are numbers parted by commas, as in {name}@1.5,3') from e
  if name.startswith('speechtokenizer:'):
    return _speechtokenizer(name, rates)
  transformers = require_extra('transformers')
  transformers.utils.logging.set_verbosity_error()
  try:
    config = transformers.AutoConfig.from_pretrained(name)
    if config.model_type not in RATE_ARGUMENT:
      raise UserError(f'{name}: a {config.model_type}, not one of {", ".join(RATE_ARGUMENT)}')
    model = transformers.AutoModel.from_pretrained(name).eval()
  except (OSError, ValueError, RuntimeError) as e:
    raise UserError(f'{name}: does not load ({str(e).splitlines()[0]}); it is neither one of the peers '
                    'opus, codec2, amrwb, speex nor a model that you have') from e
  rate = getattr(config, 'sampling_rate', None) or config.sample_rate
  bits = math.log2(config.codebook_size)
  kbps_each = config.frame_rate * bits / 1000
  if RATE_ARGUMENT[config.model_type] == 'bandwidth':
    possible = [float(b) for b in config.target_bandwidths]
  else:
    books = getattr(config, 'n_codebooks', None) or config.num_quantizers
    possible = [n * kbps_each for n in range(1, books + 1)]
  version = model_version(name, config, transformers)
  systems = []
  for kbps in _chosen(name, rates, possible):
    run = functools.partial(_run, model, rate, bits, _rate_arguments(config, kbps, kbps_each))
    systems.append(System(pathlib.Path(name).name, kbps, run, version))
  return systems


def _chosen(name, rates, possible):
  """The rates asked for, each the nearest possible one within 5 %."""
  chosen = []
  for kbps in rates or RATES:
    nearest = min(possible, key=lambda p: abs(p - kbps))
    if abs(nearest - kbps) <= 0.05 * kbps:
      chosen.append(round(nearest, 4))
    elif rates:
      raise UserError(f'{name}: has no {kbps:g} kbps; it has {", ".join(f"{p:g}" for p in possible)}')
  if not chosen:
    raise UserError(f'{name}: has none of 1.5, 3 and 6 kbps; choose of '
                    f'{", ".join(f"{p:g}" for p in possible)} as in {name}@{possible[0]:g}')
  return chosen


def _rate_arguments(config, kbps, kbps_each):
  argument = RATE_ARGUMENT[config.model_type]
  return {argument: kbps if argument == 'bandwidth' else round(kbps / kbps_each)}


def _run(model, rate, bits, rate_arguments, audio):
  torch = require_extra('torch')
  x = torch.from_numpy(resample(audio, SAMPLE_RATE, rate))[None, None]  # [batch, channels, samples]
  with torch.no_grad():
    out = model(x, **rate_arguments)
  decoded = out.audio_values.reshape(-1).numpy()
  return fit_length(resample(decoded, rate, SAMPLE_RATE), len(audio)), out.audio_codes.numel() * bits


def _speechtokenizer(name, rates):
  package, torch = require_extra('speechtokenizer'), require_extra('torch')
  folder = pathlib.Path(name.partition(':')[2])
  try:
    model = package.SpeechTokenizer.load_from_checkpoint(
        str(folder / 'config.json'), str(folder / 'SpeechTokenizer.pt')).eval()
  except (OSError, ValueError, KeyError, RuntimeError) as e:
    raise UserError(f'{name}: does not load ({str(e).splitlines()[0]})') from e
  each = model.sample_rate / model.downsample_rate * 10 / 1000  # 1024 entries a book

  def run(books, audio):
    x = torch.from_numpy(resample(audio, SAMPLE_RATE, model.sample_rate))[None, None]
    with torch.no_grad():
      codes = model.encode(x, n_q=books)
      decoded = model.decode(codes).reshape(-1).numpy()
    return fit_length(resample(decoded, model.sample_rate, SAMPLE_RATE), len(audio)), codes.numel() * 10

  return [System('speechtokenizer', kbps, functools.partial(run, round(kbps / each)), model_stamp(folder))
          for kbps in _chosen(name, rates, [n * each for n in range(1, model.n_q + 1)])]
