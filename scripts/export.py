"""`rd-hf export`, from a clone."""

import sys

from rd_hf.commands.export import main

if __name__ == "__main__":
    sys.exit(main())
