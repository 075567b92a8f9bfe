"""Turn the first publication's weights (reverse_distillation 0.1.0, .npz) into a model of this project.

    rd-hf import-published --weights weights/ --config rd-esm2-650M --output rd-esm2-650M-published
    rd-hf import-published --weights weights/ --config rd-esm2-35M --pca fbpca --num-sequences 1000 --output out

The files are in the repo singhlab/plm_reverse_distillation of the Hub, in its folder weights:

    hf download singhlab/plm_reverse_distillation --include "weights/*" --local-dir .

--weights holds files named rd-scaler-8M-35M-pcr-fbpca-1k.npz, ..., one for each step up to --config's. Nothing in
them is unpickled; keys, sizes and numbers are checked. --output becomes a bases-only checkpoint: loading it fetches
ESM-2 from the Hub. The command says of each step, from the file itself, whether it was fitted on the accumulated
embedding of the level below (as it is applied) or on the raw one, and so does the card.
"""

from __future__ import annotations

import argparse

from rd_hf.commands._arguments import command, command_parser
from rd_hf.hub.options import ImportSettings
from rd_hf.options import options_from


def build_parser() -> argparse.ArgumentParser:
    return command_parser("import-published", __doc__, ImportSettings)


def run(args: argparse.Namespace) -> None:
    from rd_hf.hub.published import import_checkpoint

    import_checkpoint(options_from(ImportSettings, args))


main = command(build_parser, run)
