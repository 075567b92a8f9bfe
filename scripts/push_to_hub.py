"""`rd-hf push`, from a clone."""

import sys

from rd_hf.commands.push import main

if __name__ == "__main__":
    sys.exit(main())
