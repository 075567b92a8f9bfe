"""Which nested form is chosen, on which assays, and what the others show: table, figure, retrieval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
import torch
from matplotlib.figure import Figure

from rd_hf.evaluation import statistics
from rd_hf.evaluation.assays import Assay
from rd_hf.evaluation.families import Family
from rd_hf.evaluation.frame import Evaluation
from rd_hf.evaluation.homology import Domains, relations
from rd_hf.evaluation.homology_runs import Ranked, domain_states, evaluate_rows
from rd_hf.evaluation.plots import finish_axis
from rd_hf.evaluation.report import condition
from rd_hf.evaluation.representations import Representation
from rd_hf.evaluation.tables import SIGNED, between, markdown_table, number, percent
from rd_hf.evaluation.treatments import DOMAINS, Candidate, mean_moments, treat
from studies.forms import READ_OUT, REFERENCES, TODAY
from studies.options import NestedOptions, ReadoutOptions
from studies.readouts import TODAY as LINEAR

TREATED = ("plain", "whitened")


def development_assays(assays: Sequence[Assay], options: NestedOptions | ReadoutOptions) -> set[str]:
    """Names of the smallest assays that have enough variants; ValueError where none is left to report on."""
    usable = sorted((assay for assay in assays if len(assay.mutants) >= options.variants), key=lambda a: len(a.mutants))
    chosen = {assay.name for assay in usable[: options.development]}
    if len(usable) < options.development or len(chosen) == len(assays):
        raise ValueError(
            f"{options.development} assays to choose on, and others to report on, are more than the {len(assays)} of "
            f"--assays, of which {len(usable)} have {options.variants} variants: give more, or lower --development"
        )
    return chosen


def scores_of(results: pd.DataFrame, development: set[str]) -> pd.DataFrame:
    """One row per form, step and assay: columns form, step, assay, width, score, development."""
    scores = condition(statistics.assay_scores(results), "random")
    scores = scores.rename(columns={"representation": "form", "level": "step"})
    chosen = scores["assay"].isin(development)
    return scores[["form", "step", "assay", "width", "score"]].assign(development=chosen).reset_index(drop=True)


def by_assay(scores: pd.DataFrame, development: bool) -> pd.DataFrame:
    """Mean over the steps: assays in rows, forms in columns."""
    own = scores[scores["development"] == development]
    return own.pivot_table(index="assay", columns="form", values="score", sort=False).dropna()


def compared(scores: pd.DataFrame, form: str, reference: str) -> dict[str, float]:
    """A form less a reference on the assays to report on, over those steps at which both are equally wide."""
    own = scores[~scores["development"] & scores["form"].isin([form, reference])]
    equal = own.groupby("step")["width"].nunique() == 1
    pair = own[own["step"].map(equal)].pivot_table(index="assay", columns="form", values="score")
    pair = pair.reindex(columns=[form, reference]).dropna()
    return statistics.compare(pair[form].to_numpy(), pair[reference].to_numpy())


def choose(scores: pd.DataFrame) -> str:
    """The form of the highest mean on the development assays, of those that keep the prefix."""
    means = by_assay(scores, development=True).mean()
    return str(means.drop([READ_OUT, *REFERENCES]).idxmax())


def retrieval(
    family: Family,
    maps: Sequence[Representation],
    widths: Sequence[int],
    domains: Domains,
    evaluation: Evaluation,
    batch_tokens: int,
) -> pd.DataFrame:
    """hit@10 of superfamilies, every domain against every other: forms in rows, treatments in columns.

    ``widths`` are those of the prefix's blocks, which are whitened one by one, as the one that is appended.
    """
    states = domain_states(family, domains, evaluation.cache, batch_tokens)
    known = {DOMAINS: mean_moments(states, family.widths)}
    wanted = relations(domains, ["superfamily"])
    found: dict[str, dict[str, float]] = {}
    for how in maps:
        nested = how.kind not in ("raw", "components")
        blocks = (*widths, how.width - sum(widths)) if nested else (how.width,)
        rows = torch.from_numpy(how(states))
        for treatment in TREATED:
            treated = treat(treatment, rows, Candidate(how, blocks), known)
            assert treated is not None, "the domains' moments are known"
            contender = Ranked(family.label, how.kind, how.level, treatment, how.width)
            table = evaluate_rows(treated[0], contender, domains, wanted, evaluation.runs)
            found.setdefault(how.kind, {})[treatment] = float(table["hit10"].mean())
    return pd.DataFrame(found).T


def forms_figure(scores: pd.DataFrame) -> Figure:
    """Each form less today's on the assays to report on, with its paired interval."""
    table = by_assay(scores, development=False)
    pairs = {form: statistics.compare(table[form].to_numpy(), table[TODAY].to_numpy()) for form in table.columns}
    order = sorted((form for form in pairs if form != TODAY), key=lambda form: pairs[form]["difference"])
    figure = Figure(figsize=(7.2, 0.32 * len(order) + 1.1), layout="constrained")
    axis = figure.subplots()
    chosen = choose(scores)
    for place, form in enumerate(order):
        pair = pairs[form]
        colour, marker = ("#999999", "x") if form in REFERENCES else ("#0072B2", "o")
        colour, marker = ("#D55E00", "D") if form == chosen else (colour, marker)
        axis.plot([pair["difference_low"], pair["difference_high"]], [place, place], color=colour)
        axis.plot(pair["difference"], place, marker, color=colour)
    axis.set_yticks(range(len(order)), [f"{form} (chosen)" if form == chosen else form for form in order])
    axis.axvline(0.0, color="#000000", linewidth=0.8)
    axis.set_title(f"less today's block, {len(table)} assays, 95 % intervals", fontsize="medium")
    finish_axis(axis, "difference of mean Spearman")
    return figure


def render_forms(
    scores: pd.DataFrame, found: pd.DataFrame | None, notes: Sequence[str], failed: Mapping[str, str]
) -> str:
    """The report: what was chosen, every form beside today's, and each step.

    Args:
        scores: from :func:`scores_of`.
        found: from :func:`retrieval`.
        notes: sentences on how the run was done.
        failed: message for each assay left out.
    """
    chosen, steps = choose(scores), list(scores["step"].unique())
    few, many = by_assay(scores, development=True), by_assay(scores, development=False)
    by_step = scores[~scores["development"]].pivot_table(index="form", columns="step", values="score")
    parts = ["# Nested forms at equal width", *notes]
    if failed:
        parts.append("\n".join(f"- left out: {message}" for message in failed.values()))
    parts.append("![nested_forms.png](nested_forms.png)")
    header = ["form", "development", *steps, "mean", "less today's", "95 %", "wins", "less raw, equal width", "95 %"]
    header += [] if found is None else [f"hit@10, {name}" for name in TREATED]
    rows = []
    candidates = [form for form in few.columns if form not in REFERENCES]
    for form in sorted(candidates, key=lambda form: -few[form].mean()) + list(REFERENCES):
        cells = [f"**{form}**" if form == chosen else form, number(few[form].mean())]
        hits = [] if found is None else [number(found.loc[form, name]) for name in TREATED]
        if form not in many:
            rows.append([*cells, *[""] * (len(header) - len(cells) - len(hits)), *hits])
            continue
        values = many[form].to_numpy()
        cells += [*(number(by_step.loc[form, step]) for step in steps), number(values.mean())]
        for reference in (TODAY, "raw"):
            if form == reference:
                cells += [""] * (3 if reference == TODAY else 2)
                continue
            today = reference == TODAY
            pair = statistics.compare(values, many[TODAY].to_numpy()) if today else compared(scores, form, reference)
            own = [number(pair["difference"], SIGNED), between(pair["difference_low"], pair["difference_high"], SIGNED)]
            own += [percent(pair["wins"])] if today else []
            cells += own
        rows.append([*cells, *hits])
    parts.append(markdown_table(header, rows))
    rows = []
    for form in dict.fromkeys((chosen, READ_OUT)):
        for step in steps:
            own = scores[~scores["development"] & (scores["step"] == step)]
            pair = own.pivot(index="assay", columns="form", values="score").dropna()
            for reference in (TODAY, "raw"):
                if form == reference:
                    continue
                both = statistics.compare(pair[form].to_numpy(), pair[reference].to_numpy())
                interval = between(both["difference_low"], both["difference_high"], SIGNED)
                rows.append(
                    [form, step, reference, number(both["difference"], SIGNED), interval, percent(both["wins"])]
                )
    parts += ["## Step by step", markdown_table(["form", "step", "less", "difference", "95 %", "wins"], rows)]
    return "\n\n".join(parts) + "\n"


def render_readouts(
    results: pd.DataFrame, cosines: Mapping[tuple[str, str], float], notes: Sequence[str], failed: Mapping[str, str]
) -> str:
    """The report of the readouts: cosine to the exact level and score, each less today's.

    Args:
        results: tidy table of :func:`rd_hf.evaluation.dms.evaluate_unit`.
        cosines: by readout and level, smallest level first.
        notes, failed: as in :func:`render_forms`.
    """
    scores = condition(statistics.assay_scores(results), "random")
    kinds, levels = (list(dict.fromkeys(key[place] for key in cosines)) for place in (0, 1))
    by_level = scores.pivot_table(index="representation", columns="level", values="score")
    means = scores.pivot_table(index="assay", columns="representation", values="score")
    parts = ["# Readouts in one pass", *notes]
    if failed:
        parts.append("\n".join(f"- left out: {message}" for message in failed.values()))
    header = ["readout", *(f"cosine, {level}" for level in levels), *(f"Spearman, {level}" for level in levels)]
    header += ["mean", "less today's", "95 %", "wins"]
    rows = []
    for kind in kinds:
        cells = [kind, *(number(cosines[kind, level]) for level in levels)]
        cells += [*(number(by_level.loc[kind, level]) for level in levels), number(means[kind].mean())]
        pair = statistics.compare(means[kind].to_numpy(), means[LINEAR].to_numpy())
        interval = between(pair["difference_low"], pair["difference_high"], SIGNED)
        own = [number(pair["difference"], SIGNED), interval, percent(pair["wins"])]
        rows.append([*cells, *([""] * 3 if kind == LINEAR else own)])
    return "\n\n".join([*parts, markdown_table(header, rows)]) + "\n"
