"""Emotion classifiers and valence/arousal/dominance regressors of the user's, by their Hugging Face name.

Any audio-classification model of 16 kHz that `transformers` loads. A model whose outputs are called
arousal, dominance and valence is a regressor; the published one for that (audeering's wav2vec 2.0) has a
head of its own, which `transformers` would silently replace by an untrained one, so it is defined here.
"""

from affectcodec_jax.common.constants import SAMPLE_RATE
from affectcodec_jax.common.errors import UserError, require_extra
from affectcodec_jax.common.labels import EMOTIONS, emotion_index
from affectcodec_jax.evaluation.systems import model_version

DIMENSIONS = ('valence', 'arousal', 'dominance')


def hugging_face(name):
  """Loads a classifier or regressor.

  Args:
    name: a model on the hub that the user has, or a folder.

  Returns:
    A function of (reference, decoded, item): `{name: probabilities}` over the codec's `EMOTIONS` where each
    of the model's labels is one of them, else over its own labels, which are then `NAME_labels`; of a
    regressor `{'NAME valence': …}` and so on.

  Raises:
    UserError: transformers or torch is not installed, or the model does not load whole.
  """
  torch, transformers = require_extra('torch'), require_extra('transformers')
  transformers.utils.logging.set_verbosity_error()
  try:
    config = transformers.AutoConfig.from_pretrained(name)
    extractor = transformers.AutoFeatureExtractor.from_pretrained(name)
    labels = [config.id2label[i].lower() for i in range(len(config.id2label))]
    regressor = set(labels) == set(DIMENSIONS)
    if config.architectures == ['Wav2Vec2ForSpeechClassification'] and regressor:
      kind = _dimension_model(torch, transformers)
    else:
      kind = transformers.AutoModelForAudioClassification
    model, info = kind.from_pretrained(name, output_loading_info=True)
  except (OSError, ValueError, KeyError, RuntimeError) as e:
    raise UserError(f'{name}: does not load as an audio classifier ({str(e).splitlines()[0]})') from e
  if info['missing_keys'] or info['mismatched_keys']:
    raise UserError(f'{name}: its weights lack {sorted(map(str, info["missing_keys"]))[:3]}; a classifier '
                    'with an untrained part would say nothing')
  if extractor.sampling_rate != SAMPLE_RATE:
    raise UserError(f'{name}: wants {extractor.sampling_rate} Hz, not {SAMPLE_RATE}')
  model.eval()

  def outputs(audio):
    inputs = extractor(audio, sampling_rate=SAMPLE_RATE, return_tensors='pt')
    with torch.no_grad():
      return model(**inputs).logits[0]

  if regressor:
    return lambda reference, decoded, item: {
        f'{name} {label}': float(v) for label, v in zip(labels, outputs(decoded))}
  place = label_places(labels)

  def classify(reference, decoded, item):
    probabilities = torch.softmax(outputs(decoded), dim=0).tolist()
    if place is None:
      return {name: probabilities, f'{name}_labels': labels}
    by_emotion = [0.0] * len(EMOTIONS)
    for p, i in zip(probabilities, place):
      by_emotion[i] += p
    return {name: by_emotion}

  return classify


def classifier_version(name):
  """What says whether a user's model is still the one that judged.

  Raises:
    UserError: it does not load.
  """
  hugging_face(name)
  import transformers
  return model_version(name, transformers.AutoConfig.from_pretrained(name), transformers)


def label_places(labels):
  """Where each label stands in `EMOTIONS`; None if one of them has no place there."""
  places = [emotion_index(label) for label in labels]
  return None if min(places) < 0 else places


def _dimension_model(torch, transformers):
  """wav2vec 2.0, mean over time, dense, tanh, one output a dimension (Wagner et al. 2023, section 3)."""
  from transformers.models.wav2vec2.modeling_wav2vec2 import Wav2Vec2Model, Wav2Vec2PreTrainedModel

  class Head(torch.nn.Module):

    def __init__(self, config):
      super().__init__()
      self.dense = torch.nn.Linear(config.hidden_size, config.hidden_size)
      self.out_proj = torch.nn.Linear(config.hidden_size, config.num_labels)

    def forward(self, x):
      return self.out_proj(torch.tanh(self.dense(x)))

  class DimensionModel(Wav2Vec2PreTrainedModel):

    def __init__(self, config):
      super().__init__(config)
      self.wav2vec2 = Wav2Vec2Model(config)
      self.classifier = Head(config)
      self.post_init()

    def forward(self, input_values, attention_mask=None):
      hidden = self.wav2vec2(input_values, attention_mask=attention_mask)[0].mean(dim=1)
      return transformers.modeling_outputs.SequenceClassifierOutput(logits=self.classifier(hidden))

  return DimensionModel
