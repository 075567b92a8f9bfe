"""What do the residual blocks of a model hold? R^2 of each level, spectra, and what each block alone predicts.

    rd-hf evaluate blocks --model hub_configs/rd-esm2-mini --fit-data uniref50.fasta.gz \\
        --secondary-structure tasks/flip_secondary_structure --output blocks

Held-out R^2 and spectra are those of the model's own bases, judged on sequences of --fit-data that are held out of
their fit (the same draw as the model's config records). Then each block [h_1], [r_2 V_2], ... is probed alone: which
amino acid a residue is, where in its chain it stands, and its secondary structure.

--output then holds report.md, blocks.parquet and spectra.png.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from rd_hf.commands._arguments import command_parser, run_with_arguments
from rd_hf.commands._evaluation import add_chain_arguments, add_fit_arguments, add_run_arguments


def build_parser() -> argparse.ArgumentParser:
    parser = command_parser("evaluate blocks", __doc__)
    parser.add_argument("--model", required=True, help="reverse-distilled family: folder or Hub id")
    add_fit_arguments(parser, required=True)
    parser.add_argument("--secondary-structure", required=True, type=Path, help="folder of FLIP's splits.zip")
    add_chain_arguments(parser)
    parser.add_argument("--output", required=True, type=Path, help="folder for the report and its data")
    add_run_arguments(parser)
    return parser


def run(args: argparse.Namespace) -> None:
    # Imported here, so that --help and a mistyped flag answer at once.
    import transformers

    from rd_hf.bases.chain import fit_chain
    from rd_hf.bases.figure import draw_fit
    from rd_hf.evaluation import blocks, residues, studies
    from rd_hf.evaluation.embeddings import fitting_moments, load_family
    from rd_hf.evaluation.fit_data import draw_fit_sample, refit_difference, split_sample
    from rd_hf.evaluation.representations import chain_maps, model_bases
    from rd_hf.evaluation.tasks import read_secondary_structure, subsample
    from rd_hf.files import Workspace

    started = time.monotonic()
    output = Workspace(args.output / ".rd_hf", "a report on blocks")
    output.refuse("report.md", "blocks.parquet", "spectra.png")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    family = load_family(args.model, device=args.device)
    config = family.model.config
    if len(family.names) < 2:
        raise ValueError(f"{args.model} has one level and no residual block; give a reverse-distilled family")
    output.claim()
    cache = args.cache or args.output / "cache"
    training, heldout = split_sample(draw_fit_sample(family, args.fit_data, args.fit_sequences, args.fit_seed))
    if not heldout:
        raise ValueError("no sequence is held out to judge the bases on; give more --fit-data")
    moments = fitting_moments(family, training, cache, args.batch_tokens)
    judged = fitting_moments(family, heldout, cache, args.batch_tokens)
    # The chain in closed form is the model's own where the sequences are: the note says whether they are.
    _, reports = fit_chain(
        moments,
        family.names,
        config.residual_directions,
        config.bases.get("regression", "pcr"),
        config.bases.get("ridge_alpha", 1.0),
        judged,
    )
    task = subsample(read_secondary_structure(args.secondary_structure), args.train_chains, args.validation_chains)
    states = {
        name: residues.chain_states(family, chains, cache, args.batch_tokens) for name, chains in task.splits.items()
    }
    largest = chain_maps("rd", family.names, family.widths, model_bases(family.model))[-1]
    found = blocks.blocks(config.nested_dims)
    table = blocks.block_table(task, states, largest, found, residues.ResidueOptions())
    with output.writing("blocks.parquet") as path:
        table.to_parquet(path, index=False)
    with output.writing("spectra.png") as path:
        draw_fit(reports).savefig(path, dpi=110, format="png")
    notes = [
        f"{family.label}: bases judged on {len(heldout):,} sequences ({judged.count:,} residues) that are held out of "
        f"{len(training):,}; regressions fitted on those differ from the model's by "
        f"{refit_difference(family, moments):.0e}.",
        f"Probes: {len(task.splits['train'])} training, {len(task.splits['validation'])} validation and "
        f"{len(task.splits['test'])} test chains.",
    ]
    text = studies.render_blocks(reports, table, notes, ["spectra.png"])
    with output.writing("report.md") as path:
        path.write_text(text, encoding="utf-8")
    print(text)
    print(f"{(time.monotonic() - started) / 60:.1f} minutes: {args.output / 'report.md'}")


def main(argv: list[str] | None = None) -> int:
    """Run the command; its exit code (see :mod:`rd_hf.commands._main`)."""
    return run_with_arguments(build_parser(), run, argv, extra="eval")


if __name__ == "__main__":
    sys.exit(main())
