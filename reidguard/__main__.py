"""``python -m reidguard``: the same as the command ``reidguard``."""

import sys

from reidguard.cli import main

if __name__ == "__main__":
    sys.exit(main())
