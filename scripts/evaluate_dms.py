"""`rd-hf evaluate dms`, from a clone."""

import sys

from rd_hf.commands.evaluate_dms import main

if __name__ == "__main__":
    sys.exit(main())
