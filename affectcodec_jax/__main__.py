"""The program: `python -m affectcodec_jax COMMAND`, and `affectcodec COMMAND` where it is installed."""

import sys

from affectcodec_jax.cli.program import main

if __name__ == '__main__':
  sys.exit(main())
