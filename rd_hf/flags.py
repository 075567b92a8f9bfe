"""What a flag that several commands have is called, means and takes: written once, used by all of them.

The words are those of the table of flags in CONTRIBUTING.md. Imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rd_hf.options import option, whole

# What commands that read proteins take, where no narrower words are said.
READS = (
    "FASTA, CSV, TSV, JSON lines (each also as .gz, .bz2, .xz, .zst, .lz4) or Parquet files, also at "
    "hf://datasets/owner/name/FILE, https:// or s3://, a Hub dataset owner/name[:split], example (the 1,000 proteins "
    "that the package carries), or - for FASTA on standard input; several are read one after the other"
)
# How a model is named.
NAMES = "folder, Hub id, or rd-esm2-mini, which the package carries"
# One rule for all that write one.
FOLDER = "a new folder, or that of this same job, which goes on where it stopped"
FILE = "replaced where it exists"
GPU = "(default: a GPU where there is one)"


@dataclass(frozen=True)
class Flag:
    """One flag, for all commands that have it.

    Attributes:
        typed: how, if not ``--`` and its name.
        means: the first words of its help.
        value: what its value is called in the help (``metavar``); None for a switch, or where choices are listed.
        kind: of the value, as in :func:`rd_hf.options.option`.
    """

    means: str
    value: str | None = None
    typed: tuple[str, ...] = ()
    kind: Any = None


FLAGS = {
    "input": Flag("proteins", "INPUT", ("-i", "--input")),
    "output": Flag("where the result goes", None, ("-o", "--output")),
    "embeddings": Flag("folder of embeddings", "EMBEDDINGS", ("embeddings",)),
    "model": Flag("reverse-distilled model", "MODEL", ("-m", "--model")),
    "revision": Flag("branch, tag or commit of a Hub model", "REVISION"),
    "config": Flag("the family", "FAMILY", ("--config",)),
    "backbones": Flag("a chain of any encoders", "NAME=REPO[@REVISION][:LEVEL][#LAYER]"),
    "level": Flag("level of the embedding", "LEVEL", ("--level",)),
    "one_pass": Flag("read levels out of the largest backbone alone", None),
    "whiten": Flag("whiten each level's block", None),
    "block_weights": Flag("factor of each level's whitened block", "N"),
    "pooling": Flag("what becomes of a sequence's residues", None),
    "normalize": Flag("divide each vector by its Euclidean length, each level for itself", None),
    "dtype": Flag("what the backbones compute in", None),
    "compile": Flag("compile the backbones' layers (torch.compile)", None),
    "output_dtype": Flag("what is stored", None),
    "layout": Flag(
        "whole vectors in one column (plain), or what each level adds in a column of its own (blocks)", None
    ),
    "num_sequences": Flag("sequences drawn at random", "N", ("--num-sequences",), whole(1)),
    "seed": Flag("seed of what is drawn at random", "N", ("--seed",)),
    "max_length": Flag("residues that a model sees at once", "N", (), whole(1)),
    "batch_tokens": Flag("tokens per batch, padding included", "N", (), whole(1)),
    "group_tokens": Flag("for a family larger than memory", "N", (), whole(1)),
    "device": Flag("device of torch: cpu, cuda, cuda:1, mps", "DEVICE"),
    "threads": Flag("threads", "N", (), whole(1)),
    "sequence_column": Flag("column of a table with sequences", "COLUMN"),
    "id_column": Flag("column of a table with ids", "COLUMN"),
    "strict": Flag("stop at the first record that would be rejected", None),
    "part_records": Flag("records per file at most", "N", (), whole(1)),
    "part_megabytes": Flag("megabytes of embeddings per file at most", "N", ("--part-megabytes",), whole(1)),
    "labels": Flag("table of ids and labels", "FILE"),
    "neighbours": Flag("neighbours of each protein", "N", ("-k", "--neighbours")),
    "cache": Flag("folder of what later runs use again", "DIR"),
    "repo_id": Flag("repo on the Hub", "OWNER/NAME"),
    "license": Flag("Hub licence id of the bases, for the card", "LICENSE"),
    "json": Flag("print JSON", None),
    "repeats": Flag("repeats of every split that is drawn", "N", ("--repeats",), whole(1)),
    "assays": Flag("deep mutational scans", "PATH"),
    "representations": Flag("contenders", "NAME"),
    "low_n": Flag("training variants of the low-n curves", "N", (), whole(1)),
    "variants": Flag("draw at most N variants of each assay", "N", (), whole(1)),
    "development": Flag("the N smallest assays that have --variants variants", "N", (), whole(1)),
    "domains": Flag("folder with one FASTA file of SCOP domains", "DIR", ("--domains",)),
}


def flag(name: str, default: Any, more: str = "", *, former: Sequence[str] = (), **argument: Any) -> Any:
    """A field of a dataclass (see :func:`rd_hf.options.option`) that is typed as a flag which several commands have.

    Behind the first words of its help stands ``more``: what is particular here, and the default where it is not the
    field's.
    """
    known = FLAGS[name]
    own = {"flags": known.typed, "kind": known.kind} | ({} if known.value is None else {"metavar": known.value})
    return option(default, known.means + more, former=former, **own | argument)
