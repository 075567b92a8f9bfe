"""`rd-hf ablate`, from a clone."""

import sys

from rd_hf.commands.ablate import main

if __name__ == "__main__":
    sys.exit(main())
