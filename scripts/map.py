"""`rd-hf map`, from a clone."""

import sys

from rd_hf.commands.map import main

if __name__ == "__main__":
    sys.exit(main())
