"""Where a source-filter codec loses its sound: in rounding, in its networks, or in its source and filters.

The beginnings of the same clips, five ways: decoded from the quantiser's codes; decoded from what it would
have rounded, with the same networks; decoded from codes that a search finds (`inference.refine`): what the
encoder loses is found again; with what the decoder controls, gains or phases of the filters or both, fitted
to each clip by the mel loss that trains the codec, at the pitch the codec decodes. Noise is drawn anew in
every step of the fit, so that no filter learns one drawing of it. This is far more than any network can
know from tokens: it is a bound of what source and filters can say. And analysed and made again by WORLD
(Morise et al. 2016), which codes nothing: what pulses and noise with smooth filters reach.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from affectcodec_jax import losses
from affectcodec_jax.audio import at_codec_level
from affectcodec_jax.common.constants import HOP_LENGTH, SAMPLE_RATE
from affectcodec_jax.common.errors import UserError
from affectcodec_jax.emotion.teachers import encoder_features
from affectcodec_jax.inference.refine import make_refine
from affectcodec_jax.models import source_filter
from affectcodec_jax.models.codec import Codec, make_codec
from affectcodec_jax.models.context import decoder_context

LEARNING_RATE = 0.03  # of the fit, falling to 0 by a cosine
REFINE_STEPS = 20
FITS = {'gains fitted': ('harmonic', 'noise'), 'phases fitted': ('phase',),
        'gains and phases fitted': ('harmonic', 'noise', 'phase')}
WORLD = 'WORLD, nothing coded'
METRICS_OF_SOUND = ('spectral', 'pesq', 'stoi', 'visqol')
COLUMNS = ('mel', 'pesq', 'estoi', 'visqol')


def score_renderer(args):
  """Measures and writes it; `args` are those of the command `analyse renderer`."""
  from affectcodec_jax.analysis.codes import read_items
  from affectcodec_jax.api import load
  from affectcodec_jax.common.files import make_folder, write_json
  if args.limit < 1 or args.steps < 1 or not 1 <= args.seconds <= 20:
    raise UserError('--limit and --steps must be at least 1, --seconds 1 to 20')
  out, codec = make_folder(args.out), load(args.checkpoint)
  if codec.config.model.backbone != 'lite':
    raise UserError(f'{args.checkpoint}: a codec of the {codec.config.model.backbone} backbone; '
                    'only lite has a source and filters')
  samples = int(args.seconds * SAMPLE_RATE) // HOP_LENGTH * HOP_LENGTH
  clips = [at_codec_level(item['audio'])[:samples] for item in read_items(args.data, args.split, args.limit)
           if len(item['audio']) >= samples]
  if not clips:
    raise UserError(f'{args.data}: no file of split {args.split} lasts {args.seconds:g} s; '
                    'give fewer --seconds')
  audio = np.stack(clips).astype(np.float32)
  results = {'step': codec.step, 'fingerprint': codec.fingerprint.hex(), 'files': len(clips),
             'seconds': samples / SAMPLE_RATE, 'refine_steps': REFINE_STEPS, 'fit_steps': args.steps,
             'rows': measure(codec, audio, args.steps)}
  write_json(out / 'renderer.json', results)
  print(f'{len(clips)} files of {samples / SAMPLE_RATE:g} s\n{"":28}' + ''.join(f'{c:>9}' for c in COLUMNS))
  for row in results['rows']:
    print(f'{row["name"]:28}' + ''.join(f'{row[c]:9.3f}' if c in row else f'{"":9}' for c in COLUMNS))


def measure(codec, audio, steps):
  """Rows {'name', 'mel', 'pesq', 'estoi', 'visqol'}, means over clips; what is not installed is left out.

  Args:
    codec: a `Pretrained` of the lite backbone.
    audio: `[clips, samples]` at the codec's level, a multiple of 320 samples.
    steps: of the fit.
  """
  metrics = make_metrics()

  def row(name, decoded):
    scores = [{k: v for m in metrics for k, v in m(a, d, None).items()} for a, d in zip(audio, decoded)]
    return {'name': name} | {c: round(float(np.mean([s[c] for s in scores])), 4)
                             for c in COLUMNS if c in scores[0]}

  config, net = codec.config, make_codec(codec.config)
  run = jax.jit(lambda method, *args: net.apply({'params': codec.params}, *args, method=method),
                static_argnums=0)
  features = encoder_features(config, codec.frozen, jnp.asarray(audio))
  u = run(Codec.analyse, audio, features, np.ones(features.shape[:2], bool))
  values = {name: run(Codec.quantize, u, rounding).values
            for name, rounding in (('rounded', 1.0), ('not rounded', 0.0))}
  refine, context = make_refine(config), decoder_context(config.model)
  beyond = jnp.pad(u, ((0, 0), (context, context), (0, 0)), mode='edge')
  first, last = (np.full(len(audio), n, np.int32) for n in (context, context + u.shape[1] - 1))
  rows = []
  for stages in config.rates:
    for name, of_stages in values.items():
      decoded = run(Codec.synthesise, run(Codec.latent, of_stages[:stages]))
      rows.append(row(f'{stages} stages, {name}', np.asarray(decoded)))
    codes = refine(codec.params, beyond, jnp.asarray(audio), first, last, REFINE_STEPS, stages)
    decoded = run(Codec.synthesise, run(Codec.lookup, codes))
    rows.append(row(f'{stages} stages, refined', np.asarray(decoded)))
  controls = run(Codec.controls, run(Codec.latent, values['rounded']))
  for name, fields in FITS.items():
    rows.append(row(name, fit(controls, fields, audio, losses.mel_floor(config), steps)))
  rows.append(row(WORLD, np.stack([world_copy(a) for a in audio])))
  return rows


def make_metrics():
  """Functions as `evaluation.metrics` has them, of the packages that are installed."""
  from affectcodec_jax.evaluation.metrics import METRICS
  made = []
  for name in METRICS_OF_SOUND:
    try:
      made.append(METRICS[name].make())
    except UserError:
      pass
  return made


def world_copy(audio):
  """`[samples]` as WORLD makes it of its own pitch, envelopes and aperiodicities, every 5 ms."""
  from affectcodec_jax.data.pitch import pyworld as world
  x = np.asarray(audio, np.float64)
  f0, at = world.harvest(x, SAMPLE_RATE)
  f0 = world.stonemask(x, f0, at, SAMPLE_RATE)
  envelope, aperiodicity = world.cheaptrick(x, f0, at, SAMPLE_RATE), world.d4c(x, f0, at, SAMPLE_RATE)
  made = world.synthesize(f0, envelope, aperiodicity, SAMPLE_RATE)[:len(x)]
  return np.pad(made, (0, len(x) - len(made))).astype(np.float32)


def fit(controls, fields, audio, floor, steps):
  """Audio `[clips, samples]` of `Controls` of which these fields are fitted to `audio` by the mel loss."""
  source = source_filter.beginning(source_filter.predicted_increments(controls.pitch))
  targets = losses.mel_targets(jnp.asarray(audio), floor)
  optimizer = optax.adam(optax.cosine_decay_schedule(LEARNING_RATE, steps))

  def loss(free, position):
    decoded = source_filter.render(controls._replace(**free), source._replace(position=position))
    return losses.mel_distance(losses.mel_targets(decoded, floor), targets).mean()

  @jax.jit
  def step(free, state, rng):
    position = jax.random.randint(rng, (len(audio),), 0, 2 ** 30)  # other noise, the same pulses
    updates, state = optimizer.update(jax.grad(loss)(free, position), state)
    return optax.apply_updates(free, updates), state

  free = {name: getattr(controls, name) for name in fields}
  state, rng = optimizer.init(free), jax.random.key(0)
  for i in range(steps):
    free, state = step(free, state, jax.random.fold_in(rng, i))
  return np.asarray(jax.jit(source_filter.render)(controls._replace(**free), source))
