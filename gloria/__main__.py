"""``python -m gloria`` is the command line."""

import sys

from gloria.cli import main

if __name__ == "__main__":
    sys.exit(main())
