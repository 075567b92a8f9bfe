"""`rd-hf embed`, from a clone."""

import sys

from rd_hf.commands.embed import main

if __name__ == "__main__":
    sys.exit(main())
