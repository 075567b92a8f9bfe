"""`rd-hf release`, from a clone."""

import sys

from rd_hf.commands.release import main

if __name__ == "__main__":
    sys.exit(main())
