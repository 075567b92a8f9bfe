"""`rd-hf evaluate homology`, from a clone."""

import sys

from rd_hf.commands.evaluate_homology import main

if __name__ == "__main__":
    sys.exit(main())
