"""What do the appended directions of a model know that is new? Probes on each block beyond its prefix.

    python scripts/study.py blocks --model rd-esm2-mini --secondary-structure tasks/flip_secondary_structure \\
        --metal-binding tasks/bindpredict_metal --domains scope208/ --output blocks

For each block, what [prefix, block] predicts better than the prefix alone, and than [prefix, as many random directions
of the same residual]: secondary structure, amino acid and place of residues, metal sites, class, fold and length of
SCOP domains, and the compartment of the carried proteins. Intervals resample test sequences.

--output then holds report.md, blocks.parquet (one row per resample; draw 0 is the test set itself) and blocks.png. A
run that was stopped goes on with the same command.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial

from rd_hf.commands._arguments import command, command_parser, tell
from rd_hf.evaluation.options import RUN
from rd_hf.options import options_from
from studies.options import BlockOptions

GROUPS = {
    "what is evaluated": ("model", "secondary_structure", "metal_binding", "data", "output"),
    "how it is tested": ("train_chains", "validation_chains", "resamples"),
    "the run": ("threads", *RUN),
}


def build_parser() -> argparse.ArgumentParser:
    return command_parser("blocks", __doc__, BlockOptions, GROUPS, prog="python scripts/study.py blocks")


def run(args: argparse.Namespace) -> int:
    # Imported here, so that --help and a mistyped flag answer at once.
    import pandas as pd
    from threadpoolctl import threadpool_limits

    from rd_hf.evaluation.families import load_families, model_bases
    from rd_hf.evaluation.frame import Evaluation, stored_table
    from studies import block_probes

    options = options_from(BlockOptions, args)
    evaluation = Evaluation(options, "a report on blocks", "blocks.parquet", "blocks.png")
    (family,) = load_families(options)
    if len(family.names) < 2:
        raise ValueError(f"{options.model[0]} has one level and no residual block; give a reverse-distilled family")
    evaluation.claim()
    embeddings = block_probes.contenders(family.names, family.widths, model_bases(family))
    tables = []
    for label in block_probes.read_labels(family, options, evaluation.cache):
        path = evaluation.runs / f"{block_probes.digest(label, embeddings, options)}.parquet"
        with threadpool_limits(limits=options.threads):
            tables.append(stored_table(path, partial(block_probes.probe_label, label, embeddings, options)))
    results = pd.concat(tables, ignore_index=True)
    table = block_probes.summarise(results, family.names)
    evaluation.write_table("blocks.parquet", results)
    evaluation.write_figures({"blocks.png": block_probes.draw(table)})
    return tell(evaluation.finish(block_probes.render(family.label, table, "blocks.png")))


main = command(build_parser, run, extra="eval")


if __name__ == "__main__":
    sys.exit(main())
