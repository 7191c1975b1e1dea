"""Part of a list, for measurements that need not take all of it."""

import numpy as np


def evenly(items, count=0):
  """`count` of the items, evenly spread, the first and the last among them; all of them for 0."""
  count = min(count or len(items), len(items))
  return [items[i] for i in np.linspace(0, len(items) - 1, count).astype(int)]
