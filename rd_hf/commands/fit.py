"""Fit the bases of a family on protein sequences, and save the nested model.

    rd-hf fit --config rd-esm2-650M --input uniref50.fasta.gz --num-sequences 5000 --output my-model
    rd-hf fit --backbones 8M=facebook/esm2_t6_8M_UR50D mine=my-finetuned-esm2 --input uniref50.fasta.gz --output mine
    accelerate launch --num_processes 8 -m rd_hf fit ...      (GPUs)
    torchrun --nproc_per_node 8 -m rd_hf fit ...              (CPUs)

The sequences are read once; memory does not grow with their number. A fit that was stopped goes on with the same
command, and gives the same bases. With several machines, --output must lie on a file system that all see. Where it
computes is for accelerate to say, so that there is no --device: on GPUs where there are any, and on the CPU with
ACCELERATE_USE_CPU=true before the command.

--backbones makes a chain of any encoders of proteins that read ESM-2's tokens: ESM-2, ESM-1b, ESM-1v, DPLM, ESM-C and
fine-tuned ones, Hub ids and folders mixed, smallest first, each pinned to the commit it has now. Where widths do not
grow, --keep says how many directions each level adds. REPO#LAYER is that backbone as if it ended after a layer; levels
that are layers of one backbone share its weights and its pass: "L10=R#10 L20=R#20 L33=R" costs one model. A
reverse-distilled family stands for its levels: "rd-esm2-mini 8M=my-esm2-8M" puts an 8M on top of the three
of the mini family, "0.3M=rd-esm2-mini" is one of them, and "a=rd-esm2-mini:2.7M#4" a layer.

--one-pass adds a readout: the nested embedding out of the largest backbone's layers alone, an approximation that
AutoModel.from_pretrained(..., one_pass=True) and rd-hf embed --one-pass compute at the cost of that one backbone:

    rd-hf fit --config rd-esm2-650M --one-pass --input uniref50.fasta.gz --num-sequences 5000 --output my-model

--output then holds the model (config, bases, remote code, tokenizer, card; backbones too with --form full),
fit_report.json and fit_report.png.
"""

from __future__ import annotations

import argparse

from rd_hf.commands._arguments import command, command_parser
from rd_hf.fitting.settings import FitOptions, FitSettings
from rd_hf.options import add_options, options_from


def build_parser() -> argparse.ArgumentParser:
    parser = command_parser("fit", __doc__)
    job = parser.add_argument_group("the job")
    add_options(job.add_mutually_exclusive_group(required=True), FitSettings, "config", "backbones")
    add_options(job, FitSettings, "revision_of", "data", "output", "resume")
    sample = parser.add_argument_group("the sample")
    add_options(sample, FitOptions, "num_sequences", "seed", "heldout_fraction", "max_length")
    add_options(sample, FitSettings, "sequence_column")
    maths = parser.add_argument_group("the maths")
    add_options(maths, FitOptions, "regression", "ridge_alpha")
    add_options(maths, FitSettings, "keep")
    add_options(maths, FitOptions, "block_weights")
    add_options(maths, FitSettings, "one_pass")
    run = parser.add_argument_group("the run")
    add_options(run, FitSettings, "form", "max_shard_size", "dtype", "compile")
    add_options(run, FitOptions, "batch_tokens")
    add_options(run, FitSettings, "group_tokens", "checkpoint_seconds")
    return parser


def run(args: argparse.Namespace) -> None:
    from rd_hf.fitting import run_fit
    from rd_hf.launch import processes

    settings = options_from(FitSettings, args, options=options_from(FitOptions, args))
    group = processes()
    summary = run_fit(settings, group, on_sample=print, show_progress=not args.quiet)
    if group.is_main:
        print(summary)


main = command(build_parser, run)
