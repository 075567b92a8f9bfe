"""Pretrain a small family of ESM-2 or ESM-C models: masked language modelling on real proteins, on CPU or GPU.

ESM-2's weights are far too large for tests and a quick start. This script trains the same architecture,
vocabulary and objective (Lin et al. 2023: 15 % of residues, 80 / 10 / 10 masked, random, kept; token
dropout; rotary positions) at widths that train in an hour on a laptop core, so that the project has a
real, if small, family whose larger members know more than its smaller ones.

--family esmc trains a pair of ESM-C models (transformers 5.16 or newer) by the same recipe on the same data, so that a
chain of another family, and one that mixes two, can be fitted on states that were learned.

    python scripts/pretrain_mini_family.py --family esmc --data proteins.fasta.gz --output esmc --steps 3600

Matrices are trained with Muon, everything else with AdamW. A level that is already in --output is kept,
so a run that was stopped goes on with the next level, and levels can be trained in parallel processes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from pretraining.family import FAMILIES


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="FASTA files (.gz or not)")
    parser.add_argument("--output", type=Path, required=True, help="folder that gets one sub-folder per level")
    parser.add_argument("--family", choices=list(FAMILIES), default="esm2", help="architecture (default esm2)")
    parser.add_argument("--levels", nargs="+", metavar="LEVEL", help="which to train (default: all of the family)")
    parser.add_argument("--steps", type=int, default=6000, help="optimiser steps per level")
    parser.add_argument("--batch", type=int, default=32, help="crops per step")
    parser.add_argument("--crop", type=int, default=128, help="tokens per crop")
    parser.add_argument("--final-crop", type=int, default=256, help="tokens per crop in the last part (fewer rows)")
    parser.add_argument("--final-share", type=float, default=0.25, help="share of the steps with --final-crop")
    parser.add_argument("--warmup", type=int, default=200)
    parser.add_argument("--muon-lr", type=float, default=3e-3)
    parser.add_argument("--adam-lr", type=float, default=2e-3)
    parser.add_argument("--held-out", type=int, default=2000, help="sequences kept for validation")
    parser.add_argument("--validate-every", type=int, default=500)
    parser.add_argument("--threads", type=int, help="(default: torch's own choice)")
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="skip torch.compile")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    names = list(FAMILIES[args.family])
    args.levels = args.levels or names
    if unknown := set(args.levels) - set(names):
        parser.error(f"--levels {min(unknown)}: {args.family} has {', '.join(names)}")

    # Only now what takes seconds to import: --help and typing errors are answered at once.
    from pretraining.recipe import train_family

    train_family(args)


if __name__ == "__main__":
    main()
