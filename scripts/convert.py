"""`rd-hf convert`, from a clone."""

import sys

from rd_hf.commands.convert import main

if __name__ == "__main__":
    sys.exit(main())
