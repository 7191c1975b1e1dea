"""For mkdocs: links that leave the site, to files of the repository, become the names of those files."""

import re

_OUTSIDE = re.compile(r'\[([^\]]+)\]\(\.\./[^)]+\)')


def on_page_markdown(markdown, **unused):
  """Text of a page, of which mkdocs then finds every link in the site."""
  return _OUTSIDE.sub(r'\1', markdown)
