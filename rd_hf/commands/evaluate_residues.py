"""What does an embedding know of single residues? Secondary structure and metal binding, by logistic probes.

    rd-hf evaluate residues --model hub_configs/rd-esm2-mini \\
        --secondary-structure tasks/flip_secondary_structure --metal-binding tasks/bindpredict_metal \\
        --fit-data rd_hf/data/examples/proteins_1000.fasta.gz --output evaluation_residues

The same contenders as in rd-hf evaluate dms, on states of residues instead of means over them; one-hot is a window of
15 residues. A probe is fitted on training chains, its strength chosen on validation chains, and judged on test
chains by accuracy and area under the precision-recall curve (of the positive class; of three classes, the mean).
Intervals resample test chains, the same for every contender.

--output then holds report.md, residues.png and results.parquet (one row a resample; draw 0 is the test set itself).
A run that was stopped goes on with the same command.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from rd_hf.commands._arguments import command_parser, run_with_arguments
from rd_hf.commands._evaluation import add_chain_arguments, add_fit_arguments, add_run_arguments
from rd_hf.options import real, whole


def build_parser() -> argparse.ArgumentParser:
    parser = command_parser("evaluate residues", __doc__)
    parser.add_argument("--model", required=True, nargs="+", help="families or plain backbones: folders or Hub ids")
    parser.add_argument("--secondary-structure", type=Path, help="folder of FLIP's splits.zip")
    parser.add_argument("--metal-binding", type=Path, help="folder of bindPredict's development and independent sets")
    parser.add_argument("--output", required=True, type=Path, help="folder for the report and its data")
    parser.add_argument(
        "--representations",
        nargs="+",
        default=("raw", "rd", "pca", "concat", "rd_all", "random", "one_hot"),
        help="contenders (default: raw rd pca concat rd_all random one_hot)",
    )
    parser.add_argument(
        "--depth", nargs="+", type=real(0, most=1), default=(1.0,), help="relative depth of the layer (1)"
    )
    add_chain_arguments(parser)
    add_fit_arguments(parser, required=False)
    parser.add_argument("--resamples", type=whole(1), default=500, help="bootstrap resamples of the test chains (500)")
    parser.add_argument("--threads", type=whole(1), help="threads (default: all cores)")
    add_run_arguments(parser)
    return parser


def run(args: argparse.Namespace) -> None:
    # Imported here, so that --help and a mistyped flag answer at once.
    import numpy as np
    import pandas as pd
    import torch
    import transformers
    from threadpoolctl import threadpool_limits
    from tqdm import tqdm

    from rd_hf.evaluation import plots, residues, residues_report
    from rd_hf.evaluation.embeddings import load_family
    from rd_hf.evaluation.fit_data import draw_moments
    from rd_hf.evaluation.plan import EvaluationOptions, family_maps
    from rd_hf.evaluation.runs import write_table
    from rd_hf.evaluation.tasks import read_metal_binding, read_secondary_structure, subsample
    from rd_hf.files import Workspace

    started = time.monotonic()
    output = Workspace(args.output / ".rd_hf", "an evaluation of residues")
    output.refuse("report.md", "results.parquet", "residues.png")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if args.threads:
        torch.set_num_threads(args.threads)
    kinds = EvaluationOptions(representations=tuple(args.representations))
    options = residues.ResidueOptions(resamples=args.resamples)
    tasks = []
    if args.secondary_structure:
        tasks.append(read_secondary_structure(args.secondary_structure))
    if args.metal_binding:
        tasks.append(read_metal_binding(args.metal_binding))
    if not tasks:
        raise ValueError("there is nothing to evaluate: give --secondary-structure, --metal-binding or both")
    tasks = [subsample(task, args.train_chains, args.validation_chains) for task in tasks]
    output.claim()
    cache = args.cache or args.output / "cache"
    paths: list[Path] = []

    def probe(task, contender, digest, states, how) -> None:  # type: ignore[no-untyped-def]
        path = args.output / "runs" / f"{residues.contender_digest(task, contender, digest, options)}.parquet"
        paths.append(path)
        if not path.exists():
            with threadpool_limits(limits=args.threads):
                write_table(residues.evaluate_contender(task, contender, states(), how, options), path)

    notes: list[str] = []
    families = [load_family(model, depth, args.device) for model in args.model for depth in args.depth]
    for family in families:
        moments = None
        if args.fit_data and len(family.names) > 1:
            moments, note = draw_moments(
                family, args.fit_data, args.fit_sequences, args.fit_seed, cache, args.batch_tokens
            )
            notes.append(note)
        maps = family_maps(family, moments, kinds)
        for task in tasks:
            states = {
                name: residues.chain_states(family, chains, cache, args.batch_tokens)
                for name, chains in task.splits.items()
            }
            for how in tqdm(maps, desc=f"{task.name} with {family.label}", unit="probe", disable=None):
                contender = residues.ResidueContender(family.label, family.depth, how.kind, how.level)
                probe(task, contender, f"{family.fingerprint} {how.digest}", lambda states=states: states, how)
    if "one_hot" in kinds.representations:
        for task in tqdm(tasks, desc="one-hot", unit="probe", disable=None):

            def windows(task=task) -> dict[str, np.ndarray]:  # type: ignore[no-untyped-def]
                return {name: residues.window_one_hot(chains) for name, chains in task.splits.items()}

            probe(task, residues.ResidueContender("", 1.0, "one_hot", ""), "window", windows, None)

    results = pd.concat([pd.read_parquet(path) for path in paths], ignore_index=True)
    with output.writing("results.parquet") as path:
        results.to_parquet(path, index=False)
    figure = plots.residue_figure(results, families[0].label, families[0].depth, families[0].names)
    with output.writing("residues.png") as path:
        figure.savefig(path, dpi=110, format="png")
    text = residues_report.render_residues(results, notes, ["residues.png"])
    with output.writing("report.md") as path:
        path.write_text(text, encoding="utf-8")
    print(text)
    print(f"{(time.monotonic() - started) / 60:.1f} minutes: {args.output / 'report.md'}")


def main(argv: list[str] | None = None) -> int:
    """Run the command; its exit code (see :mod:`rd_hf.commands._main`)."""
    return run_with_arguments(build_parser(), run, argv, extra="eval")


if __name__ == "__main__":
    sys.exit(main())
