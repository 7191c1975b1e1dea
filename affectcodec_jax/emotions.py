"""The emotions the codec knows, and the many names data sets give them."""

EMOTIONS = ('neutral', 'calm', 'happy', 'sad', 'angry', 'fearful', 'disgusted', 'surprised')

_SYNONYMS = {
    'neutral': ('neu', 'neut', 'neutrality'),
    'calm': ('cal', 'calmness'),
    'happy': ('hap', 'happiness', 'joy', 'joyful', 'amused', 'amusement'),
    'sad': ('sadness',),
    'angry': ('ang', 'anger'),
    'fearful': ('fea', 'fear', 'afraid', 'anxiety'),
    'disgusted': ('dis', 'disgust'),
    'surprised': ('sur', 'surprise', 'ps', 'pleasant_surprise', 'pleasant_surprised'),
}
_INDEX = {
    name: i
    for i, emotion in enumerate(EMOTIONS)
    for name in (emotion, *_SYNONYMS[emotion])
}


def emotion_index(name):
  """Position of `name`, or of what it is a synonym of, in `EMOTIONS`; -1 for all else, and None."""
  if not isinstance(name, str):
    return -1
  return _INDEX.get(name.strip().lower().replace(' ', '_').replace('-', '_'), -1)
