"""`python -m sde`: the command line."""

import sys

from sde.cli import main

if __name__ == "__main__":
    sys.exit(main())
