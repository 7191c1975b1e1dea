"""Trains the network judge on labelled speech; see `emotion.judge`.

Writes WORKDIR/judge.safetensors, WORKDIR/metrics.jsonl, and WORKDIR/results.json with the accuracy on
the held-out split and, where there is one, on the test split.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from affectcodec_jax import config as config_lib
from affectcodec_jax.common.files import write_json
from affectcodec_jax.config import crop_samples
from affectcodec_jax.data import pipeline
from affectcodec_jax.emotion.accuracy import labelled, score
from affectcodec_jax.emotion.judge import Judge
from affectcodec_jax.emotion.judges import network_judge
from affectcodec_jax.training.fit import FIT_FIELDS, crops, open_workdir, save_network, train_network
from affectcodec_jax.training.labelled import check_labels, cross_entropy, held_out_splits, report

# What is needed of a configuration.
FIELDS = {'data': config_lib.FIELDS['data'], 'train': (*FIT_FIELDS, 'label_smoothing')}


def colour(audio, rng):
  """White noise 10 to 50 dB below each clip and a random tilt, on `[batch, samples]`.

  No codec-like distortion: a judge that had learnt from it would forgive what codecs do.
  """
  noise_rng, snr_rng, tilt_rng = jax.random.split(rng, 3)
  shape = (len(audio), 1)
  level = jnp.sqrt(jnp.mean(audio ** 2, axis=1, keepdims=True))
  snr = jax.random.uniform(snr_rng, shape, minval=10.0, maxval=50.0)
  tilt = jax.random.uniform(tilt_rng, shape, minval=-0.4, maxval=0.4)
  noise = jax.random.normal(noise_rng, audio.shape) * level * 10 ** (-snr / 20)
  return audio + noise + tilt * jnp.pad(audio, ((0, 0), (1, 0)))[:, :-1]


def judge_loss(params, batch, rng, smoothing):
  """Cross-entropy over the clips of a batch that have a label."""
  logits = Judge().apply({'params': params}, colour(batch['audio'], rng))
  return cross_entropy(logits, batch['emotion'], smoothing)


def train_judge(config, workdir):
  """Trains, evaluates and writes the judge that `config` describes."""
  source = pipeline.make_source(config.data, config.data.train_split, config.seed)
  held_out = held_out_splits(config)
  check_labels({config.data.train_split: source} | held_out)
  workdir = open_workdir(workdir)
  loss_fn = functools.partial(judge_loss, smoothing=config.train.label_smoothing)
  iterator = crops(config, source, crop_samples(config))
  params = train_network(config, workdir, Judge(), loss_fn, iterator)
  path = workdir / 'judge.safetensors'
  save_network(path, params)
  judge = network_judge(path)  # as it was written, in float16
  results = {'parameters': sum(x.size for x in jax.tree.leaves(params))}
  for split, items in held_out.items():
    items = labelled(items)
    results[split] = score(items, np.array([judge(item['audio']).argmax() for item in items]))
    report(split, results[split])
  write_json(workdir / 'results.json', results)
  print(f'judge: {path}')
