"""Speech and what the package makes of it, for the page's test: `python reference.py FOLDER`."""

import pathlib
import sys

import numpy as np
import soundfile

from affectcodec_jax import api
from affectcodec_jax.audio import read_audio, resample, write_audio
from affectcodec_jax.common.constants import SAMPLE_RATE
from affectcodec_jax.data.synthetic import SyntheticSource
from affectcodec_jax.tokens.afc import Tokens, write_tokens

SECONDS = 5


def main(folder):
  clips = SyntheticSource(4)
  speech = np.concatenate([clips[i]['audio'] for i in range(4)])[:SECONDS * SAMPLE_RATE - 123]
  folder = pathlib.Path(folder)
  write_audio(folder / 'speech.wav', speech)
  stereo = resample(speech, SAMPLE_RATE, 44100)
  soundfile.write(folder / 'stereo.flac', np.stack([stereo, stereo / 2], axis=1), 44100)
  codec = api.load()
  speech = read_audio(folder / 'speech.wav')
  for m in (1, *codec.config.rates):
    tokens = codec.encode(speech, SAMPLE_RATE, codec.stage_kbps * m)
    write_tokens(folder / f'{m}.afc', tokens)
    write_audio(folder / f'{m}.wav', codec.decode(tokens))
  frames = 6001  # two minutes and a frame
  write_tokens(folder / 'long.afc', Tokens(
      np.zeros((frames, 1), np.int32), frames * codec.hop_length, 0.0, codec.fingerprint))


if __name__ == '__main__':
  main(sys.argv[1])
