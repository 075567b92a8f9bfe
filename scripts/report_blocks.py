"""`rd-hf report-blocks`, from a clone."""

import sys

from rd_hf.commands.report_blocks import main

if __name__ == "__main__":
    sys.exit(main())
