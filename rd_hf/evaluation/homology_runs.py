"""From embeddings of domains to tidy rows: one row a query, one file a ranking, resumable."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from rd_hf.bases.moments import JointMoments
from rd_hf.evaluation.embeddings import Family, StateCache, embed_proteins
from rd_hf.evaluation.homology import Domains, Relation
from rd_hf.evaluation.plan import EvaluationOptions
from rd_hf.evaluation.retrieval import FIGURES, rank
from rd_hf.evaluation.runs import write_table
from rd_hf.evaluation.treatments import DOMAINS, RESIDUES, SEARCHED, TREATMENTS, candidates, mean_moments, treat
from rd_hf.evaluation.weight_search import FOLDS, STEPS, search_weights

# Part of every digest: raise it when the meaning of a column changes.
SCHEMA = 1


@dataclass(frozen=True)
class Ranked:
    """What is compared; the columns by which tables group.

    Attributes:
        model: label of the family.
        representation: its kind.
        level: largest backbone used.
        treatment: key of :data:`rd_hf.evaluation.treatments.TREATMENTS`, or one of those that labels chose.
        width: of the embedding.
        weights: of its blocks, as text; empty where all are equal.
    """

    model: str
    representation: str
    level: str
    treatment: str
    width: int
    weights: str = ""


COLUMNS = list(Ranked.__dataclass_fields__)


def weights_text(weights: Sequence[float]) -> str:
    """Weights of blocks as tables show them."""
    return " ".join(f"{weight:.3g}" for weight in weights)


def _digest(rows: torch.Tensor, domains: Domains, wanted: Relation, *more: object) -> str:
    """Of everything that a ranking depends on: the embeddings themselves, and who looks for whom."""
    digest = hashlib.sha256(f"{SCHEMA} {domains.digest} {more}".encode())
    digest.update(rows.float().contiguous().numpy().tobytes())
    digest.update(wanted.name.encode() + wanted.groups.tobytes() + wanted.masked.tobytes())
    return digest.hexdigest()[:24]


def _labelled(table: pd.DataFrame, contender: Ranked) -> pd.DataFrame:
    for name, value in asdict(contender).items():
        table[name] = pd.Categorical([value] * len(table)) if isinstance(value, str) else value
    return table


def evaluate_rows(
    rows: torch.Tensor, contender: Ranked, domains: Domains, wanted: Sequence[Relation], folder: Path
) -> pd.DataFrame:
    """Rank every query, or read what an earlier run found.

    Args:
        rows: embeddings of the domains, (n, width).
        folder: where results are kept.

    Returns:
        Columns: those of :class:`Ranked`, relation, query (row of the domain), cluster, and the figures of
        :data:`rd_hf.evaluation.retrieval.FIGURES`.
    """
    parts = []
    for relation in wanted:
        path = folder / f"{_digest(rows, domains, relation)}.parquet"
        if not path.exists():
            (ranking,) = rank(rows, [relation])
            part = pd.DataFrame(ranking.figures.astype(np.float32), columns=list(FIGURES))
            part.insert(0, "cluster", relation.clusters.astype(np.int32))
            part.insert(0, "query", relation.queries.astype(np.int32))
            part.insert(0, "relation", relation.name)
            write_table(part, path)
        parts.append(pd.read_parquet(path))
    return _labelled(pd.concat(parts, ignore_index=True), contender)


def search_rows(
    rows: torch.Tensor, widths: Sequence[int], contender: Ranked, domains: Domains, wanted: Relation, folder: Path
) -> pd.DataFrame:
    """Hits under weights of blocks that labels chose.

    Args:
        rows: embeddings whose blocks are weighted, (n, width).
        widths: of the blocks.
        contender: with the treatment that came before the weights.
        wanted: the level at which weights are chosen and judged.
        folder: where results are kept.

    Returns:
        Rows as :func:`evaluate_rows` has them, with hits of unrounded similarities alone, under two more treatments:
        TREATMENT + "labels", chosen on other superfamilies than those they are judged by, and TREATMENT + "best",
        judged by what chose them.
    """
    path = folder / f"{_digest(rows, domains, wanted, 'weights', list(widths), STEPS, FOLDS)}.parquet"
    if not path.exists():
        search = search_weights(rows.split(list(widths), dim=1), wanted)
        parts = []
        chosen = sorted({weights_text(weights) for weights in search.chosen.tolist()})
        for kind, hits, weights in (
            ("labels", search.hits, " or ".join(chosen)),
            ("best", search.best_hits, weights_text(search.best.tolist())),
        ):
            part = pd.DataFrame(np.nan, range(len(hits)), list(FIGURES), dtype=np.float32)
            part[["exact_hit1", "exact_hit10"]] = hits.astype(np.float32)
            part["query"], part["cluster"] = wanted.queries.astype(np.int32), wanted.clusters.astype(np.int32)
            parts.append(part.assign(relation=wanted.name, kind=kind, weights=weights))
        write_table(pd.concat(parts, ignore_index=True), path)
    table = pd.read_parquet(path)
    found = []
    for (kind, weights), part in table.groupby(["kind", "weights"], sort=False):
        named = replace(contender, treatment=f"{contender.treatment} + {kind}", weights=str(weights))
        found.append(_labelled(part.drop(columns=["kind", "weights"]), named))
    return pd.concat(found, ignore_index=True)


def domain_states(family: Family, domains: Domains, cache: Path, batch_tokens: int) -> np.ndarray:
    """Mean z of every domain, (n, K) float32, from the cache where they are there."""
    store = StateCache(cache, family.fingerprint)
    with tqdm(total=len(domains.ids), desc=f"embedding with {family.label}", unit="domain", disable=None) as bar:
        return embed_proteins(family, domains.ids, domains.sequences, store, batch_tokens, bar)


def evaluate_family(
    family: Family,
    moments: JointMoments | None,
    options: EvaluationOptions,
    domains: Domains,
    wanted: Sequence[Relation],
    cache: Path,
    folder: Path,
    search: bool,
) -> pd.DataFrame:
    """Every representation of one family under every treatment.

    Args:
        moments: of the fitting sequences, or None.
        options: representations, seed and the budget of a forward pass.
        wanted: what is looked for.
        cache: folder of pooled states.
        folder: where rankings are kept.
        search: whether labels may choose weights too, under names of their own.
    """
    states = domain_states(family, domains, cache, options.batch_tokens)
    known = {DOMAINS: mean_moments(states, family.widths)}
    if moments is not None:
        known[RESIDUES] = moments
    tables = []
    found = candidates(family, moments, options)
    for candidate in tqdm(found, desc=f"ranking with {family.label}", unit="embedding", disable=None):
        how = candidate.how
        rows = torch.from_numpy(how(states))
        for name in TREATMENTS:
            treated = treat(name, rows, candidate, known)
            if treated is None:
                continue
            embedded, weights = treated
            named = Ranked(family.label, how.kind, how.level, name, how.width, weights_text(weights))
            tables.append(evaluate_rows(embedded, named, domains, wanted, folder))
            if search and name in SEARCHED and len(candidate.blocks) > 1 and wanted[0].name == "superfamily":
                tables.append(search_rows(embedded, candidate.blocks, named, domains, wanted[0], folder))
    return pd.concat(tables, ignore_index=True)
