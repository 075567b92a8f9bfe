"""Remote homology: domains with their classification, and who counts for whom.

The protocol is that of Kabir, Moldwin, Bromberg and Shehu (2024, Bioinformatics Advances vbae119): every domain is
compared with every other; those of the query's own family, itself included, are masked; those of the same superfamily
in another family are what is looked for; everything else is wrong. One level up, the superfamily is masked and the fold
is looked for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from rd_hf.data.fasta import InputError, read_fasta
from rd_hf.data.residues import RejectedSequenceError, clean_sequence
from rd_hf.evaluation.options import MASKED

# Parts of SCOP's concise classification string, "a.1.2.3": how many make each level.
DEPTHS = {"fold": 2, "superfamily": 3, "family": 4}
FASTA_ENDINGS = ("*.fasta", "*.fa", "*.fasta.gz", "*.fa.gz")


@dataclass(frozen=True)
class Domains:
    """Classified protein domains."""

    ids: tuple[str, ...]  # SCOP's, such as d1asha_
    sequences: tuple[str, ...] = field(repr=False)  # cleaned
    classes: tuple[str, ...] = field(repr=False)  # concise classification strings, such as a.1.1.2

    def groups(self, level: str) -> np.ndarray:
        """Number of each domain's group at a level of :data:`DEPTHS`: (n,) int64."""
        names = [".".join(name.split(".")[: DEPTHS[level]]) for name in self.classes]
        return np.unique(names, return_inverse=True)[1].astype(np.int64)

    def up_to(self, length: int) -> Domains:
        """Those of at most so many residues; InputError where there is none."""
        rows = [row for row in zip(self.ids, self.sequences, self.classes, strict=True) if len(row[1]) <= length]
        if not rows:
            raise InputError(f"no domain has {length} residues or fewer; raise --max-length")
        return Domains(*zip(*rows, strict=True))

    @property
    def digest(self) -> str:
        """Of everything: what a result depends on."""
        lines = zip(self.ids, self.sequences, self.classes, strict=True)
        return hashlib.sha256("\n".join(map(" ".join, lines)).encode()).hexdigest()


@dataclass(frozen=True)
class Relation:
    """What is looked for at one level."""

    name: str  # key of MASKED
    groups: np.ndarray = field(repr=False)  # whoever shares the query's is looked for, (n,) int64
    masked: np.ndarray = field(repr=False)  # whoever shares the query's does not count, (n,) int64; a finer division
    queries: np.ndarray = field(repr=False)  # rows that have someone to look for, (q,) int64

    @property
    def clusters(self) -> np.ndarray:
        """Group of each query, (q,) int64: the unit of inference, for its queries look for the same domains."""
        return self.groups[self.queries]

    @property
    def positives(self) -> np.ndarray:
        """How many each query looks for, (q,) int64."""
        return (np.bincount(self.groups)[self.groups] - np.bincount(self.masked)[self.masked])[self.queries]


def relation(name: str, groups: np.ndarray, masked: np.ndarray) -> Relation:
    """Queries are those with at least one domain of their group beyond the masked ones."""
    pairs = np.unique(np.stack((masked, groups)), axis=1)
    if len(np.unique(pairs[0])) < pairs.shape[1]:
        raise ValueError(f"{name}: domains that mask each other must look for the same group")
    queries = np.flatnonzero(np.bincount(groups)[groups] > np.bincount(masked)[masked])
    if not len(queries):
        raise ValueError(f"{name}: no domain has another one of its {name} to look for; leave that level out")
    return Relation(name, groups, masked, queries)


def relations(domains: Domains, names: Sequence[str] = tuple(MASKED)) -> list[Relation]:
    """The levels that are asked for."""
    return [relation(name, domains.groups(name), domains.groups(MASKED[name])) for name in names]


def read_domains(folder: str | Path) -> Domains:
    """Read the one FASTA file of a folder, whose headers are SCOP's: ``>sid sccs ...``."""
    folder = Path(folder)
    files = sorted({path for ending in FASTA_ENDINGS for path in folder.glob(ending)})
    if len(files) != 1:
        found = f"holds {len(files)} FASTA files" if folder.is_dir() else "is no folder"
        raise InputError(f"{folder} {found}; --data takes a folder with one, of SCOP domains")
    path = files[0]
    ids: dict[str, str] = {}
    seen: dict[str, str] = {}
    classes = []
    for record in read_fasta(path):
        words = record.description.split()
        parts = words[1].split(".") if len(words) > 1 else []
        if len(parts) != DEPTHS["family"] or not all(parts):
            raise InputError(
                f"{path}, record {record.number} ({record.id}): its header does not go on with a classification such "
                "as a.1.1.2; take the file as SCOPe publishes it"
            )
        if record.id in ids:
            raise InputError(f"{path}, record {record.number}: {record.id} is there already; keep one of the two")
        try:
            ids[record.id] = clean_sequence(record.sequence)
        except RejectedSequenceError as error:
            raise InputError(f"{path}, record {record.number} ({record.id}): {error}; remove it") from error
        if seen.setdefault(ids[record.id], record.id) != record.id:
            raise InputError(
                f"{path}, record {record.number}: {record.id} has the sequence of {seen[ids[record.id]]}, which would "
                "find it without any homology; keep one of the two"
            )
        classes.append(words[1])
    return Domains(tuple(ids), tuple(ids.values()), tuple(classes))


@dataclass(frozen=True)
class Published:
    """What others have published on the same domains."""

    summary: pd.DataFrame  # columns model, level, th, kind, n, auroc_mean, auprc_mean, hit1_mean, hit10_mean
    per_query: pd.DataFrame  # columns sid, sccs, n_true_pos, n_true_neg and MODEL.FIGURE; empty where absent

    def rows(self, level: str, kind: str | None = None) -> pd.DataFrame:
        """The summary's rows of a level, of one kind of mean or of all."""
        rows = self.summary[(self.summary["level"] == level) & (self.summary["th"] == 10)]
        return rows if kind is None else rows[rows["kind"] == kind]

    def disagreement(self, wanted: Relation, ids: Sequence[str]) -> dict[str, float]:
        """How far the summary and our queries are from the per-query table.

        Returns "queries", of theirs that are not ours or the reverse; "counts", the largest difference in the number of
        positives or negatives of a query; "means", the largest difference of a mean over queries or over superfamilies
        to the summary.
        """
        theirs = self.per_query.set_index("sid")
        names = [ids[row] for row in wanted.queries]
        sizes = np.bincount(wanted.groups)[wanted.clusters]
        ours = pd.DataFrame({"n_true_pos": wanted.positives, "n_true_neg": len(ids) - sizes}, index=names)
        common = ours.index.intersection(theirs.index)
        counts = (theirs.loc[common, ours.columns] - ours.loc[common]).abs().max().max()
        groups = theirs["sccs"].str.rsplit(".", n=1).str[0]
        apart = 0.0
        for row in self.rows(wanted.name).to_dict("records"):
            for figure in ("auroc", "auprc", "hit1", "hit10"):
                column = f"{row['model']}.{figure}"
                if column in theirs:
                    values = theirs[column]
                    if row["kind"] == "per_superfamily_mean":
                        values = values.groupby(groups).mean()
                    apart = max(apart, abs(float(values.mean()) - float(row[f"{figure}_mean"])))
        return {"queries": float(len(set(names) ^ set(theirs.index))), "counts": float(counts), "means": apart}


def read_published(folder: str | Path) -> Published | None:
    """Published figures that lie beside the domains, if any do: published_summary.tsv and, beside it,
    published_per_query_superfamily_th10.tsv.gz."""
    summary = Path(folder) / "published_summary.tsv"
    if not summary.exists():
        return None
    per_query = summary.with_name("published_per_query_superfamily_th10.tsv.gz")
    queries = pd.read_csv(per_query, sep="\t") if per_query.exists() else pd.DataFrame({"sid": []})
    return Published(pd.read_csv(summary, sep="\t"), queries)
