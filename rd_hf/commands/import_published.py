"""Turn the first publication's weights (reverse_distillation 0.1.0, .npz) into a model of this project.

    rd-hf import-published --weights weights/ --level 650M --output rd-esm2-650M-published
    rd-hf import-published --weights weights/ --level 35M --regressor pcr --pca fbpca \
        --sequences 1k --output out

--weights holds files named rd-scaler-8M-35M-pcr-fbpca-1k.npz, ..., one for each step up to --level. Nothing in
them is unpickled; keys, sizes and numbers are checked. --output becomes a bases-only checkpoint: loading it fetches
ESM-2 from the Hub. The command says of each step, from the file itself, whether it was fitted on the accumulated
embedding of the level below (as it is applied) or on the raw one, and so does the card.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rd_hf.commands._arguments import command_parser, run_with_arguments


def build_parser() -> argparse.ArgumentParser:
    parser = command_parser("import-published", __doc__)
    parser.add_argument("--weights", required=True, type=Path, help="folder with the published .npz files")
    parser.add_argument("--level", required=True, help="largest level: 35M, 150M, 650M, 3B or 15B")
    parser.add_argument("--output", required=True, type=Path, help="folder for the checkpoint")
    parser.add_argument("--regressor", choices=("pcr", "linear", "ridge"), help="where --weights has several")
    parser.add_argument("--pca", choices=("incremental", "fbpca"), help="where --weights has several")
    parser.add_argument("--sequences", help="0.5k, 1k, 5k or 10k, where --weights has several")
    parser.add_argument("--license", default="mit", help="Hub licence id for the card (the publication's: mit)")
    return parser


def run(args: argparse.Namespace) -> None:
    # Imported here, so that --help and a mistyped flag answer at once.
    from rd_hf.files import Workspace
    from rd_hf.hub.checkpoint import is_checkpoint, save_checkpoint
    from rd_hf.hub.published import find_recipes, import_published

    if not is_checkpoint(args.output):
        Workspace(args.output / ".rd_hf", "a checkpoint").refuse_others()
    if not args.weights.is_dir():
        raise ValueError(f"{args.weights}: no such folder")
    asked = {"regressor": args.regressor, "pca": args.pca, "sequences": args.sequences}
    recipes = [
        recipe
        for recipe in find_recipes(args.weights, args.level)
        if all(value in (None, getattr(recipe, name)) for name, value in asked.items())
    ]
    if len(recipes) != 1:
        found = ", ".join(map(str, recipes)) or "none"
        raise ValueError(
            f"{args.weights} has {len(recipes)} complete sets of files for {args.level} ({found}): choose one with "
            f"--regressor, --pca and --sequences, or fetch the steps that are absent"
        )
    model, reports = import_published(args.weights, args.level, recipes[0])
    save_checkpoint(model, args.output, backbones=False, report=reports, license=args.license)
    for level, what in model.config.bases["fitted_on"].items():
        print(f"{level:>6}: fitted on {what}")
    print(f"saved to {args.output}")


def main(argv: list[str] | None = None) -> int:
    """Run the command; its exit code (see :mod:`rd_hf.commands._main`)."""
    return run_with_arguments(build_parser(), run, argv)


if __name__ == "__main__":
    sys.exit(main())
