"""Peers: rates, delays, and neural codecs with random weights of their published shapes."""

import numpy as np
import pytest

from affectcodec_jax.audio import at_codec_level
from affectcodec_jax.common.errors import UserError
from affectcodec_jax.data.synthetic import SyntheticSource
from affectcodec_jax.evaluation import classifiers, neural_peers, peers


@pytest.fixture(scope='module')
def speech():
  return at_codec_level(SyntheticSource(8, seed=0)[3]['audio'])[:40123]


@pytest.mark.parametrize('name', peers.PEERS)
def test_peers_keep_length_time_and_rate(name, speech):
  """Delay taken off to 3 ms, by the envelopes' correlation (vocoders make other waveforms).

  Rates: within 15 % of the nominal ones; Opus varies its rate with the sound.
  """
  systems, absent = peers.make_peers([name])
  if absent:
    pytest.skip(absent[name])
  for system in systems:
    decoded, bits = system.run(speech)
    assert decoded.shape == speech.shape and decoded.dtype == np.float32
    assert bits / len(speech) * 16 == pytest.approx(system.kbps, rel=0.15)
    if system.kbps == systems[-1].kbps:  # the best one speaks clearly enough to be timed
      assert abs(_delay(speech, decoded)) <= 3


def _delay(a, b):
  """Milliseconds by which the envelope of `b` comes after that of `a`."""
  envelopes = []
  for x in (a, b):
    e = np.convolve(np.sqrt(np.mean(x[:40000].reshape(-1, 16) ** 2, axis=1)), np.hanning(18) / 8.5, 'same')
    envelopes.append(np.log(e + 1e-3) - np.log(e + 1e-3).mean())
  a, b = envelopes
  shifts = range(-60, 61)
  return max(shifts, key=lambda s: np.corrcoef(a[60:-60], b[60 + s:len(b) - 60 + s])[0, 1])


def test_ogg_bits_are_those_of_packets():
  """Two pages by hand: headers of 2 packets, then packets of 300 (255 + 45) and 10 bytes."""
  def page(sizes):
    return b'OggS' + bytes(22) + bytes([len(sizes)]) + bytes(sizes) + bytes(sum(sizes))
  assert peers.ogg_bits(page([19, 40]) + page([255, 45, 10])) == 8 * 310


def test_a_missing_tool_is_reported_and_the_others_go_on(monkeypatch):
  monkeypatch.setattr(peers.shutil, 'which', lambda name: None)
  systems, absent = peers.make_peers(['opus', 'codec2', 'speex'])
  assert {s.name for s in systems} == {'opus'}
  assert absent == {'codec2': 'c2enc is not installed', 'speex': 'speexenc is not installed'}


@pytest.fixture(scope='module')
def transformers():
  return pytest.importorskip('transformers')


def test_neural_peers(transformers, tmp_path, speech):
  """Small models of random weights, through files: rates as named, length kept at 16 and 24 kHz."""
  t = transformers
  models = {
      'encodec': t.EncodecModel(t.EncodecConfig(num_filters=4, hidden_size=16, codebook_dim=16,
                                                num_lstm_layers=1)),
      'dac': t.DacModel(t.DacConfig(encoder_hidden_size=4, decoder_hidden_size=32, n_codebooks=12,
                                    downsampling_ratios=[2, 4, 5, 8])),
      'mimi': t.MimiModel(t.MimiConfig(
          hidden_size=32, num_filters=4, codebook_dim=16, vector_quantization_hidden_dimension=16,
          num_hidden_layers=1, intermediate_size=32, num_attention_heads=2, num_key_value_heads=2,
          head_dim=16, upsample_groups=32)),
      'xcodec': t.XcodecModel(t.XcodecConfig(
          acoustic_model_config={'model_type': 'dac', 'encoder_hidden_size': 4, 'decoder_hidden_size': 32,
                                 'hidden_size': 16},
          semantic_model_config={'model_type': 'hubert', 'hidden_size': 16, 'num_hidden_layers': 1,
                                 'num_attention_heads': 2, 'intermediate_size': 16}))}
  for name, model in models.items():
    model.save_pretrained(tmp_path / name)
    systems = neural_peers.load(str(tmp_path / name))
    assert {s.name for s in systems} == {name}
    for system in systems:
      decoded, bits = system.run(speech)
      assert decoded.shape == speech.shape and np.isfinite(decoded).all()
      # A last frame that is not full counts whole: 80 ms of 2.5 s with Mimi.
      assert bits / len(speech) * 16 == pytest.approx(system.kbps, rel=0.05)
  assert [s.kbps for s in neural_peers.load(f'{tmp_path}/dac@1.5')] == [1.5]
  with pytest.raises(UserError, match='has no 40 kbps'):
    neural_peers.load(f'{tmp_path}/dac@40')
  with pytest.raises(UserError, match='rates are numbers'):
    neural_peers.load(f'{tmp_path}/dac@low')
  _, absent = peers.make_peers([str(tmp_path / 'nothing')])
  assert 'does not load' in absent[str(tmp_path / 'nothing')]


def _classifier(transformers, folder, labels):
  config = transformers.Wav2Vec2Config(
      hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, conv_dim=(8, 8),
      conv_stride=(5, 4), conv_kernel=(10, 8), num_feat_extract_layers=2, num_conv_pos_embeddings=8,
      num_conv_pos_embedding_groups=2, classifier_proj_size=8, id2label=dict(enumerate(labels)),
      label2id={k: i for i, k in enumerate(labels)})
  extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=False)
  extractor.save_pretrained(folder)
  return config


def test_a_users_classifier_speaks_in_the_codecs_emotions(transformers, tmp_path, speech):
  config = _classifier(transformers, tmp_path / 'a', ['angry', 'hap', 'Neutral', 'sadness'])
  transformers.Wav2Vec2ForSequenceClassification(config).save_pretrained(tmp_path / 'a')
  name = str(tmp_path / 'a')
  result = classifiers.hugging_face(name)(speech, speech, {})[name]
  assert sum(result) == pytest.approx(1, abs=1e-5)
  assert np.count_nonzero(result) == 4 and result[4] > 0  # angry
  assert classifiers.label_places(['angry', 'bored']) is None


def test_a_regressors_own_head_is_loaded_and_not_replaced(transformers, tmp_path, speech):
  """The published valence model's layout; a classifier with an untrained part is refused."""
  torch = pytest.importorskip('torch')
  config = _classifier(transformers, tmp_path / 'v', ['arousal', 'dominance', 'valence'])
  config.architectures = ['Wav2Vec2ForSpeechClassification']
  model = classifiers._dimension_model(torch, transformers)(config).eval()
  model.save_pretrained(tmp_path / 'v')
  config.save_pretrained(tmp_path / 'v')
  text = (tmp_path / 'v' / 'config.json').read_text()
  text = text.replace('DimensionModel', 'Wav2Vec2ForSpeechClassification')
  (tmp_path / 'v' / 'config.json').write_text(text)
  name = str(tmp_path / 'v')
  result = classifiers.hugging_face(name)(speech, speech, {})
  x = (speech - speech.mean()) / np.sqrt(speech.var() + 1e-7)
  with torch.no_grad():
    direct = model(torch.from_numpy(x)[None]).logits[0].tolist()
  assert list(result) == [f'{name} {k}' for k in ('arousal', 'dominance', 'valence')]
  np.testing.assert_allclose(list(result.values()), direct, atol=1e-4)  # the same sums in another order
  transformers.Wav2Vec2Model(config).save_pretrained(tmp_path / 'v')  # no head at all
  with pytest.raises(UserError, match='untrained part'):
    classifiers.hugging_face(name)
