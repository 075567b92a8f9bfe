"""Fit the bases of a family on protein sequences, and save the nested model.

    rd-hf fit --config rd-esm2-650M --data uniref50.fasta.gz --num-sequences 5000 --output my-model
    rd-hf fit --backbones 8M=facebook/esm2_t6_8M_UR50D mine=my-finetuned-esm2 --data uniref50.fasta.gz --output mine
    accelerate launch --num_processes 8 -m rd_hf fit ...      (GPUs)
    torchrun --nproc_per_node 8 -m rd_hf fit ...              (CPUs)

One pass over the sequences; memory does not grow with their number. A fit that was stopped, however it was
stopped, goes on with the same command and --resume, and gives the same bases. With several machines, --output
must lie on a file system that all of them see.

--backbones makes a chain of any encoders of proteins that read ESM-2's tokens: ESM-2, ESM-1b, ESM-1v, DPLM, ESM-C and
fine-tuned ones, Hub ids and folders mixed, smallest first, each pinned to the commit it has now. Where widths do not
grow, --keep says how many directions each level adds. REPO#LAYER is that backbone as if it ended after a layer; levels
that are layers of one backbone share its weights and its pass: "L10=R#10 L20=R#20 L33=R" costs one model. A
reverse-distilled family stands for its levels: "hub_configs/rd-esm2-mini 8M=my-esm2-8M" puts an 8M on top of the three
of the mini family, "0.3M=hub_configs/rd-esm2-mini" is one of them, and "a=hub_configs/rd-esm2-mini:2.7M#4" a layer.

--one-pass adds a readout: the nested embedding out of the largest backbone's layers alone, an approximation that
AutoModel.from_pretrained(..., one_pass=True) and rd-hf embed --one-pass compute at the cost of that one backbone:

    rd-hf fit --config rd-esm2-650M --one-pass --data uniref50.fasta.gz --num-sequences 5000 --output my-model

--output then holds the model (config, bases, remote code, tokenizer, card; backbones too with --form full),
fit_report.json and fit_report.png.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rd_hf.embedding.options import DTYPE
from rd_hf.files import replacing

if TYPE_CHECKING:
    from rd_hf.bases.chain import FitReport

from rd_hf.commands._arguments import command_parser, run_with_arguments
from rd_hf.options import real, whole


def build_parser() -> argparse.ArgumentParser:
    parser = command_parser("fit", __doc__)
    job = parser.add_argument_group("the job")
    family = job.add_mutually_exclusive_group(required=True)
    family.add_argument(
        "--config",
        help="the family: rd-esm2-35M, -150M, -650M, -3B or -15B, rd-esmc-600M or -6B, rd-esm2-650M-esmc-600M, a "
        "folder or a Hub id",
    )
    family.add_argument(
        "--backbones",
        nargs="+",
        metavar="NAME=REPO[@REVISION][:LEVEL][#LAYER]",
        help="the levels themselves, two or more, smallest first: Hub ids or folders of encoders, or layers of them; "
        "a reverse-distilled family, without NAME=, stands for all of its levels",
    )
    job.add_argument(
        "--revision-of",
        nargs="+",
        default=[],
        metavar="LEVEL=COMMIT",
        help="another commit of a level's backbone than the one that --config pins",
    )
    job.add_argument(
        "--data",
        required=True,
        nargs="+",
        help="FASTA (- for stdin), CSV, TSV, JSON lines (compressed or not), Parquet, or a Hub dataset "
        "(owner/name[:split])",
    )
    job.add_argument("--output", required=True, type=Path, help="folder for the fitted model")
    job.add_argument("--resume", action="store_true", help="continue the unfinished fit in --output")
    sample = parser.add_argument_group("the sample")
    sample.add_argument("--num-sequences", type=whole(1), help="draw this many distinct sequences (default: all)")
    sample.add_argument("--seed", type=int, default=0, help="of the draw and of the held-out split (default 0)")
    sample.add_argument(
        "--heldout-fraction",
        type=real(0, below=1),
        default=0.1,
        help="share kept out of the fit to judge it (default 0.1)",
    )
    sample.add_argument("--max-length", type=whole(1), default=1022, help="residues used of a sequence (default 1022)")
    sample.add_argument("--sequence-column", help="column with the sequences, for tables and datasets")
    maths = parser.add_argument_group("the maths")
    maths.add_argument(
        "--regression",
        choices=("pcr", "ols", "ridge"),
        default="pcr",
        help="of the larger level on the smaller: principal components above the noise edge (default), all, or ridge",
    )
    maths.add_argument(
        "--ridge-alpha", type=real(above=0), default=1.0, help="penalty of --regression ridge (default 1)"
    )
    maths.add_argument(
        "--keep",
        nargs="+",
        metavar="N",
        help="residual directions each level after the first keeps: one number a level, or 'all', which loses "
        "nothing (default: as --config says, or as the widths grow by; where they do not grow, it must be said)",
    )
    maths.add_argument(
        "--block-weights",
        nargs="+",
        type=real(0),
        metavar="W",
        help="what each level's block is multiplied by where embeddings are whitened (--whiten of embed and search), "
        "one number a level (default: chosen without labels, so that each level judges as its backbone does)",
    )
    maths.add_argument(
        "--one-pass",
        nargs="*",
        type=whole(0),
        metavar="LAYER",
        help="also read the nested embedding out of the largest backbone alone: out of these layers of it (0 is what "
        "the first is given) and its final state; by default four, evenly spread. Each takes a backbone's width more "
        "of the moments, whose memory and state on disk grow with the square of all widths: four layers and all "
        "levels take 0.5 GB a set of residues at 650M and 1.9 GB at 3B, and there are up to four sets (at most 16 GiB "
        "in all: two layers at 15B)",
    )
    run = parser.add_argument_group("the run")
    run.add_argument(
        "--form",
        choices=("bases", "full"),
        help="save bases only, or backbones too (default: as --config says; of --backbones, full where one of them is "
        "a folder)",
    )
    run.add_argument("--max-shard-size", default="5GB", help="largest file of weights to write (default 5GB)")
    run.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default=DTYPE, help=f"of the backbones (default {DTYPE})"
    )
    run.add_argument(
        "--batch-tokens", type=whole(1), default=4096, help="tokens a batch, padding included (default 4096)"
    )
    run.add_argument(
        "--window-tokens",
        type=whole(1),
        metavar="N",
        help="for a family larger than memory: hold one backbone at a time, loaded anew for every N tokens of batches, "
        "whose states (all widths, 4 or 2 bytes each) are held meanwhile (default: hold all backbones)",
    )
    run.add_argument("--checkpoint-seconds", type=real(0), default=60.0, help="between two saves of the state (60)")
    return parser


def summary(reports: list[FitReport]) -> str:
    """A table a reader can judge the fit by."""
    lines = [f"{'level':>8} {'width':>6} {'components':>12} {'R2 fit':>8} {'R2 held-out':>12} {'residual kept':>14}"]
    for report in reports:
        if report.training is None:
            lines.append(f"{report.level:>8} {report.nested_width:>6} {'(copied)':>12}")
            continue
        held = report.heldout
        lines.append(
            f"{report.level:>8} {report.nested_width:>6} {f'{report.selected_components} of {report.components}':>12} "
            f"{report.training.r2:>8.4f} {f'{held.r2:.4f}' if held else '-':>12} "
            f"{f'{held.residual_variance_kept:.4f}' if held else f'{report.training.residual_variance_kept:.4f}':>14}"
        )
    return "\n".join(lines)


def one_pass_summary(reports: list[FitReport]) -> str:
    """The same of the one-pass readout: how near it comes to the levels, on held-out residues."""
    lines = [f"{'one pass':>8} {'ridge':>7} {'R2 of state':>12} {'R2 of block':>12} {'R2 of level':>12} {'cosine':>7}"]
    for report in reports:
        figures = report.one_pass
        if figures is None or figures.strength is None:
            continue
        found = (figures.state_r2, figures.block_r2, figures.level_r2)
        shown = [f"{'-' if value is None else f'{value:.4f}':>12}" for value in found]
        cosine = "-" if figures.cosine is None else f"{figures.cosine:.4f}"
        lines.append(f"{report.level:>8} {figures.strength:>7.0e} {' '.join(shown)} {cosine:>7}")
    return "\n".join(lines)


def draw(reports: list[FitReport], path: Path) -> Path | None:
    """Write the figure of the fit where matplotlib is installed."""
    try:
        from rd_hf.bases.figure import draw_fit

        with replacing(path) as fresh:
            draw_fit(reports).savefig(fresh, dpi=120, format="png")
    except ImportError:
        print('no fit_report.png: matplotlib is not installed: pip install "rd_hf[plots]"', file=sys.stderr)
        return None
    return path


def _number(word: str) -> int:
    try:
        return int(word)
    except ValueError:
        raise ValueError(f"--keep {word} is neither a number of directions nor 'all'") from None


def _revisions(words: list[str]) -> dict[str, str]:
    for word in words:
        if not all(word.partition("=")):
            raise ValueError(f"--revision-of {word}: write it as LEVEL=COMMIT, for example 3B=476b639933c8")
    return {level: commit for level, _, commit in (word.partition("=") for word in words)}


def run(args: argparse.Namespace) -> None:
    # Imported here, so that --help and a mistyped flag answer at once.
    from accelerate import Accelerator
    from tqdm import tqdm

    from rd_hf.data.batching import SPECIAL_TOKENS
    from rd_hf.embedding.dtypes import warn_of
    from rd_hf.fitting import FitOptions, draw_sample, fit_bases, install_bases
    from rd_hf.fitting.fit import check_options
    from rd_hf.fitting.one_pass import choose_layers
    from rd_hf.fitting.state import SETTINGS_FILE, STATE_FILES, is_state, state_workspace
    from rd_hf.hub import load_family, save_checkpoint
    from rd_hf.hub.backbones import family_config
    from rd_hf.hub.checkpoint import REPORT_FILE, is_checkpoint, refuse_foreign
    from rd_hf.launch import processes

    state_folder = args.output / ".fit"
    workspace = state_workspace(state_folder)
    if (args.output / REPORT_FILE).exists() and not (state_folder / SETTINGS_FILE).exists():
        # Killed while it cleared up.
        if workspace.record() is not None:
            workspace.claim()
            workspace.remove(*STATE_FILES)
        with suppress(OSError):
            state_folder.rmdir()
        if not args.resume:
            raise ValueError(f"{args.output} holds a finished fit already: choose another --output, or delete it")
        print(f"{args.output} holds a finished fit; nothing is left to do")
        return
    if not is_checkpoint(args.output):
        workspace.refuse_others([state_folder.name] if is_state(state_folder) else [])
    refuse_foreign(args.output)
    processes()
    accelerator = Accelerator()
    if accelerator.num_processes > 1 and "-" in args.data:
        raise ValueError("standard input cannot be shared by several processes: write it to a file first")
    window = args.window_tokens
    if window is not None and window < args.batch_tokens:
        raise ValueError(f"--window-tokens {window:,} must be at least --batch-tokens {args.batch_tokens:,}")
    if window is not None and args.form == "full":
        raise ValueError("--window-tokens holds no backbones that --form full could save: save bases only")
    source, keep = args.config, None
    if args.keep is not None and args.keep != ["all"]:
        keep = [_number(number) for number in args.keep]
    if args.backbones is not None:
        # Widths need not grow, where --keep says what each level adds.
        source = family_config(args.backbones, "all" if args.keep == ["all"] else keep)
        if args.form is None and any(Path(entry["repo_id"]).is_dir() for entry in source.levels):
            args.form = "full" if window is None else "bases"
    model = load_family(
        source, revisions=_revisions(args.revision_of), dtype=args.dtype, sequential=window is not None
    ).to(accelerator.device)
    if args.keep == ["all"]:
        keep = model.config.backbone_widths[1:]
    if window is not None:
        args.form = "bases"
        homeless = [entry["name"] for entry in model.config.levels if entry["repo_id"] is None]
        if homeless:
            raise ValueError(
                f"--window-tokens saves bases only, and {args.config} does not say where the backbone of "
                f"{', '.join(homeless)} is to be fetched from: set its repo_id in config.json"
            )
    said = warn_of(args.dtype, str(accelerator.device))
    if said and accelerator.is_main_process:
        print(said, file=sys.stderr)
    limit = model.config.longest_input()
    longest = args.max_length if limit is None else limit - SPECIAL_TOKENS
    if longest < args.max_length and accelerator.is_main_process:
        print(f"{longest:,} residues used of a sequence: a backbone has positions for no more", file=sys.stderr)
    one_pass = None if args.one_pass is None else choose_layers(model.config, args.one_pass)
    options = FitOptions(
        num_sequences=args.num_sequences,
        seed=args.seed,
        heldout_fraction=args.heldout_fraction,
        regression=args.regression,
        ridge_alpha=args.ridge_alpha,
        residual_directions=None if keep is None else tuple(keep),
        max_length=min(args.max_length, longest),
        batch_tokens=args.batch_tokens,
        one_pass=one_pass,
        block_weights=None if args.block_weights is None else tuple(args.block_weights),
    )
    try:
        check_options(model.config, options)
    except ValueError as error:
        words = str(error).replace("residual_directions", "--keep")
        raise ValueError(words if keep is None or "--keep" in words else f"--keep: {words}") from error
    main = accelerator.is_main_process
    say = partial(tqdm.write, file=sys.stderr) if main else None
    sample = draw_sample(args.data, options, args.sequence_column, progress=main, say=say)
    if main:
        print(
            f"{sample.records:,} records: {len(sample.sequences):,} distinct sequences drawn "
            f"({len(sample.heldout):,} held out), {sample.duplicates:,} duplicates, {sample.rejected:,} unusable"
        )
    result = fit_bases(
        model,
        sample,
        options,
        state_folder,
        accelerator,
        args.resume,
        args.checkpoint_seconds,
        window_batches=1 if window is None else window // args.batch_tokens,
    )
    if main:
        install_bases(model, result, options, sample, args.data)
        full = model.config.backbones_in_checkpoint if args.form is None else args.form == "full"
        figure = draw(result.reports, state_folder / "fit_report.png")
        save_checkpoint(
            model, args.output, backbones=full, report=result.reports, figure=figure, max_shard_size=args.max_shard_size
        )
        # The state goes last: while it is there, the fit counts as unfinished and --resume saves again.
        workspace.remove(*STATE_FILES)
        print(summary(result.reports))
        if one_pass is not None:
            print(one_pass_summary(result.reports))
        print(f"saved to {args.output}")
    accelerator.wait_for_everyone()
    accelerator.end_training()


def main(argv: list[str] | None = None) -> int:
    """Run the command; its exit code (see :mod:`rd_hf.commands._main`)."""
    return run_with_arguments(build_parser(), run, argv, go_on="give the same command again with --resume")


if __name__ == "__main__":
    sys.exit(main())
