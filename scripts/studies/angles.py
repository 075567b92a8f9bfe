"""Are the leading dimensions of a larger model those of the smaller one? Principal angles between levels.

    python scripts/study.py angles --model rd-esm2-mini --input example --output angles

For each two neighbouring levels, the spaces that their first dimensions span: of the nested embedding (the same by
construction), of the leading principal components of the concatenation, and of those of the backbone's own state.
Angles are between functions of a residue, over the residues of --input.

--output then holds report.md, angles.parquet and angles.png.
"""

from __future__ import annotations

import argparse
import sys

from rd_hf.commands._arguments import command, command_parser, tell
from rd_hf.evaluation.options import FIT, RUN
from rd_hf.options import options_from
from studies.options import AnglesOptions

GROUPS = {
    "what is evaluated": ("model", "dimensions", "output"),
    "fitting sequences": FIT,
    "the run": ("threads", *RUN),
}


def build_parser() -> argparse.ArgumentParser:
    return command_parser("angles", __doc__, AnglesOptions, GROUPS, prog="python scripts/study.py angles")


def run(args: argparse.Namespace) -> int:
    # Imported here, so that --help and a mistyped flag answer at once.
    from rd_hf.evaluation.families import family_bases, load_families
    from rd_hf.evaluation.frame import Evaluation
    from rd_hf.evaluation.representations import chain_maps
    from studies.consistency import angle_rows, angles_figure, angles_table

    options = options_from(AnglesOptions, args)
    evaluation = Evaluation(options, "a comparison of levels", "angles.parquet", "angles.png")
    (family,) = load_families(options)
    evaluation.claim()
    moments = evaluation.moments(family)
    if moments is None:
        raise ValueError("angles are between levels: give a family of two levels or more")
    chain = chain_maps("rd", family.names, family.widths, family_bases(family, moments))
    rows = angle_rows(family.names, moments, chain, options.dimensions)
    evaluation.write_table("angles.parquet", rows)
    evaluation.write_figures({"angles.png": angles_figure(rows)})
    notes = [f"{family.label}: angles over {moments.count:,} residues.", *evaluation.notes]
    parts = ["# Principal angles between levels", *notes, "![angles.png](angles.png)", angles_table(rows)]
    return tell(evaluation.finish("\n\n".join(parts) + "\n"))


main = command(build_parser, run, extra="eval")


if __name__ == "__main__":
    sys.exit(main())
