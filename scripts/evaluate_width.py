"""`rd-hf evaluate width`, from a clone."""

import sys

from rd_hf.commands.evaluate_width import main

if __name__ == "__main__":
    sys.exit(main())
