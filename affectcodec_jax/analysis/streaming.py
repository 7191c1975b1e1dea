"""What streaming and lost frames cost: a codec's streams beside the same clips as wholes.

Clips are brought to the codec's level. Encoders are compared by the share of codes that are not those of
the whole, and by the sound of their codes from the whole's decoder; decoders by their sound from the
whole's codes. Frames are lost independently, the same ones for both ways of filling them. Writes
OUT/quality.json and prints a table, means over clips: mel distance and STOI to the original, and how far
the emotion by the packaged judge is from that of the original (total variation of its posteriors).
Needs requirements-eval.txt.
"""

import numpy as np

from affectcodec_jax.audio import at_codec_level
from affectcodec_jax.common.constants import HOP_LENGTH, SAMPLE_RATE
from affectcodec_jax.common.errors import UserError
from affectcodec_jax.common.evenly import evenly

GAINS = (-12.0, -6.0, 6.0, 12.0)  # dB
ENCODER_LOOKAHEAD = (14, 7, 3)  # frames
DECODER_LOOKAHEAD = (10, 5, 2)
QUICK = {'chunk_frames': 5, 'lookahead': 5}  # of both ends
LOSSES = (0.02, 0.05, 0.1, 0.2)


def score_streams(args):
  """Measures and writes it; `args` are those of the command `analyse streaming`."""
  from affectcodec_jax.api import load
  from affectcodec_jax.common.files import make_folder, write_json
  from affectcodec_jax.data.folder import FolderSource
  if args.limit < 1:
    raise UserError('--limit must be at least 1')
  out, codec, source = make_folder(args.out), load(args.checkpoint), FolderSource(args.data, args.split)
  items = [source[i] for i in evenly(range(len(source)), args.limit)]
  # STOI needs half a second of speech.
  clips = [at_codec_level(i['audio']) for i in items if i is not None and len(i['audio']) >= SAMPLE_RATE]
  if not clips:
    raise UserError(f'{args.data}: no file of split {args.split} is a second long')
  results = {'step': codec.step, 'fingerprint': codec.fingerprint.hex(), 'kbps': args.kbps,
             'files': len(clips), 'seconds': round(sum(map(len, clips)) / SAMPLE_RATE, 1),
             'rows': measure(codec, clips, args.kbps)}
  write_json(out / 'quality.json', results)
  print(f'{results["files"]} files, {results["seconds"]} s, {args.kbps:g} kbps\n'
        f'{"":44}{"latency":>9}{"differ":>9}{"1st s":>9}{"mel":>9}{"STOI":>9}{"emotion":>9}')
  for row in results['rows']:
    cells = (f'{1000 * row["latency"]:.0f} ms' if 'latency' in row else '',
             *(f'{row[k]:.1%}' if k in row else '' for k in ('differ', 'differ_first_second')),
             *(f'{row[k]:.3f}' for k in ('mel', 'stoi', 'emotion')))
    print(f'{row["name"]:44}' + ''.join(f'{c:>9}' for c in cells))


def measure(codec, clips, kbps):
  """Rows of every way to stream, the first of them for the wholes.

  Args:
    codec: a `Pretrained`.
    clips: list of `[samples]` at the codec's level.
    kbps: rate.

  Returns:
    List of dicts: `name`, `mel`, `stoi`, `emotion`; of encoders `differ`, the share of codes that are not
    the whole's, and the same of the first second; of both `latency` in seconds.
  """
  from affectcodec_jax.evaluation.metrics import METRICS
  spectral, stoi, judge = (METRICS[name].make() for name in ('spectral', 'stoi', 'network'))

  def posterior(audio):
    return np.asarray(judge(None, audio, None)['network'])

  wholes = [np.asarray(codec.encode(a, SAMPLE_RATE, kbps)) for a in clips]
  of_originals = [posterior(a) for a in clips]

  def row(name, decoded, **facts):
    scores = []
    for a, d, h in zip(clips, decoded, of_originals):
      d = d[:len(a)]
      scores.append((spectral(a, d, None)['mel'], stoi(a, d, None)['stoi'],
                     0.5 * np.abs(posterior(d) - h).sum()))
    means = (round(float(x), 4) for x in np.mean(scores, axis=0))
    return {'name': name} | dict(zip(('mel', 'stoi', 'emotion'), means)) | facts

  def encoded(name, encoders, decode=codec.decode, delay=0.0, gain_db=0.0):
    gain = np.float32(10 ** (gain_db / 20))
    codes = [np.concatenate([e.push(gain * a), e.flush()]) for e, a in zip(encoders, clips)]
    differ = [c != w for c, w in zip(codes, wholes)]
    return row(name, [decode(c) / gain for c in codes], latency=encoders[0].latency + delay,
               differ=float(np.mean(np.concatenate(differ))),
               differ_first_second=float(np.mean(np.concatenate([d[:50] for d in differ]))))

  def through(decoder):
    return lambda codes: np.concatenate([decoder.push(codes), decoder.flush()])

  def decoded(name, decoder, lost=None):
    lost = lost or [np.zeros(len(w), bool) for w in wholes]
    audio = [through(decoder)(np.where(x[:, None], -1, w)) for w, x in zip(wholes, lost)]
    return row(name, audio, latency=decoder.latency)

  def same(encoder):
    return [encoder] * len(clips)

  offline = [codec.decode(w) for w in wholes]
  rows = [row('whole', offline)]
  embeddings = [codec.utterance_embedding(a, SAMPLE_RATE) for a in clips]
  rows.append(encoded('encoder, embedding of the whole',
                      [codec.stream_encoder(kbps, utterance=e) for e in embeddings]))
  encoder, decoder = codec.stream_encoder(kbps), codec.stream_decoder(kbps)
  rows.append(encoded('encoder, running embedding', same(encoder)))
  rows += [encoded(f'  {gain:+g} dB off the level', same(encoder), gain_db=gain) for gain in GAINS]
  rows += [encoded(f'  lookahead of {n} frames', same(codec.stream_encoder(kbps, lookahead=n)))
           for n in ENCODER_LOOKAHEAD]
  rows.append(decoded('decoder', decoder))
  rows += [decoded(f'  lookahead of {n} frames', codec.stream_decoder(kbps, lookahead=n))
           for n in DECODER_LOOKAHEAD]
  quick = codec.stream_decoder(kbps, **QUICK)
  rows.append(encoded('both, chunk and lookahead of 5 frames', same(codec.stream_encoder(kbps, **QUICK)),
                      through(quick), quick.latency))
  for share in LOSSES:
    rng = np.random.default_rng(0)
    lost = [rng.random(len(w)) < share for w in wholes]
    rows.append(decoded(f'{share:.0%} of frames lost, concealed', decoder, lost))
    silenced = [a * np.repeat(~x, HOP_LENGTH) for a, x in zip(offline, lost)]
    rows.append(row(f'{share:.0%} of frames lost, zeros in their place', silenced))
  return rows
