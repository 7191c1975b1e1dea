"""The page of one recording: what it plays, shows and says is what the codec makes."""

import base64
import io
import os
import pathlib
import re
import webbrowser

import numpy as np
from PIL import Image
import pytest
import soundfile

from affectcodec_jax import __main__ as cli
from affectcodec_jax import load
from affectcodec_jax.audio import read_audio
from affectcodec_jax.data.synthetic import SyntheticSource
from affectcodec_jax.evaluation import listen
from affectcodec_jax.models.blocks import block_levels
from affectcodec_jax.tokens import afc
from configs import base
from tests.conftest import tiny, untrained_release


@pytest.fixture(scope='module')
def made(tmp_path_factory):
  """(codec, first 1.2 s of a recording, its tokens and their sound at three rates, the page)."""
  folder = tmp_path_factory.mktemp('listen')
  untrained_release(tiny(base.get_config()), folder)
  path, page = folder / 'a <b> & c.wav', folder / 'page.html'
  soundfile.write(path, 0.3 * SyntheticSource(2, seed=0)[0]['audio'][:32000], 16000)
  codec = load(folder)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr('affectcodec_jax.cli.codec.load', lambda checkpoint: codec)  # one codec, compiled once
    assert cli.main(['listen', str(path), '-o', str(page), '--seconds', '1.2', '--no-open']) == 0
  audio = read_audio(path)[:19200]
  tokens = [codec.encode(audio, 16000, kbps) for kbps in (0.75, 1.5, 2.25)]  # of 1, 2 and 3 stages
  return codec, audio, tokens, [codec.decode(t) for t in tokens], page.read_text()


def embedded(page, kind):
  return [base64.b64decode(x) for x in re.findall(rf'src="data:{kind};base64,([^"]*)"', page)]


def test_each_rate_is_played_and_sized_as_encode_and_decode_make_it(made):
  """FLAC of 16 bits: half a step of rounding. Levels come back, so they are compared as they are."""
  _, audio, tokens, decoded, page = made
  sounds = [soundfile.read(io.BytesIO(x))[0] for x in embedded(page, 'audio/flac')]
  for t in tokens:
    assert f'>{t.kbps:g} kbps</h2>\n<p class="soft">{len(afc.pack(t))} bytes' in page
  assert len(sounds) == 4
  for sound, expected in zip(sounds, [audio, *decoded]):
    np.testing.assert_allclose(sound, np.clip(expected, -1, 1), atol=1.01 / 32768)


def test_the_page_is_whole_and_has_names_for_everything(made):
  page = made[-1]
  outside = {u for u in re.findall(r'(?:src|href)="([^"]{0,40})', page) if not u.startswith('data:')}
  assert not outside and '@import' not in page and 'url(' not in page
  assert '<h1>a &lt;b&gt; &amp; c.wav</h1>' in page and 'The first 1 s of 2 s.' in page
  for tag in ('audio', 'section', 'div class="plot"', 'div class="card scroll"'):
    opened = re.findall(rf'<{tag}[^>]*>', page)
    assert opened and all('aria-label="' in t for t in opened)
  assert all('alt="' in t for t in re.findall('<img[^>]*>', page))
  assert page.count('scope="col">neutral') == 2  # teacher and judge
  rows = [re.findall(r'>(\d+)</td>', row) for row in re.findall(r'<tr><th scope="row">.*?</tr>', page)]
  read = [list(map(int, row)) for row in rows if len(row) == 8]
  assert len(read) == 2 * 4 and all(abs(sum(row) - 100) <= 4 for row in read)  # each rounded


def test_the_grid_shows_emotion_digits_in_orange_and_acoustic_ones_in_blue(made):
  """Bits of the codes by arithmetic of their own: the low 3, then 6 times 2."""
  codec, _, (*_, tokens), _, page = made
  levels = block_levels(codec.config.model)
  assert levels == {'emotion': (2, 2, 2), 'acoustic': (4,) * 6}
  strips = [np.asarray(Image.open(io.BytesIO(x)).convert('RGB')).astype(int)
            for x in embedded(listen.token_grid(tokens, levels, (1, 2, 3)), 'image/png')]
  assert len(strips) == 3
  for strip, codes in zip(strips, tokens.codes.T):
    assert strip.shape == (3 * 2 + 6, len(codes), 3)
    red, blue = strip[..., 0], strip[..., 2]
    assert (red[:6] > blue[:6]).all() and (red[6:] < blue[6:]).all()
    for digit in range(3):
      shown = red[2 * digit] > 180
      np.testing.assert_array_equal(shown, (codes >> digit) & 1)
    for digit in range(6):
      shades = np.searchsorted(np.unique([38, 74, 111, 148]), red[6 + digit] - 1)
      np.testing.assert_array_equal(shades, (codes >> (3 + 2 * digit)) & 3)
  assert page.count('alt="stage ') == 3


def test_pitch_is_drawn_where_there_is_voice():
  track = np.array([0, 100, 110, 0, 0, 300.0])
  assert listen._path(track) == 'M0.005 500L0.010 490M0.025 300'
  assert listen._path(np.zeros(4)) == ''


def test_silence_and_the_shortest_recording_have_a_page(made, monkeypatch):
  """Without the networks, which see six seconds in any case."""
  codec = made[0]
  for name in ('packaged_teacher', 'network_judge'):
    monkeypatch.setattr(listen.judges, name, lambda: lambda audio: np.full(8, 0.125))
  for audio in (np.zeros(16000, np.float32), np.full(320, 0.1, np.float32)):
    assert 'no pitch found' in listen.make_page(codec, audio, 'x')


def test_the_browser_opens_where_there_is_a_screen(made, tmp_path, monkeypatch):
  from affectcodec_jax.cli import codec as commands
  opened = []
  monkeypatch.setattr(webbrowser, 'open', opened.append)
  monkeypatch.setattr('sys.platform', 'linux')
  for name in ('DISPLAY', 'WAYLAND_DISPLAY', 'BROWSER'):
    monkeypatch.delenv(name, raising=False)
  commands._open_page(tmp_path / 'a b.html')
  assert not opened
  monkeypatch.setenv('DISPLAY', ':0')
  commands._open_page(tmp_path / 'a b.html')
  assert opened == [(tmp_path / 'a b.html').as_uri()]


def test_a_name_that_is_not_utf8(made, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  soundfile.write('a.wav', np.zeros(8000), 16000)
  name = b'caf\xe9.wav'
  os.rename('a.wav', name)
  monkeypatch.setattr('affectcodec_jax.cli.codec.load', lambda checkpoint: made[0])
  monkeypatch.setattr(listen, 'make_page', lambda codec, audio, name, seconds: f'<h1>{name}</h1>')
  assert cli.main(['listen', os.fsdecode(name), '-o', 'page.html', '--no-open']) == 0
  assert pathlib.Path('page.html').read_text('utf-8') == '<h1>caf?.wav</h1>'


def test_mistakes_get_one_line(tmp_path, capsys, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'text.wav').write_text('not audio')
  for words, message in ((['none.wav'], 'no such file'), (['text.wav'], 'not a readable audio file'),
                         (['text.wav', '-o', 'text.wav'], 'same file'),
                         (['text.wav', '--seconds', '0'], '--seconds 0'),
                         (['text.wav', '-o', 'no/x.html'], 'no such folder')):
    assert cli.main(['listen', *words, '--no-open']) == 2
    err = capsys.readouterr().err
    assert err.startswith('error: ') and err.count('\n') == 1 and message in err
