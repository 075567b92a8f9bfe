"""`rd-hf import-published`, from a clone."""

import sys

from rd_hf.commands.import_published import main

if __name__ == "__main__":
    sys.exit(main())
