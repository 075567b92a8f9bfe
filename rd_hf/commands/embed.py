"""Embed proteins: FASTA, tables or a Hub dataset in, a folder of Parquet files out.

    rd-hf embed --model hub_configs/rd-esm2-mini --input proteome.fasta.gz --output embeddings
    rd-hf embed --model DIR --input a.fasta b.csv owner/dataset:train --output out --level S L
    rd-hf embed --model DIR --input proteome.fasta.gz --output out --level 8M 650M --one-pass    (650M's alone runs)
    rd-hf embed --extend embeddings_650M --level 3B --output embeddings_3B    (the 3B backbone alone runs)
    zcat many.fasta.gz | rd-hf embed --model DIR --input - --output out --pooling residue
    accelerate launch --num_processes 4 -m rd_hf embed --model DIR --input proteome.fasta.gz --output out    (GPUs)
    torchrun --nproc_per_node 4 -m rd_hf embed --model DIR --input proteome.fasta.gz --output out            (CPUs)
    rd-hf embed --engine ray --address auto --model DIR --input shards/*.fasta.gz --output out    (a Ray cluster)

Interrupted, by whatever? Give the same command again: finished parts are verified and kept, the rest is done, and
the result is the same as that of an uninterrupted run.

Read the result with load_dataset("parquet", data_files="out/*.parquet"). Its columns are source, record (number
in the input, from 1), id, description, length (residues) and embedding; records that could not be embedded are in
_rejects.tsv with their reason; _manifest.json says which model, options and versions made it, with counts and
checksums.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial

from rd_hf.commands._arguments import command_parser, run_with_arguments
from rd_hf.embedding.options import (
    AUTO_MEANS,
    DTYPE,
    LONG_POLICIES,
    MAX_RESIDUES,
    MODEL_DTYPES,
    OLD_DTYPE,
    OUTPUT_DTYPES,
    OVERLAP,
    POOLINGS,
)
from rd_hf.lazy import gc_paused
from rd_hf.options import real, whole


def build_parser() -> argparse.ArgumentParser:
    parser = command_parser("embed", __doc__)
    parser.add_argument("--model", metavar="ID_OR_DIR", help="reverse-distilled model: folder or Hub id")
    parser.add_argument("--revision", help="branch, tag or commit of a Hub model")
    parser.add_argument(
        "--input",
        nargs="+",
        metavar="FILE_OR_DATASET",
        help="FASTA, CSV, TSV, JSON lines (each also as .gz, .bz2, .xz, .zst, .lz4) or Parquet files, a Hub dataset "
        "owner/name[:split], or - for FASTA on standard input; several are read one after the other",
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="a new folder, or that of this same job")
    parser.add_argument(
        "--extend",
        metavar="DIR",
        help="a finished folder at a smaller level: only the backbones beyond it run. Model, inputs and options are "
        "those of that folder unless given; inputs may lie elsewhere now, but must be the same records",
    )

    what = parser.add_argument_group("what to compute")
    what.add_argument(
        "--level",
        nargs="+",
        default=[],
        metavar="L",
        help="level or levels, all from one pass of the largest (default: the model's largest). Smaller levels are the "
        "first dimensions of larger ones, so one level is enough unless --normalize is given",
    )
    what.add_argument(
        "--width",
        type=whole(1),
        metavar="N",
        help="the first N dimensions alone, of --level or of the whole family: only the backbones up to the smallest "
        "level that has so many run",
    )
    what.add_argument(
        "--whiten",
        action="store_true",
        help="centre, scale and weigh each level's block by the statistics that came with the bases, before anything "
        "is cut or normalised; the folder is never mixed with a plain one",
    )
    what.add_argument(
        "--pooling",
        choices=POOLINGS,
        default="mean",
        help="mean or max over residues (never cls, eos or padding), cls, residue (a row a residue), or positions "
        "(default mean)",
    )
    what.add_argument(
        "--one-pass",
        action="store_true",
        help="read every level out of the largest backbone, which alone is fetched and run: an approximation, of "
        "models fitted with rd-hf fit --one-pass, whose card says how near it comes; never mixed with exact ones",
    )
    what.add_argument(
        "--positions", nargs="+", type=whole(1), default=[], metavar="N", help="residues to return, from 1"
    )
    what.add_argument("--normalize", action="store_true", help="make vectors of length one, each level for itself")
    what.add_argument(
        "--dtype",
        choices=(*MODEL_DTYPES, OLD_DTYPE),
        metavar=f"{{{','.join(MODEL_DTYPES)}}}",
        help=f"what the model computes in, on every device and at every level (default {DTYPE}, or what the folder "
        "that is gone on with or extended was begun in). bfloat16 is faster on GPUs, and on CPUs that have it in "
        "hardware; appended columns then differ by a few per cent, see the README",
    )
    what.add_argument("--output-dtype", choices=OUTPUT_DTYPES, default="float32", help="stored as (default float32)")

    how = parser.add_argument_group("records")
    how.add_argument(
        "--long",
        choices=LONG_POLICIES,
        default="window",
        help="sequences beyond --max-length: window (overlapping windows, merged with tapered weights; the default, "
        "since no residue and no record is lost and the cost stays linear in length), truncate (the first residues "
        "only) or error (to the rejects)",
    )
    how.add_argument(
        "--max-length",
        type=whole(1),
        default=MAX_RESIDUES,
        metavar="N",
        help=f"residues seen at once (default {MAX_RESIDUES})",
    )
    how.add_argument(
        "--overlap",
        type=whole(0),
        default=OVERLAP,
        metavar="N",
        help=f"residues that windows share (default {OVERLAP})",
    )
    how.add_argument(
        "--strict",
        action="store_true",
        help="stop at the first record that would be rejected, and at input that looks like nucleotides",
    )
    how.add_argument(
        "--sequence-column", metavar="NAME", help="column of a table with sequences (default: sequence, ...)"
    )
    how.add_argument("--id-column", metavar="NAME", help="column of a table with ids (default: id, name, ...)")
    how.add_argument(
        "--positions-column", metavar="NAME", help="column of a table with each record's positions, from 1"
    )

    machine = parser.add_argument_group("machine")
    machine.add_argument(
        "--batch-tokens",
        type=whole(1),
        metavar="N",
        help="tokens a batch, padding included (default: 2,048 on a CPU, as its memory allows on a GPU); halved when a "
        "batch does not fit in memory",
    )
    machine.add_argument(
        "--window-tokens",
        type=whole(1),
        metavar="N",
        help="for a family larger than memory: hold one backbone at a time, loaded anew for every N tokens of batches, "
        "whose embeddings (4 bytes a dimension) are held meanwhile (default: hold all backbones)",
    )
    machine.add_argument("--device", metavar="D", help="torch device (default: a GPU by rank where there is one)")
    machine.add_argument(
        "--attn-implementation", metavar="A", help="sdpa, eager, flash_attention_2, ... (as transformers)"
    )
    machine.add_argument(
        "--part-records",
        type=whole(1),
        default=16384,
        metavar="N",
        help="records a file at most (default 16,384; the first have 1,024, so that processes can share small inputs)",
    )
    machine.add_argument(
        "--part-megabytes", type=whole(1), default=256, metavar="N", help="embeddings a file at most (default 256 MB)"
    )

    cluster = parser.add_argument_group("cluster")
    cluster.add_argument(
        "--engine",
        choices=("local", "ray"),
        default="local",
        help="local: this process, or those of accelerate launch (default); ray: workers of Ray Data, on this machine "
        "or with --address on a cluster. Either takes up what the other left off: the folder is the same",
    )
    cluster.add_argument(
        "--address",
        metavar="A",
        help="of a Ray cluster: auto for the one this machine belongs to, or host:port (default: this machine alone)",
    )
    cluster.add_argument(
        "--workers", type=whole(1), metavar="N", help="most Ray workers at once (default: as many as the cluster holds)"
    )
    cluster.add_argument(
        "--cpus-per-worker", type=whole(1), default=1, metavar="N", help="and threads of each, on CPUs (default 1)"
    )
    cluster.add_argument(
        "--gpus-per-worker", type=real(0), metavar="N", help="(default: one where the cluster has any, else none)"
    )
    cluster.add_argument(
        "--deduplicate",
        action="store_true",
        help="compute a sequence that repeats anywhere in the input once (by a shuffle over the cluster), not only "
        "where it repeats within a file of the output",
    )
    return parser


def run(args: argparse.Namespace, argv: list[str] | None) -> None:
    if args.extend is None and (args.model is None or args.input is None):
        build_parser().error("--model and --input are required, unless --extend names a folder that knows them")
    # Only now what takes seconds to import: --help and typing errors are answered at once.
    with gc_paused():
        from transformers.utils import logging as transformers_logging

        from rd_hf.embedding import EmbeddingOptions, JobSettings, run_job
        from rd_hf.embedding.extension import arguments, open_extendable
        from rd_hf.embedding.job import ending
        from rd_hf.embedding.manifest import dtype_of
        from rd_hf.launch import Processes, leave, processes

    transformers_logging.disable_progress_bar()
    news: list[str] = []
    if args.dtype == OLD_DTYPE:
        news.append(AUTO_MEANS)
        args.dtype = None
    if args.extend is not None:
        # Parsed once more with defaults that tell themselves from what the user gave.
        parser = build_parser()
        parser.set_defaults(**dict.fromkeys(vars(args), absent := object()))
        given = {name for name, value in vars(parser.parse_args(argv)).items() if value is not absent}
        given -= set() if args.dtype else {"dtype"}
        args = argparse.Namespace(**arguments(open_extendable(args.extend), vars(args), given))
    if args.dtype is None:
        args.dtype = dtype_of(args.output)
        if args.dtype != DTYPE:
            news.append(f"going on in {args.dtype}, as {args.output} was begun")
    settings = JobSettings(
        model=args.model,
        inputs=tuple(args.input),
        output=args.output,
        options=EmbeddingOptions(
            levels=tuple(args.level),
            pooling=args.pooling,
            positions=tuple(args.positions),
            dtype=args.dtype,
            output_dtype=args.output_dtype,
            normalize=args.normalize,
            long=args.long,
            max_length=args.max_length,
            overlap=args.overlap,
            batch_tokens=args.batch_tokens,
            width=args.width,
            whiten=args.whiten,
        ),
        revision=args.revision,
        sequence_column=args.sequence_column,
        id_column=args.id_column,
        positions_column=args.positions_column,
        strict=args.strict,
        part_records=args.part_records,
        part_bytes=args.part_megabytes << 20,
        attn_implementation=args.attn_implementation,
        device=args.device,
        window_tokens=args.window_tokens,
        extend=args.extend,
        one_pass=args.one_pass,
    )

    def tell() -> None:
        if news and not args.quiet:
            print(*news, sep="\n", file=sys.stderr)

    if args.engine == "ray":
        # Before anything is read: it may not be installed.
        import ray  # noqa: F401

        from rd_hf.embedding.ray import RaySettings, run_on_ray

        cluster = RaySettings(
            args.address, args.workers, args.cpus_per_worker, args.gpus_per_worker, deduplicate=args.deduplicate
        )
        tell()
        print(ending(run_on_ray(settings, cluster, show_progress=not args.quiet), args.output))
        return
    group = processes()
    if group.is_main:
        tell()
    joined: Processes | None = group
    try:
        summary = run_job(settings, group, show_progress=not args.quiet, hints=True)
    except KeyboardInterrupt:
        # The others may not have been: nobody waits for them.
        joined = None
        raise
    finally:
        leave(joined)
    if group.is_main:
        print(ending(summary, args.output))


def main(argv: list[str] | None = None) -> int:
    """Run the command; its exit code (see :mod:`rd_hf.commands._main`)."""
    return run_with_arguments(build_parser(), partial(run, argv=argv), argv)


if __name__ == "__main__":
    sys.exit(main())
