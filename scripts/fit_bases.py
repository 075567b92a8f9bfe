"""`rd-hf fit`, from a clone."""

import sys

from rd_hf.commands.fit import main

if __name__ == "__main__":
    sys.exit(main())
