"""Released codecs by 'org/name', against a local endpoint that speaks as the Hugging Face Hub does."""

import hashlib
import http.server
import json
import os
import pathlib
import subprocess
import sys
import threading

import pytest

from affectcodec_jax import load
from affectcodec_jax.common.errors import UserError
from affectcodec_jax.inference import hub
from configs import base
from tests.conftest import tiny, untrained_release

ROOT = pathlib.Path(__file__).parents[1]
COMMIT = 'c0' * 20
FETCH = 'import sys; from affectcodec_jax.inference import hub; print(hub.fetch(sys.argv[1]))'


@pytest.fixture(scope='module')
def released(tmp_path_factory):
  """A released folder of an untrained codec, with a file that nobody has to fetch."""
  folder = tmp_path_factory.mktemp('org-name')
  untrained_release(tiny(base.get_config()), folder)
  (folder / 'samples.zip').write_bytes(b'not needed')
  return folder


@pytest.fixture
def endpoint(released):
  """(address, stop, names of the files that were fetched) of a server that has `released` as org/name."""
  fetched, files = [], {p.name: p.read_bytes() for p in released.iterdir()}

  class Hub(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
      path = self.path.split('?')[0]
      listed = [{'type': 'file', 'path': n, 'size': len(d), 'oid': hashlib.sha1(d).hexdigest()}
                for n, d in files.items()]
      if path.startswith('/api/models/org/name/tree/'):
        self.answer(json.dumps(listed).encode())
      elif path.startswith('/api/models/org/name'):
        about = {'id': 'org/name', 'sha': COMMIT, 'siblings': [{'rfilename': n} for n in files]}
        self.answer(json.dumps(about).encode())
      elif path.startswith(f'/org/name/resolve/{COMMIT}/'):
        name = path.rpartition('/')[2]
        if self.command == 'GET':
          fetched.append(name)
        digest = hashlib.sha1(files[name]).hexdigest()
        self.answer(files[name], **{'ETag': f'"{digest}"', 'X-Repo-Commit': COMMIT})
      else:
        self.send_response(404)
        self.send_header('X-Error-Code', 'RepoNotFound')
        self.end_headers()

    do_HEAD = do_GET

    def answer(self, data, **headers):
      self.send_response(200)
      for name, value in headers.items() | {('Content-Length', str(len(data)))}:
        self.send_header(name, value)
      self.end_headers()
      if self.command == 'GET':
        self.wfile.write(data)

    def log_message(self, *args):
      pass

  server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Hub)
  threading.Thread(target=server.serve_forever, daemon=True).start()

  def stop():
    server.shutdown()
    server.server_close()

  yield f'http://127.0.0.1:{server.server_port}', stop, fetched
  stop()


def fetch(name, address, home):
  """`hub.fetch` in a process of its own: the address is read when huggingface_hub is imported."""
  environment = os.environ | {'HF_ENDPOINT': address, 'HF_HOME': str(home), 'HF_HUB_DISABLE_TELEMETRY': '1',
                              'HF_HUB_DISABLE_XET': '1', 'NO_PROXY': '127.0.0.1', 'PYTHONPATH': str(ROOT)}
  environment.pop('HF_HUB_OFFLINE', None)
  command = [sys.executable, '-c', FETCH, name]
  return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_a_codec_is_fetched_once_and_checked(released, endpoint, tmp_path):
  """The same codec as in the folder; without the server from what was kept; refused when it was changed."""
  pytest.importorskip('huggingface_hub')
  address, stop, fetched = endpoint
  done = fetch('org/name', address, tmp_path)
  assert done.returncode == 0, done.stderr
  folder = pathlib.Path(done.stdout.strip())
  assert folder.is_relative_to(tmp_path)
  assert sorted(fetched) == ['codec.json', 'codec.safetensors', 'teacher.safetensors']
  assert load(folder).fingerprint == load(released).fingerprint
  unknown = fetch('org/other', address, tmp_path)
  assert unknown.returncode == 1 and 'UserError: org/other: no such folder here' in unknown.stderr
  stop()
  again = fetch('org/name', address, tmp_path)
  assert again.returncode == 0 and again.stdout == done.stdout and len(fetched) == 3
  weights = (folder / 'codec.safetensors').resolve()
  data = bytearray(weights.read_bytes())
  data[-2] ^= 1
  weights.write_bytes(data)
  with pytest.raises(UserError, match='not those that were released'):
    load(folder)


def test_load_asks_the_hub_for_names_alone(released, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'runs').mkdir()
  asked = []
  monkeypatch.setattr(hub, 'fetch', lambda name: asked.append(name) or released)
  assert load('org/name').fingerprint == load(released).fingerprint and asked == ['org/name']
  for path in ('runs/none', 'none', '/org/name', './org/name', 'a/b/c', 'org/na me', '../org'):
    with pytest.raises(UserError, match='no such folder; give the workdir'):
      load(path)
  assert asked == ['org/name']


def test_without_the_package_or_a_codec_there_is_one_clear_line(tmp_path, monkeypatch):
  class Package:
    @staticmethod
    def snapshot_download(name, allow_patterns):
      return str(tmp_path)

  monkeypatch.setitem(sys.modules, 'huggingface_hub', Package)
  with pytest.raises(UserError, match='org/name: that repository holds no released codec'):
    hub.fetch('org/name')
  monkeypatch.setitem(sys.modules, 'huggingface_hub', None)  # as if it were not installed
  with pytest.raises(UserError, match='org/name: no such folder.*pip install huggingface_hub') as e:
    hub.fetch('org/name')
  assert '\n' not in str(e.value)
