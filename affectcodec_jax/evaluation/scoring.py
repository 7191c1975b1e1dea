"""Runs systems over files and keeps every score by content, so that nothing is measured twice.

One JSON file holds what is known of one clip through one system at one rate. Its name is a hash of the
clip's samples, its words and the system's version; within it, scores carry the version of what measured
them. A run that is stopped goes on where it was, a new metric is added to the old ones, and peers that were
scored once serve every checkpoint.
"""

import collections
import functools
import hashlib
import json
import math
import pathlib
import warnings

from affectcodec_jax import __version__
from affectcodec_jax.audio import at_codec_level
from affectcodec_jax.common import workers
from affectcodec_jax.common.constants import SAMPLE_RATE
from affectcodec_jax.common.errors import UserError, describe
from affectcodec_jax.common.files import write_whole
from affectcodec_jax.evaluation.metrics import METRICS, memoize_last
from affectcodec_jax.evaluation.peers import make_peers
from affectcodec_jax.evaluation.systems import System

ORIGINAL = System('original', 0.0, lambda audio: (audio, 16 * len(audio)), '1')


def codec_systems(codec, refine=0):
  """The codec under test at each of its rates. A clip is encoded once, and decoded from prefixes.

  With `refine` it is encoded for every rate, by so many steps of a search (`Pretrained.encode`).
  """
  encode = memoize_last(lambda audio: codec.encode(audio, SAMPLE_RATE))

  def run(audio, kbps):
    tokens = codec.encode(audio, SAMPLE_RATE, kbps, refine) if refine else encode(audio)
    codes = tokens.codes[:, :codec.num_stages(kbps)]
    bits = codes.size * tokens.bits_per_code
    return codec.decode(tokens, kbps), bits, codes.tolist()

  version = f'{codec.fingerprint.hex()} affectcodec_jax {__version__}'  # the decoder is code too
  version += f' refine {refine}' if refine else ''
  return [System('affectcodec', kbps, functools.partial(run, kbps=kbps), version)
          for kbps in (codec.stage_kbps * stages for stages in codec.config.rates)]


def make_systems(checkpoint, peers, refine=0):
  """The original, the codec of a checkpoint ('none' for none), as `codec_systems` has it, and its peers.

  Returns:
    (systems, the codec or None, {peer: why it is absent}).

  Raises:
    UserError: no such checkpoint, or two systems of one name.
  """
  codec = None
  if checkpoint != 'none':
    from affectcodec_jax.api import load
    codec = load(checkpoint)
  others, absent = make_peers(peers)
  systems = [ORIGINAL, *(codec_systems(codec, refine) if codec else ()), *others]
  for label, count in collections.Counter(s.label for s in systems).items():
    if count > 1:
      raise UserError(f"--peers: {count} systems would be called '{label}'; rename a folder, or score them "
                      'one after the other')
  return systems, codec, absent


class Scorer:
  """Scores clips.

  Args:
    systems: what to run.
    metrics: {name: (maker, version)}; a maker is called when it is first needed.
    cache: folder of what is known.
  """

  def __init__(self, systems, metrics, cache):
    self.systems, self._versions, self._cache = systems, {k: v for k, (_, v) in metrics.items()}, cache
    self._makers, self._made = {k: m for k, (m, _) in metrics.items()}, {}

  def __call__(self, item):
    """Records of one item of a source, {label of system: {'bits', 'scores', 'problems', …}}."""
    audio = at_codec_level(item['audio'])  # peers are made for that level, and scores depend on it
    return {system.label: self._record(system, audio, item) for system in self.systems}

  def _record(self, system, audio, item):
    path = self._path(system, audio, item)
    record = _read(path)
    missing = [name for name, v in self._versions.items() if record['versions'].get(name) != v]
    if missing or record['bits'] is None:
      measures = {name: self._metric(name) for name in missing}
      try:
        decoded, record['bits'], *codes = system.run(audio)
      except Exception as e:  # programs and networks of others fail in ways of their own too
        return self._asked(record) | {'problems': {'decoding': describe(e)}}
      record |= {'codes': codes[0]} if codes else {}
      for name, measure in measures.items():
        record['problems'].pop(name, None)
        try:
          record['scores'][name] = measure(audio, decoded, item)
        except Exception as e:  # metric packages refuse clips in ways of their own; the others go on
          record['scores'].pop(name, None)
          record['problems'][name] = describe(e)
          if isinstance(e, (MemoryError, OSError)):
            continue  # of the machine, not of the clip: the next run tries again
        record['versions'][name] = self._versions[name]
      write_whole(path, json.dumps(record).encode())
    return self._asked(record)

  def _asked(self, record):
    """The record without what was measured at other times, by other metrics or other versions of these."""
    current = {k for k, v in self._versions.items() if record['versions'].get(k) == v}
    return record | {'scores': {k: _finite(v) for k, v in record['scores'].items() if k in current},
                     'problems': {k: v for k, v in record['problems'].items() if k in self._versions}}

  def _metric(self, name):
    if name not in self._made:
      with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # of packages about packages
        try:
          self._made[name] = self._makers[name]()
        except Exception as e:  # of this machine, not of a clip
          raise UserError(f'metric {name} cannot be set up ({describe(e)}); mend that, or choose others by '
                          '--metrics') from e
    return self._made[name]

  def _path(self, system, audio, item):
    digest = hashlib.sha256(audio.tobytes())
    for part in (item['lang'], item['text'], system.label, system.version):
      digest.update(part.encode('utf-8', 'backslashreplace') + b'\0')
    name = digest.hexdigest()[:40]
    folder = self._cache / name[:2]
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f'{name[2:]}.json'


def _read(path):
  try:
    record = json.loads(path.read_text())
    return record if {'bits', 'scores', 'versions', 'problems'} <= set(record) else _new()
  except (OSError, ValueError):
    return _new()


def _new():
  return {'bits': None, 'scores': {}, 'versions': {}, 'problems': {}}


def _finite(scores):
  """{name: score}, with None for what is not a number: some metrics say so of a clip without sound."""
  def known(value):
    values = value if isinstance(value, list) else [value]
    return all(math.isfinite(x) for x in values if isinstance(x, float))

  return {name: value if known(value) else None for name, value in scores.items()}


_scorer = None  # of a worker process


def _start(checkpoint, peers, refine, metrics, judges, models, cache):
  global _scorer
  _scorer = make_scorer(make_systems(checkpoint, peers, refine)[0], metrics, judges, models, cache)


def _work(item):
  return _scorer(item)


def make_scorer(systems, metrics, judges, models, cache):
  """A `Scorer`.

  Args:
    systems: what to run.
    metrics: {name: version}.
    judges: folder of the files that metrics read.
    models: {name: version} of the user's own classifiers.
    cache: folder of what is known.
  """
  from affectcodec_jax.evaluation.classifiers import hugging_face
  paths = {name: [pathlib.Path(judges) / f for f in METRICS[name].files] for name in metrics}
  makers = {name: (functools.partial(METRICS[name].make, *paths[name]), v) for name, v in metrics.items()}
  makers |= {name: (functools.partial(hugging_face, name), v) for name, v in models.items()}
  return Scorer(systems, makers, pathlib.Path(cache))


def score_files(items, checkpoint, peers, refine, metrics, judges, models, cache, jobs):
  """Yields (item, records) of a source's items, in their order.

  Args:
    items: iterable of items; it is read a little ahead of the work.
    checkpoint, peers, refine: of `make_systems`.
    metrics, judges, models: of `make_scorer`.
    cache: folder of what is known.
    jobs: processes, of one thread each, on CPU.

  Raises:
    UserError: a process died.
  """
  settings = (checkpoint, peers, refine, metrics, judges, models, str(cache))
  try:
    with workers.pool(jobs, _start, settings, on_cpu=True) as pool:
      yield from workers.in_order(pool, _work, items, 2 * jobs)
  except workers.Died as e:
    raise UserError('a process of the evaluation died, perhaps for lack of memory; the same command goes '
                    'on where it stopped, and --jobs 1 needs least') from e
