"""`rd-hf search`, from a clone."""

import sys

from rd_hf.commands.search import main

if __name__ == "__main__":
    sys.exit(main())
