"""`rd-hf evaluate residues`, from a clone."""

import sys

from rd_hf.commands.evaluate_residues import main

if __name__ == "__main__":
    sys.exit(main())
