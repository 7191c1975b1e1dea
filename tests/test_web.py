"""The browser page, end to end in headless Chromium, where it is built: docs/browser.md says how."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from affectcodec_jax.common import packaged
from affectcodec_jax.inference import release

WEB = pathlib.Path(__file__).parent.parent / 'web'
CARD = WEB / 'dist' / 'model' / 'export.json'
CHROMIUM = os.environ.get('CHROMIUM', '/usr/bin/chromium')


def unready():
  """What is missing, or None."""
  if not (shutil.which('npm') and os.path.exists(CHROMIUM) and (WEB / 'node_modules').is_dir()):
    return 'needs npm, Chromium and npm ci in web/'
  if not CARD.exists():
    return 'web/dist is not built'
  released = packaged.FOLDER / release.CONFIG
  if not released.exists() or json.loads(CARD.read_text())['fingerprint'] != json.loads(
      released.read_text())['fingerprint']:
    return 'web/dist has another model than the package; export and build it again'
  return None


@pytest.mark.skipif(unready() is not None, reason=str(unready()))
def test_the_page_is_the_codec():
  """web/test/page.test.js holds the checks; its output is the message where one fails."""
  environment = {**os.environ, 'PYTHON': sys.executable, 'CHROMIUM': CHROMIUM}
  done = subprocess.run(['npm', 'test'], cwd=WEB, env=environment, capture_output=True, text=True)
  assert done.returncode == 0, done.stdout + done.stderr
