"""A small language model of tokens: does a continuation keep the emotion of its prompt?

  python -m affectcodec_jax tokenize SPEECH/manifest.jsonl TOKENS --kbps 1.5
  python -m examples.language_model TOKENS OUT

Trains a causal transformer on the clips whose `split` is train, in the delay pattern: at each step it says
emotion and acoustics of both stages, each of them a frame later than the one before it. Then it continues
test clips from their first 2 s, the codec decodes them, and the judges of the evaluation classify prompt
and continuation. They agree by chance too: so beside agreement stands that of each continuation with the
prompts of other clips, of any speaker and of the same one. Writes OUT/metrics.jsonl, OUT/results.json and
a few clips to play, each the prompt and what the model made of it.
"""

import argparse
import functools
import json
import pathlib
import sys
import time

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from affectcodec_jax import load
from affectcodec_jax.audio import write_audio
from affectcodec_jax.common.errors import UserError, run_command
from affectcodec_jax.common.files import make_folder, write_json
from affectcodec_jax.common.labels import emotion_index
from affectcodec_jax.emotion import judges
from affectcodec_jax.evaluation.statistics import Speakers, text
from affectcodec_jax.tokens import lm
from affectcodec_jax.tokens import shards as token_shards
from examples.read_grain import batches

FRAME_RATE = 50


class LanguageModel(nn.Module):
  """Rows of ids `[batch, rows, columns]` to logits of the next row: a list of `[batch, rows, sizes[k]]`.

  With `decode` it takes one row a call and remembers the earlier ones in its cache.
  """

  vocabulary: lm.Vocabulary
  width: int = 128
  layers: int = 4
  heads: int = 4
  longest: int = 512  # rows

  @nn.compact
  def __call__(self, ids, decode=False):
    at = self.variable('cache', 'at', lambda: jnp.zeros((), jnp.int32)) if decode else None
    places = jnp.arange(ids.shape[1]) + (at.value if decode else 0)
    x = nn.Embed(self.vocabulary.size, self.width)(ids).sum(axis=2)  # [batch, rows, width]
    x = x + nn.Embed(self.longest, self.width)(places)
    mask = None if decode else nn.make_causal_mask(ids[:, :, 0])
    for _ in range(self.layers):
      x = x + nn.MultiHeadDotProductAttention(self.heads, decode=decode)(nn.LayerNorm()(x), mask=mask)
      x = x + nn.Dense(self.width)(nn.gelu(nn.Dense(4 * self.width)(nn.LayerNorm()(x))))
    if decode and not self.is_initializing():
      at.value = at.value + ids.shape[1]
    x = nn.LayerNorm()(x)
    return [nn.Dense(size)(x) for size in self.vocabulary.sizes]


def with_start(ids):
  """A row of bos before `[batch, rows, columns]`."""
  return jnp.pad(ids, ((0, 0), (1, 0), (0, 0)), constant_values=lm.Vocabulary.bos)


def losses(model, params, ids):
  """Mean cross-entropy in nats of each column, `[columns]`, where there is something to say."""
  logits = model.apply({'params': params}, with_start(ids)[:, :-1])
  said = []
  for k, (of_column, offset) in enumerate(zip(logits, model.vocabulary.offsets)):
    known = ids[:, :, k] != lm.Vocabulary.pad
    value = jnp.where(known, ids[:, :, k] - offset, 0)
    nats = optax.softmax_cross_entropy_with_integer_labels(of_column, value)
    said.append(jnp.sum(nats * known) / jnp.maximum(known.sum(), 1))
  return jnp.stack(said)


def train(model, folder, out, args):
  """Trained parameters; a line of OUT/metrics.jsonl every `args.log_every` steps."""
  read = functools.partial(batches, folder, model.vocabulary, args.batch_size, args.frames)
  held_out = [next(valid)[0] for valid in [read('valid', seed=1)] for _ in range(4)]
  params = jax.jit(model.init)(jax.random.PRNGKey(args.seed), held_out[0])['params']
  schedule = optax.warmup_cosine_decay_schedule(0, args.rate, min(50, args.steps // 5), args.steps)
  optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=0.1))

  @functools.partial(jax.jit, donate_argnums=(0, 1))
  def step(params, state, ids):
    total = lambda p: (lambda each: (each.sum(), each))(losses(model, p, ids))
    gradient, each = jax.grad(total, has_aux=True)(params)
    updates, state = optimiser.update(gradient, state, params)
    return optax.apply_updates(params, updates), state, each

  measure = jax.jit(functools.partial(losses, model))
  state, data, start, train_nats = optimiser.init(params), read('train', seed=args.seed), time.time(), []
  (out / 'metrics.jsonl').write_text('')  # of an earlier run: this one begins anew
  for i in range(1, args.steps + 1):
    params, state, each = step(params, state, next(data)[0])
    train_nats.append(each)
    if i % args.log_every == 0 or i == args.steps:
      valid = [measure(params, ids) for ids in held_out]
      line = {'step': i, 'seconds': round(time.time() - start, 1)}
      line |= {name: (np.mean(nats, axis=0) / np.log(2)).round(3).tolist()
               for name, nats in (('bits', train_nats), ('valid_bits', valid))}
      with open(out / 'metrics.jsonl', 'a') as f:
        f.write(json.dumps(line) + '\n')
      print(json.dumps(line), flush=True)
      train_nats = []
  return params


def continue_prompts(model, params, prompts, frames, args):
  """Codes `[clips, frames, stages]` that begin as `prompts` `[clips, prompt frames, stages]` do."""
  vocabulary, columns = model.vocabulary, len(model.vocabulary.sizes)
  rows = np.full((len(prompts), frames + columns - 1, columns), -1, np.int32)  # -1: to be said
  for row, codes in zip(rows, prompts):
    delayed = lm.delay(vocabulary.to_ids(lm.split(codes)), fill=-1)
    row[:len(delayed)] = delayed
  for k in range(columns):
    rows[:, :k, k] = vocabulary.pad  # before a column begins, as in training
    rows[:, frames + k:, k] = vocabulary.pad
  init = functools.partial(model.init, decode=True)
  cache = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype),
                       jax.eval_shape(init, jax.random.PRNGKey(0), rows)['cache'])

  def say(carry, given):
    cache, last, rng = carry
    logits, changed = model.apply({'params': params, 'cache': cache}, last[:, None], decode=True,
                                  mutable=['cache'])
    rng, *keys = jax.random.split(rng, columns + 1)
    said = [vocabulary.offsets[k] + _sample(keys[k], logits[k][:, 0], args) for k in range(columns)]
    row = jnp.where(given < 0, jnp.stack(said, axis=1).astype(jnp.int32), given)
    return (changed['cache'], row, rng), row

  start = jnp.full((len(prompts), columns), vocabulary.bos, jnp.int32)
  _, continued = jax.jit(functools.partial(jax.lax.scan, say))(
      (cache, start, jax.random.PRNGKey(args.seed)), jnp.asarray(rows.swapaxes(0, 1)))
  continued = np.asarray(continued).swapaxes(0, 1)  # [clips, rows, columns]
  return np.stack([lm.join(vocabulary.to_codes(lm.undelay(row))) for row in continued])


def _sample(rng, logits, args):
  """One of the `args.top_k` likeliest values, `[clips]`, from logits `[clips, size]`."""
  best, place = jax.lax.top_k(logits, min(args.top_k, logits.shape[-1]))
  chosen = jax.random.categorical(rng, best / args.temperature)
  return jnp.take_along_axis(place, chosen[:, None], axis=1)[:, 0]


def agreement(clips, prompt, continuation, labels):
  """How often the emotion predicted of a continuation is that of its prompt, and of other prompts.

  Args:
    clips: dicts with `speaker` and `file`.
    prompt, continuation, labels: emotions `[clips]`; those predicted, and the manifest's.

  Returns:
    Means with 95 % intervals over speakers, None where there is no pair: with its prompt (`own`), with
    others' prompts (`any`, and `same_speaker`), own minus each, and with labels.
  """
  speakers, names = Speakers(clips), np.array([c['speaker'] for c in clips])
  hits = continuation[:, None] == prompt[None]  # [continuation, prompt]
  other = ~np.eye(len(clips), dtype=bool)
  same = other & (names[:, None] == names[None])
  with_prompt = np.diag(hits).astype(float)
  chance = {name: np.divide((hits & pairs).sum(1), pairs.sum(1), out=np.full(len(clips), np.nan),
                            where=pairs.any(1)) for name, pairs in (('any', other), ('same_speaker', same))}
  to_labels = (continuation[:, None] == labels[None]) & other
  rates = {'own': with_prompt, **chance,
           **{f'own_minus_{k}': with_prompt - v for k, v in chance.items()},
           'label': (continuation == labels).astype(float), 'label_any': to_labels.sum(1) / other.sum(1),
           'prompt_with_label': (prompt == labels).astype(float)}
  rates['label_minus_any'] = rates['label'] - rates['label_any']
  return {k: speakers.ratio(v) for k, v in rates.items()}


def judge(codec, clips, continued, prompt_frames, out):
  """The results of all judges that are installed, for continued codes `[clips, frames, stages]`."""
  for clip, codes in list(zip(clips, continued))[::max(1, len(clips) // 4)][:4]:
    name = '_'.join(pathlib.Path(clip['path']).with_suffix('.wav').parts[-2:])
    write_audio(out / name, codec.decode(codes))
  classifiers, absent = judges.available()
  for name, why in absent.items():
    print(f'{name}: absent ({why})')
  named = [{'speaker': c['speaker'], 'file': c['path']} for c in clips]
  labels = np.array([emotion_index(c['emotion']) for c in clips])
  long = [i for i, c in enumerate(clips) if len(c['codes']) >= 1.5 * prompt_frames]
  # Each part is decoded by itself: the decoder must not let one leak into the other.
  parts = [codec.decode_batch(list(c)) for c in np.split(continued, [prompt_frames], axis=1)]
  real = [codec.decode(clips[i]['codes'][prompt_frames:continued.shape[1]]) for i in long]  # as it was
  results = {}
  for name, classify in classifiers.items():
    prompt, made = (np.array([classify(audio).argmax() for audio in part]) for part in parts)
    results[name] = {'model': agreement(named, prompt, made, labels)}
    if len(long) > 1:
      truly = np.array([classify(a).argmax() for a in real])
      results[name]['real'] = agreement([named[i] for i in long], prompt[long], truly, labels[long])
  return {'clips': len(clips), 'speakers': len({c['speaker'] for c in clips}), 'long_clips': len(long),
          'judges': results}


def main(argv=None):
  """Entry point; returns the exit status."""
  parser = argparse.ArgumentParser(prog='python -m examples.language_model', description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('tokens', help='folder of python -m affectcodec_jax tokenize')
  parser.add_argument('out', help='folder for the results')
  parser.add_argument('--checkpoint', default='pretrained', help='the codec of these tokens')
  options = {'steps': 400, 'batch-size': 16, 'rate': 3e-3, 'frames': 200, 'log-every': 25, 'clips': 200,
             'prompt-seconds': 2.0, 'seconds': 5.0, 'temperature': 0.9, 'top-k': 100, 'seed': 0}
  for name, default in options.items():
    parser.add_argument(f'--{name}', type=type(default), default=default, help=f'default {default}')
  args = parser.parse_args(argv)
  return run_command(lambda: run(args))


def run(args):
  """Trains, continues and judges."""
  for name, least in {'steps': 1, 'batch_size': 1, 'frames': 1, 'log_every': 1, 'clips': 2, 'top_k': 1,
                      'seed': 0}.items():
    if getattr(args, name) < least:
      raise UserError(f'--{name.replace("_", "-")} must be at least {least}')
  if not (0 < args.rate < 1 and 0 < args.temperature < np.inf):
    raise UserError('--rate must be between 0 and 1, and --temperature above 0')
  if not 1 / FRAME_RATE <= args.prompt_seconds <= args.seconds - 1 / FRAME_RATE:
    raise UserError('--prompt-seconds must be a frame at least, and --seconds longer than that')
  prompt_frames, frames = (round(s * FRAME_RATE) for s in (args.prompt_seconds, args.seconds))
  codec, out = load(args.checkpoint), make_folder(args.out)
  clips = list(token_shards.read_clips(args.tokens))
  for split in {'train', 'valid'} - {c['split'] for c in clips}:
    raise UserError(f'{args.tokens}: no clip of split {split}; make tokens of a manifest with `split`')
  clips = [c for c in clips if c['split'] == 'test' and emotion_index(c['emotion']) >= 0
           and len(c['codes']) >= prompt_frames]
  if len(clips) < 2:
    raise UserError(f'{args.tokens}: fewer than two test clips with an emotion and {prompt_frames} frames')
  if clips[0]['model'] != codec.fingerprint.hex():
    raise UserError(f'{args.tokens}: made by codec {clips[0]["model"]}, this is {codec.fingerprint.hex()}; '
                    'give its --checkpoint')
  clips = [clips[i] for i in np.linspace(0, len(clips) - 1, min(args.clips, len(clips))).astype(int)]
  vocabulary = lm.codes_vocabulary(stages=clips[0]['codes'].shape[1])
  model = LanguageModel(vocabulary, longest=max(args.frames, frames) + len(vocabulary.sizes))
  params = train(model, args.tokens, out, args)
  prompts = np.stack([c['codes'][:prompt_frames] for c in clips])
  continued = continue_prompts(model, params, prompts, frames, args)
  options = {k: v for k, v in vars(args).items() if k not in ('tokens', 'out', 'checkpoint')}
  results = {'codec': codec.fingerprint.hex(), 'options': options,
             'parameters': sum(x.size for x in jax.tree.leaves(params)),
             **judge(codec, clips, continued, prompt_frames, out)}
  write_json(out / 'results.json', results)
  for name, by_kind in results['judges'].items():
    for kind, scores in by_kind.items():
      print(f'{name}, {kind}: ' + '; '.join(
          f'{k} {text(v, ".3f")}' for k, v in scores.items() if v))


if __name__ == '__main__':
  sys.exit(main())
