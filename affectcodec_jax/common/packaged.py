"""Where the files lie that the package carries; affectcodec_jax/pretrained/README.md says what they are."""

import pathlib

FOLDER = pathlib.Path(__file__).parents[1] / 'pretrained'
TEACHER = FOLDER / 'teacher.safetensors'
JUDGE = FOLDER / 'judge.safetensors'
TOKEN_EMOTION = FOLDER / 'token_emotion.safetensors'
