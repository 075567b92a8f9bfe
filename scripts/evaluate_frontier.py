"""`rd-hf evaluate frontier`, from a clone."""

import sys

from rd_hf.commands.evaluate_frontier import main

if __name__ == "__main__":
    sys.exit(main())
