"""Studies of the method: what each choice in it is worth. For who works on it, from a clone.

python scripts/study.py ablate --help       what each choice in the chain is worth
python scripts/study.py angles --help       whether levels agree on what comes first
python scripts/study.py blocks --help       what each level's block predicts beyond its prefix
python scripts/study.py frontier --help     what an embedding is worth for what it costs
python scripts/study.py nested --help       whether another block wins at equal width
python scripts/study.py overview --help     the picture of what a nested family is for, from its report and config
python scripts/study.py readout --help      whether another readout comes nearer to the exact levels
python scripts/study.py width --help        what an embedding is worth at any number of dimensions
"""

from __future__ import annotations

import argparse
import importlib
import sys

STUDIES = ("ablate", "angles", "blocks", "frontier", "nested", "overview", "readout", "width")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=STUDIES, help="which study; each has a --help of its own")
    if sys.argv[1:2] and sys.argv[1] in STUDIES:
        return int(importlib.import_module(f"studies.{sys.argv[1]}").main(sys.argv[2:]))
    parser.parse_args()
    return 2


if __name__ == "__main__":
    sys.exit(main())
