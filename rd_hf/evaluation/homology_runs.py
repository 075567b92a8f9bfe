"""The evaluation on remote homologues: one row per query, one file per ranking, and the report made of them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from rd_hf.bases.moments import JointMoments
from rd_hf.evaluation import homology, homology_report
from rd_hf.evaluation.embeddings import embed_proteins
from rd_hf.evaluation.families import Family, load_families
from rd_hf.evaluation.frame import Evaluated, Evaluation, stored_table
from rd_hf.evaluation.homology import FIGURES, Domains, Relation, rank, relations
from rd_hf.evaluation.options import FITTED_KINDS, EvaluationOptions, HomologyOptions
from rd_hf.evaluation.progress import progress_bar
from rd_hf.evaluation.treatments import DOMAINS, RESIDUES, SEARCHED, TREATMENTS, candidates, mean_moments, treat

# Part of every digest: raise it when the meaning of a column changes.
SCHEMA = 1
PLURALS = {"superfamily": "superfamilies", "fold": "folds"}


@dataclass(frozen=True)
class Ranked:
    """What is compared; the columns by which tables group."""

    model: str
    representation: str
    level: str  # largest backbone used
    treatment: str  # key of TREATMENTS, or one of LABELLED
    width: int
    weights: str = ""  # of its blocks, as text; empty where all are equal


def evaluate_homology(options: HomologyOptions) -> Evaluated:
    """Rank every domain by every embedding, and write the report."""
    evaluation = Evaluation(options, "an evaluation of homology", "results.parquet")
    domains, published = homology.read_domains(options.data), homology.read_published(options.data)
    if options.max_length is not None:
        # Another set of domains: what was published holds for it no longer.
        domains, published = domains.up_to(options.max_length), None
    wanted = relations(domains, options.levels)
    evaluation.claim()
    families = load_families(options, one_pass=True)
    tables = []
    for family in families:
        moments = evaluation.moments(family, (*FITTED_KINDS, "whitened_fit"))
        places = evaluation.cache, evaluation.runs
        tables.append(evaluate_family(family, moments, options, domains, wanted, *places, options.search))
    results = pd.concat(tables, ignore_index=True)
    evaluation.write_table("results.parquet", results)
    levels = {family.label: family.names for family in families}
    summary = homology_report.summary(results)
    figures = {}
    for number, (model, names) in enumerate(levels.items(), start=1):
        tag = "" if len(levels) == 1 else f"_{number}"
        own = summary[summary["model"] == model]
        figures[f"hit10_by_level{tag}.png"] = homology_report.level_figure(own, names)
    evaluation.write_figures(figures)
    counts = ", ".join(
        f"{len(relation.queries):,} queries of {len(set(relation.clusters)):,} {PLURALS[relation.name]}"
        for relation in wanted
    )
    evaluation.notes.insert(
        0,
        f"{len(domains.ids):,} domains, {counts}. Cosine of means over residues; the query's own family is masked "
        "(superfamily, at the level of the fold). hit@k is its expectation over all orders of ties. Intervals resample "
        "superfamilies (folds, at that level); p flips the signs of their differences, q is its false discovery rate "
        "over all pairs shown. No treatment but those marked `labels` and `best` has seen a label.",
    )
    check = {}
    if published is not None and len(published.per_query) and wanted[0].name == "superfamily":
        check = published.disagreement(wanted[0], domains.ids)
    report = homology_report.render(results, summary, levels, published, check, evaluation.notes, list(figures))
    return evaluation.finish(report, shown_until="Every figure", rows=len(results))


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

    Pooled states lie in ``cache``, rankings in ``folder``; in a search labels may choose weights too, under names of
    their own.
    """
    states = domain_states(family, domains, cache, options.batch_tokens)
    known = {DOMAINS: mean_moments(states, family.widths)}
    if moments is not None:
        known[RESIDUES] = moments
    tables = []
    found = candidates(family, moments, options)
    for candidate in progress_bar(found, desc=f"ranking with {family.label}", unit="embedding"):
        how = candidate.how
        rows = torch.from_numpy(how(states))
        for name in TREATMENTS:
            treated = treat(name, rows, candidate, known)
            if treated is None:
                continue
            embedded, weights = treated
            named = Ranked(family.label, how.kind, how.level, name, how.width, _text(weights))
            tables.append(evaluate_rows(embedded, named, domains, wanted, folder))
            if search and name in SEARCHED and len(candidate.blocks) > 1 and wanted[0].name == "superfamily":
                tables.append(search_rows(embedded, candidate.blocks, named, domains, wanted[0], folder))
    return pd.concat(tables, ignore_index=True)


def domain_states(family: Family, domains: Domains, cache: Path, batch_tokens: int) -> np.ndarray:
    """Mean z of every domain, (n, K) float32, from the cache where they are there."""
    with progress_bar(total=len(domains.ids), desc=f"embedding with {family.label}", unit="domain") as bar:
        return embed_proteins(family, domains.ids, domains.sequences, cache, batch_tokens, bar)


def _text(weights: Sequence[float]) -> str:
    """Weights of blocks as tables show them."""
    return " ".join(f"{weight:.3g}" for weight in weights)


def _file(folder: Path, rows: torch.Tensor, domains: Domains, wanted: Relation, *more: object) -> Path:
    """Named after all that a ranking depends on: the embeddings themselves, and who looks for whom."""
    digest = hashlib.sha256(f"{SCHEMA} {domains.digest} {more}".encode())
    digest.update(rows.float().contiguous().numpy().tobytes())
    digest.update(wanted.name.encode() + wanted.groups.tobytes() + wanted.masked.tobytes())
    return folder / f"{digest.hexdigest()[:24]}.parquet"


def _labelled(table: pd.DataFrame, contender: Ranked) -> pd.DataFrame:
    for name, value in asdict(contender).items():
        table[name] = pd.Categorical([value] * len(table)) if isinstance(value, str) else value
    return table


def evaluate_rows(
    rows: torch.Tensor, contender: Ranked, domains: Domains, wanted: Sequence[Relation], folder: Path
) -> pd.DataFrame:
    """Rank every query by embeddings of the domains, (n, width), or read what an earlier run found.

    Columns: relation, query (row of the domain), cluster, the figures of the ranking, and those of :class:`Ranked`.
    """
    parts = [stored_table(_file(folder, rows, domains, one), partial(_ranked, rows, one)) for one in wanted]
    return _labelled(pd.concat(parts, ignore_index=True), contender)


def _ranked(rows: torch.Tensor, wanted: Relation) -> pd.DataFrame:
    figures = zip(FIGURES, rank(rows, wanted).astype(np.float32).T, strict=True)
    return pd.DataFrame({"relation": wanted.name, **_queries(wanted), **dict(figures)})


def _queries(wanted: Relation) -> dict[str, np.ndarray]:
    return {"query": wanted.queries.astype(np.int32), "cluster": wanted.clusters.astype(np.int32)}


def search_rows(
    rows: torch.Tensor, widths: Sequence[int], contender: Ranked, domains: Domains, wanted: Relation, folder: Path
) -> pd.DataFrame:
    """Hits under weights of blocks, ``widths`` wide, that labels chose.

    Rows as :func:`evaluate_rows` has them, with hits of unrounded similarities alone, under two more treatments:
    TREATMENT + "labels", chosen on other superfamilies than those they are judged by, and TREATMENT + "best", judged by
    what chose them.
    """

    def searched() -> pd.DataFrame:
        search = homology.search_weights(rows.split(list(widths), dim=1), wanted)
        chosen = " or ".join(sorted({_text(weights) for weights in search.chosen.tolist()}))
        parts = []
        best = _text(search.best.tolist())
        for kind, hits, weights in (("labels", search.hits, chosen), ("best", search.best_hits, best)):
            part = pd.DataFrame(np.nan, range(len(hits)), list(FIGURES), dtype=np.float32)
            part[["exact_hit1", "exact_hit10"]] = hits.astype(np.float32)
            parts.append(part.assign(**_queries(wanted), relation=wanted.name, kind=kind, weights=weights))
        return pd.concat(parts, ignore_index=True)

    table = stored_table(
        _file(folder, rows, domains, wanted, "weights", list(widths), homology.STEPS, homology.FOLDS), searched
    )
    found = []
    for (kind, weights), part in table.groupby(["kind", "weights"], sort=False):
        named = replace(contender, treatment=f"{contender.treatment} + {kind}", weights=str(weights))
        found.append(_labelled(part.drop(columns=["kind", "weights"]), named))
    return pd.concat(found, ignore_index=True)
