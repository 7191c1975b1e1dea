"""For mkdocs: links that leave the site, to files of the repository, become the names of those files.

The model card, the changes and how to contribute are pages too: links from and to them stay links. Links to
a folder of logs lead to the page that lists them.
"""

import re

_OUTSIDE = re.compile(r'\[([^\]]+)\]\((?:\.\./)+[^)]+\)')
_FOLDER = re.compile(r'\]\(logs/([\w-]+)(?:/[\w-]+)?\)')
# From pages that lie elsewhere in the repository, and are links in docs/: where docs/ is from there.
_DOCS = {'model-card.md': '../../docs/', 'changelog.md': 'docs/', 'contributing.md': 'docs/'}
_PAGES = {'../affectcodec_jax/pretrained/README.md': 'model-card.md', '../CHANGELOG.md': 'changelog.md',
          '../CONTRIBUTING.md': 'contributing.md'}


def on_page_markdown(markdown, page, **unused):
  """Text of a page, of which mkdocs then finds every link in the site."""
  where = _DOCS.get(page.file.src_uri)
  if where:
    markdown = markdown.replace(f']({where}', '](')
    markdown = re.sub(r'\[([^\]]+)\]\((?![\w-]+\.md|logs/|figures/|#|https?:)[^)]+\)', r'\1', markdown)
  for path, name in _PAGES.items():
    markdown = markdown.replace(f']({path}', f']({name}')
  return _OUTSIDE.sub(r'\1', _FOLDER.sub(r'](logs/index.md#\1)', markdown))
