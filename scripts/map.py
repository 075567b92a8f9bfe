"""Draw the proteins of an embedding folder: one page to open in a browser, with a slider over the levels.

    python scripts/map.py embeddings --labels labels.tsv --output map.html

This is ``rd-hf map`` from a clone; ``--help`` says the rest.
"""

from __future__ import annotations

import sys
from pathlib import Path

# As a script, the package is found beside this folder even where it is not installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rd_hf.commands.map import main

if __name__ == "__main__":
    sys.exit(main())
