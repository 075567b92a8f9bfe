"""Remote homology: classified domains, who counts for whom, and how well a query's own come out on top by cosine.

The protocol is that of Kabir, Moldwin, Bromberg and Shehu (2024, Bioinformatics Advances vbae119): every domain is
compared with every other; those of the query's own family, itself included, are masked; those of the same superfamily
in another family are what is looked for; everything else is wrong. One level up, the superfamily is masked and the fold
is looked for. Figures of one query, with P positives, N negatives and similarities s:

    hit@k     1 where one of the k most similar is positive
    AUROC     share of pairs of a positive and a negative that are in order, ties counting half
    AUPRC     average precision: mean over positives of the precision at their similarity

Ties are broken by no order that a file happens to have: hit@k is its expectation over all orders of what ties, and the
other two do not depend on it.

Every other choice of this package is made without a label. The search for weights of blocks is made WITH labels, to
tell how far a choice without them is from what could be had; each superfamily's queries are judged with weights that
the queries of other superfamilies have chosen, so that even this bound has not seen what it is judged by.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from sklearn.model_selection import GroupKFold

from rd_hf.data.fasta import read_fasta
from rd_hf.data.records import InputError
from rd_hf.data.residues import RejectedSequenceError, clean_sequence
from rd_hf.evaluation.options import MASKED

# Parts of SCOP's concise classification string, "a.1.2.3": how many make each level.
DEPTHS = {"fold": 2, "superfamily": 3, "family": 4}
FASTA_ENDINGS = ("*.fasta", "*.fa", "*.fasta.gz", "*.fa.gz")
# Of similarities rounded to float16 before ranking, as in the published protocol; "exact": of those as computed.
FIGURES = ("hit1", "hit10", "auroc", "auprc", "exact_hit1", "exact_hit10")
HITS = (1, 10)
# Queries whose similarities are held at once; in a search, of each block of columns: 256 x 6,784 x 4 are 28 MB.
CHUNK, SEARCH_CHUNK = 512, 256
# Weights that a search tries: only ratios matter, so that the largest of each combination is the last step.
STEPS = (0.0, 0.25, 0.5, 1.0)
FOLDS = 5
# In place of the inner products of what is no negative: below all others, whatever the weights.
LEAST = -1e30


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
        raise InputError(f"{folder} {found}; --domains takes a folder with one, of SCOP domains")
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


def query_chunks(wanted: Relation, size: int) -> Iterator[list[np.ndarray]]:
    """Positions among the queries, (b,) int64 of each group, as many whole groups at once as fit ``size``."""
    order = np.argsort(wanted.clusters, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(wanted.clusters[order])) + 1)
    chunk: list[np.ndarray] = []
    for group in groups:
        if chunk and sum(map(len, chunk)) + len(group) > size:
            yield chunk
            chunk = []
        chunk.append(group)
    yield chunk


def hit_chance(above: np.ndarray, level: np.ndarray, positives: np.ndarray, k: int) -> np.ndarray:
    """Chance that one of the first k is positive, over all orders of what ties with the best positive: (q,) float64.

    Of each query: ``above`` negatives are more similar than the best positive, and ``level`` negatives and
    ``positives`` are as similar as it, itself included. The chance is 1 - C(level, m) / C(level + positives, m), where
    m = k - above places are open to them.
    """
    missed = np.ones(len(above))
    for place in range(k):
        open_to_them = above + place < k
        left = np.maximum(level - place, 0)
        missed = np.where(open_to_them, missed * left / np.maximum(level + positives - place, 1), missed)
    return np.where(above < k, 1.0 - missed, 0.0)


def sortable(values: torch.Tensor) -> np.ndarray:
    """Float16 rounded from ``values`` as int16 of the same order, which sort in linear time; ties stay ties."""
    # Adding zero makes -0.0 the 0.0 that it equals.
    bits = (values.half() + 0.0).view(torch.int16).numpy()
    return np.where(bits < 0, bits ^ 0x7FFF, bits)


def _best_counts(positives: np.ndarray, negatives: np.ndarray) -> list[int]:
    """``above``, ``level`` and ``positives`` of :func:`hit_chance` for one query: similarities (P,) and (N,)."""
    best = positives.max()
    return [int((negatives > best).sum()), int((negatives == best).sum()), int((positives == best).sum())]


def _areas(positives: np.ndarray, negatives: np.ndarray) -> tuple[float, float]:
    """AUROC and AUPRC of one query: similarities (P,), and (N,) sorted upwards."""
    ordered = np.sort(positives)
    below = np.searchsorted(negatives, ordered, side="left")
    up_to = np.searchsorted(negatives, ordered, side="right")
    # Positives and negatives at or above each one's similarity: what ties is met at once.
    found = len(ordered) - np.searchsorted(ordered, ordered, side="left")
    wrong = len(negatives) - below
    auroc = (below + up_to).sum() / (2 * len(negatives) * len(ordered))
    return float(auroc), float((found / (found + wrong)).mean())


def rank(rows: torch.Tensor, wanted: Relation) -> np.ndarray:
    """Figures of every query by cosine: (q, 6) float64 in the order of :data:`FIGURES`.

    Rows are embeddings, (n, d) of any float dtype, one per domain; NaN or infinity among them is a ValueError.
    """
    if not torch.isfinite(rows).all():
        raise ValueError("an embedding is NaN or infinite, which no ranking can place")
    # Inner products are then cosines; a row of zeros is like no other. In float32 similarities err by 1e-7 to 1e-6, far
    # below the gaps between neighbours in a ranking.
    units = torch.nn.functional.normalize(rows.double(), dim=1).float()
    counts = np.empty((2, len(wanted.queries), 3), dtype=np.int64)
    found = np.empty((len(wanted.queries), 2))
    for groups in query_chunks(wanted, CHUNK):
        cosines = units[wanted.queries[np.concatenate(groups)]] @ units.T
        exact, rounded = cosines.numpy(), sortable(cosines)
        start = 0
        for group in groups:
            # One group's queries have the same negatives: all that is outside it.
            members = np.flatnonzero(wanted.groups == wanted.clusters[group[0]])
            outside = np.delete(np.arange(len(units)), members)
            # Integers of two bytes are sorted by their digits.
            negatives = np.sort(rounded[start : start + len(group), outside], axis=1, kind="stable")
            for row, query in enumerate(group):
                positives = members[wanted.masked[members] != wanted.masked[wanted.queries[query]]]
                ranked, line = rounded[start + row, positives], exact[start + row]
                found[query] = _areas(ranked, negatives[row])
                counts[0, query] = _best_counts(ranked, negatives[row])
                counts[1, query] = _best_counts(line[positives], line[outside])
            start += len(group)
    hits = [hit_chance(of[:, 0], of[:, 1], of[:, 2], k) for of in counts for k in HITS]
    return np.column_stack((hits[0], hits[1], found, hits[2], hits[3]))


def weight_grid(blocks: int) -> np.ndarray:
    """Every combination of :data:`STEPS` whose largest weight is the largest step: (g, blocks) float64."""
    combinations = np.array(list(itertools.product(STEPS, repeat=blocks)))
    return combinations[combinations.max(axis=1) == max(STEPS)]


def ranks_above(blocks: Sequence[torch.Tensor], wanted: Relation, grid: np.ndarray) -> np.ndarray:
    """Negatives more similar than the best positive, for every query and every weighting of blocks.

    The cosine of weighted concatenations is a sum over blocks, so that each block's inner products are formed once.

    Blocks are (n, d_i) of any float dtype, the grid of weights is (g, blocks), and what is returned (g, q) int32.
    """
    columns = [block.float() for block in blocks]
    squares = torch.stack([block.double().square().sum(dim=1) for block in blocks])
    factors = torch.from_numpy(grid**2)
    # A row's own length scales all of its similarities, which changes no ranking.
    lengths = (factors @ squares).clamp_min(1e-30).rsqrt().float()
    groups, masked = torch.from_numpy(wanted.groups), torch.from_numpy(wanted.masked)
    result = np.empty((len(grid), len(wanted.queries)), dtype=np.int32)
    for chunk in map(np.concatenate, query_chunks(wanted, SEARCH_CHUNK)):
        rows = torch.from_numpy(wanted.queries[chunk])
        products = torch.stack([own[rows] @ own.T for own in columns])
        same = groups[rows][:, None] == groups
        query, positive = (same & (masked[rows][:, None] != masked)).nonzero(as_tuple=True)
        mine = products[:, query, positive]
        flat = products.masked_fill_(same, LEAST).flatten(1)
        for number, factor in enumerate(factors.float()):
            best = torch.full((len(rows),), -torch.inf)
            best.scatter_reduce_(0, query, (factor @ mine) * lengths[number, positive], "amax")
            cosines = (factor @ flat).view(len(rows), -1).mul_(lengths[number])
            result[number, chunk] = (cosines > best[:, None]).sum(dim=1).numpy()
    return result


class WeightSearch(NamedTuple):
    """What labels would choose; hits are hit@1 and hit@10 of every query, (q, 2) float64."""

    hits: np.ndarray  # of weights chosen on other superfamilies
    folds: np.ndarray  # fold of every query, (q,) int64
    chosen: np.ndarray  # weights of each fold, (folds, blocks) float64
    best: np.ndarray  # weights with the highest hit@10 over all queries, (blocks,) float64
    best_hits: np.ndarray  # of those, judged by the queries that chose them


def search_weights(
    blocks: Sequence[torch.Tensor], wanted: Relation, folds_of: np.ndarray | None = None
) -> WeightSearch:
    """Choose weights of blocks (see :func:`ranks_above`) by hit@10, each fold's on the groups of the others.

    ``folds_of`` is the fold of every query, (q,) int64; by default whole groups are drawn together.
    """
    folds = folds_of
    if folds is None:
        if (groups := len(np.unique(wanted.clusters))) < FOLDS:
            raise ValueError(f"{groups} groups of queries are too few for {FOLDS} folds: weights cannot be searched")
        folds = np.empty(len(wanted.queries), dtype=np.int64)
        for number, (_, test) in enumerate(GroupKFold(FOLDS).split(folds, groups=wanted.clusters)):
            folds[test] = number
    grid = weight_grid(len(blocks))
    above = ranks_above(blocks, wanted, grid)
    hits = above[:, :, None] < np.array(HITS)
    picks = [int(hits[:, folds != fold, 1].mean(axis=1).argmax()) for fold in range(folds.max() + 1)]
    best = int(hits[:, :, 1].mean(axis=1).argmax())
    judged = hits[np.array(picks)[folds], np.arange(len(folds))]
    return WeightSearch(judged.astype(np.float64), folds, grid[picks], grid[best], hits[best].astype(np.float64))
