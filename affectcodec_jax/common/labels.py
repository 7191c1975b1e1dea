"""The emotions the codec knows, and the many names data sets give them."""

EMOTIONS = ('neutral', 'calm', 'happy', 'sad', 'angry', 'fearful', 'disgusted', 'surprised')

# Of these words, in their order, on scales from 1 to 9: Warriner, Kuperman & Brysbaert (2013), Norms of
# valence, arousal, and dominance for 13,915 English lemmas, Behavior Research Methods 45, mean ratings.
VALENCE_AROUSAL_DOMINANCE = {
    'valence': (5.50, 6.89, 8.47, 2.10, 2.53, 2.66, 2.68, 6.57),
    'arousal': (3.45, 1.67, 6.05, 3.49, 6.20, 5.45, 4.89, 5.95),
    'dominance': (5.81, 7.44, 7.21, 3.84, 4.11, 3.12, 4.24, 4.72),
}

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
