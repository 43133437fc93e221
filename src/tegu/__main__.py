"""`python -m tegu` is the command `tegu`."""

import sys

from tegu.cli import main

if __name__ == "__main__":
    sys.exit(main())
