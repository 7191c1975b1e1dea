"""One HTML page of one recording: the original and every rate to hear and to see, and the tokens between.

It shows and measures nothing over speakers: for that there is `evaluate`. Pillow, WORLD and the packaged
emotion networks are all it needs, and the page fetches nothing.
"""

import html
import io
import pathlib
import string

import numpy as np
from PIL import Image

from affectcodec_jax.audio import apply_gain
from affectcodec_jax.common.constants import SAMPLE_RATE
from affectcodec_jax.common.labels import EMOTIONS
from affectcodec_jax.common.pictures import spectrogram
from affectcodec_jax.emotion import judges
from affectcodec_jax.evaluation import prosody
from affectcodec_jax.evaluation.charts import data_url
from affectcodec_jax.evaluation.report import flac
from affectcodec_jax.models.blocks import block_digits, block_levels, split_blocks
from affectcodec_jax.tokens import afc

HIGHEST_PITCH = 600  # Hz, the top of the pitch scale
_WIDEST = 1600  # pixels of a picture
_LOW, _HIGH = np.array([38, 52, 74]), np.array([148, 178, 214])  # colours of acoustic digits
_EMOTION_LOW, _EMOTION_HIGH = np.array([110, 42, 16]), np.array([255, 150, 60])


def make_page(codec, audio, name, length=None):
  """The page.

  Args:
    codec: a `Pretrained` codec.
    audio: `[samples]` at 16 kHz.
    name: of the recording, its heading.
    length: seconds of the whole recording, where `audio` is the beginning of it.

  Returns:
    HTML text.
  """
  tokens = codec.encode(audio, SAMPLE_RATE)
  versions = [_version('original', audio, tokens.gain_db, 16 * SAMPLE_RATE / 1000, 2 * len(audio))]
  for stages in codec.config.rates:
    part = tokens.truncate(stages)
    decoded = codec.decode(part)
    versions.append(_version(f'{part.kbps:g} kbps', decoded, tokens.gain_db, part.kbps,
                             afc.packed_size(part)))
  for network, classify in (('teacher', judges.packaged_teacher()), ('judge', judges.network_judge())):
    for version in versions:
      version[network] = classify(version['audio'])
  template = string.Template((pathlib.Path(__file__).parent / 'listen.html').read_text())
  seconds = len(audio) / SAMPLE_RATE
  cut = f' The first {seconds:.0f} s of {length:.0f} s.' if length and length > seconds + 0.5 else ''
  return template.substitute(
      name=html.escape(name), seconds=f'{seconds:.1f}', cut=cut, step=codec.step,
      fingerprint=codec.fingerprint.hex(), cards='\n'.join(_card(v, versions[0]) for v in versions),
      grid=token_grid(tokens, block_levels(codec.config.model), codec.config.rates),
      frames=len(tokens), stages=tokens.shape[1], bits=tokens.bits_per_code,
      example=_example(tokens, block_levels(codec.config.model)),
      teacher=_readings(versions, 'teacher'), judge=_readings(versions, 'judge'))


def _version(label, audio, gain_db, kbps, size):
  """What is known of the recording in one of its versions; `size` in bytes."""
  return {'label': label, 'audio': audio, 'gain_db': gain_db, 'kbps': kbps, 'size': size,
          'f0': prosody.pitch(audio)}


def _card(version, original):
  """A version to hear and to see."""
  label, f0 = version['label'], version['f0']
  voiced = f0[f0 > 0]
  pitch = f'pitch: median {np.median(voiced):.0f} Hz' if voiced.size else 'no pitch found'
  if version is original:
    size = f'{_bytes(version["size"])} as 16-bit samples at 16 kHz, {version["kbps"]:g} kbps'
  else:
    smaller = f'1/{original["size"] / version["size"]:.0f} of the samples'
    size = f'{_bytes(version["size"])} as a token file, {smaller}'
    correlation = prosody.compare_pitch(original['f0'], f0)['f0_correlation']
    if correlation is not None:
      pitch += f', correlation {correlation:.2f} with the original’s'
  said = ', '.join(f'{network}: {_first(version[network])}' for network in ('teacher', 'judge'))
  return f"""<section class="card" aria-label="{label}">
<h2>{label}</h2>
<p class="soft">{size}</p>
{_spectrogram(version, original, pitch)}
<audio controls preload="metadata" src="{flac(version['audio'])}" aria-label="play {label}"></audio>
<p class="soft">{pitch}<br>emotion by the {said}</p>
</section>"""


def _spectrogram(version, original, pitch):
  """The spectrogram with the version's pitch, and the original's dashed over it."""
  seconds = len(version['audio']) / SAMPLE_RATE
  picture = spectrogram(apply_gain(version['audio'], version['gain_db']), loudest=30)
  picture = picture.resize((min(picture.width, _WIDEST), 200)).quantize(64)
  tracks = {'pitch': version['f0']} | ({} if version is original else {'before': original['f0']})
  lines = ''.join(f'<path class="{kind}" d="{_path(f0)}"/>' for kind, f0 in tracks.items())
  ticks = ''.join(f'<span>{seconds * i / 4:.1f}{" s" if i == 4 else ""}</span>' for i in range(5))
  said = f'spectrogram of {version["label"]}, 0 to 8 kHz over {seconds:.1f} s; {pitch}'
  return f"""<div class="plot" role="img" aria-label="{said}">
<div class="scale" aria-hidden="true"><span>8 kHz</span><span>4</span><span>0</span></div>
<div class="sound"><img alt="" src="{_png(picture)}">
<svg viewBox="0 0 {seconds:.3f} {HIGHEST_PITCH}" preserveAspectRatio="none" aria-hidden="true">{lines}</svg>
<i class="now" hidden></i></div>
<div class="scale right" aria-hidden="true"><span>{HIGHEST_PITCH} Hz</span><span>{HIGHEST_PITCH // 2}</span>
<span>0</span></div>
<div class="ticks" aria-hidden="true">{ticks}</div>
</div>"""


def _path(f0):
  """SVG path in seconds and Hz of pitch every 5 ms, 0 where unvoiced."""
  voiced = f0 > 0
  moves = np.where(voiced & ~np.append(False, voiced[:-1]), 'M', 'L')
  return ''.join(f'{moves[i]}{i * 0.005:.3f} {HIGHEST_PITCH - f0[i]:.0f}' for i in np.flatnonzero(voiced))


def token_grid(tokens, levels, rates):
  """The tokens as a picture: a strip a stage, a column a frame, a row a digit, the emotion digits on top.

  Args:
    tokens: `Tokens`.
    levels: {block: FSQ levels}, of `block_levels`.
    rates: stages after which a rate ends.
  """
  digits, parts = block_digits(tokens.codes, levels), split_blocks(tokens.codes, levels)
  ends = {m: f'{tokens.truncate(m).kbps:g} kbps' for m in rates}
  strips = []
  for k in range(tokens.shape[1]):
    rows = []
    for block, values in digits.items():
      low, high = (_EMOTION_LOW, _EMOTION_HIGH) if block == 'emotion' else (_LOW, _HIGH)
      share = np.asarray(values)[:, k].T / (np.array(levels[block])[:, None] - 1)  # [digits, frames]
      rows.append(np.repeat(low + share[..., None] * (high - low), 2 if block == 'emotion' else 1, axis=0))
    picture = Image.fromarray(np.concatenate(rows).astype(np.uint8))
    used = ', '.join(f'{len(np.unique(part[:, k]))} {block} codes' for block, part in parts.items())
    end = f'<br>{ends[k + 1]}' if k + 1 in ends else ''
    strips.append(f'<tr{" class=end" if end else ""}><th scope="row">{k + 1}{end}</th>'
                  f'<td><img alt="stage {k + 1}: {used} in use" src="{_png(picture)}"></td></tr>')
  width = f'min({4 * len(tokens)}px, 300rem)'  # so that a frame can be seen
  return f'<table class="tokens" style="min-width: {width}">\n' + '\n'.join(strips) + '\n</table>'


def _example(tokens, levels):
  """A token in the middle, in numbers."""
  frame = len(tokens) // 2
  code = int(tokens.codes[frame, 0])
  parts = {block: int(part) for block, part in split_blocks(code, levels).items()}
  if 'emotion' not in parts:
    return ''
  size = int(np.prod(levels['emotion']))
  return (f'In numbers, frame {frame}, stage 1: token {code} = {size} × {parts["acoustic"]} (acoustic) + '
          f'{parts["emotion"]} (emotion).')


def _readings(versions, network):
  """Rows of a table of probabilities in per cent."""
  head = ''.join(f'<th scope="col">{e}</th>' for e in EMOTIONS)
  rows = ''
  for v in versions:
    first = max(v[network])
    cells = ''.join(f'<td style="background: rgb(var(--heat) / {0.75 * p:.2f})"'
                    f'{" class=first" if p == first else ""}>{100 * p:.0f}</td>' for p in v[network])
    rows += f'<tr><th scope="row">{v["label"]}</th>{cells}</tr>'
  return f'<thead><tr><td></td>{head}</tr></thead><tbody>{rows}</tbody>'


def _first(probabilities):
  return f'{EMOTIONS[int(np.argmax(probabilities))]} {100 * np.max(probabilities):.0f} %'


def _bytes(count):
  return f'{count} bytes' if count < 10000 else f'{count / 1000:.0f} kB'


def _png(picture):
  file = io.BytesIO()
  picture.save(file, format='png', optimize=True)
  return data_url('image/png', file.getvalue())
