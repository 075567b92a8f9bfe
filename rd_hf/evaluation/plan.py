"""What is evaluated: every unit of a run, in an order that keeps embedding and probes busy at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from rd_hf.bases.chain import Basis, fit_chain
from rd_hf.bases.moments import JointMoments
from rd_hf.data.fasta import InputError
from rd_hf.evaluation.assays import Assay, one_hot, read_assay
from rd_hf.evaluation.embeddings import POOLINGS, Family, StateCache, embed_assay
from rd_hf.evaluation.probe import Features, ProbeOptions
from rd_hf.evaluation.representations import KINDS, Representation, all_maps, model_bases, one_pass_maps
from rd_hf.evaluation.runs import SHUFFLED_LABELS, Contender, Unit
from rd_hf.evaluation.splits import SCHEMES, Fold, FoldLabels, folds, low_n_folds


@dataclass(frozen=True)
class EvaluationOptions:
    """What an evaluation is asked to do.

    Attributes:
        representations: keys of :data:`rd_hf.evaluation.representations.KINDS`.
        poolings: of :data:`rd_hf.evaluation.embeddings.POOLINGS`.
        schemes: of :data:`rd_hf.evaluation.splits.SCHEMES`.
        repeats: seeded repeats of each scheme that can be repeated.
        low_n: training variants of the low-n curves; empty for none.
        control: also probe shuffled scores.
        probe: how ridge strengths are chosen.
        batch_tokens: budget of a forward pass.
        seed: of the random projection.
    """

    representations: tuple[str, ...] = tuple(KINDS)
    poolings: tuple[str, ...] = ("mean",)
    schemes: tuple[str, ...] = ("random", "by_mutations", "singles_to_multiples")
    repeats: int = 3
    low_n: tuple[int, ...] = (24, 96, 384)
    control: bool = True
    probe: ProbeOptions = field(default_factory=ProbeOptions)
    batch_tokens: int = 4096
    seed: int = 0

    def __post_init__(self) -> None:
        for given, known, what in (
            (self.representations, KINDS, "representation"),
            (self.poolings, POOLINGS, "pooling"),
            (self.schemes, SCHEMES, "split"),
        ):
            unknown = [name for name in given if name not in known]
            if unknown or not given:
                raise ValueError(f"unknown {what} {', '.join(unknown)}: choose from {', '.join(known)}")
        if self.repeats < 1:
            raise ValueError(f"the number of seeds must be positive, got {self.repeats}")
        if self.low_n and min(self.low_n) < 2 * self.probe.inner_folds:
            raise ValueError(f"low-n sizes start at {2 * self.probe.inner_folds} variants, got {min(self.low_n)}")


def read_assays(paths: Sequence[Path]) -> tuple[list[Assay], dict[str, str]]:
    """Read every assay that can be used; folders stand for the CSV files in them.

    Returns:
        The assays, by name, and the message for each file that cannot be used.

    Raises:
        InputError: two files of one name, or none at all.
    """
    files = [file for path in paths for file in (sorted(path.glob("*.csv")) if path.is_dir() else [path])]
    if not files:
        raise InputError(f"{', '.join(map(str, paths))}: no CSV file is there; give ProteinGym assays")
    assays: dict[str, Assay] = {}
    failed: dict[str, str] = {}
    for file in tqdm(files, desc="reading assays", unit="assay", disable=None):
        try:
            assay = read_assay(file)
        except InputError as error:
            failed[file.name] = str(error)
            tqdm.write(f"left out: {error}")
            continue
        if assay.name in assays:
            raise InputError(f"two files are named {assay.name}; results are told apart by name, so rename {file}")
        assays[assay.name] = assay
    return [assays[name] for name in sorted(assays)], failed


def family_bases(family: Family, moments: JointMoments | None) -> Sequence[Basis]:
    """The chain of one family.

    The model's own bases hold for its final states; at another depth, and where it holds none, the chain is fitted, by
    principal component regression with the model's numbers of directions.

    Raises:
        InputError: there are bases to be fitted, and no moments to fit them on.
    """
    if len(family.names) == 1 or (family.fitted and family.depth == 1):
        return model_bases(family.model)
    if moments is None:
        what = f"--depth {family.depth:g}" if family.fitted else f"{family.label} (--backbones)"
        raise InputError(f"{what} needs bases of its own; give --fit-data to fit them on")
    return fit_chain(moments, family.names, family.model.config.residual_directions)[0]


def family_maps(family: Family, moments: JointMoments | None, options: EvaluationOptions) -> list[Representation]:
    """Every contender of one family that needs its states.

    Raises:
        InputError: see :func:`family_bases`.
    """
    if family.model.config.one_pass:
        return one_pass_maps(family.model.config.nested_dims)
    bases = family_bases(family, moments) if "rd" in options.representations else ()
    return all_maps(family.names, family.widths, bases, moments, options.representations, options.seed)


def assay_folds(assay: Assay, labels: FoldLabels | None, options: EvaluationOptions) -> list[Fold]:
    """All folds of one assay: of the schemes and of the low-n curves."""
    result = [fold for scheme in options.schemes for fold in folds(assay, scheme, options.repeats, labels)]
    return result + low_n_folds(assay, options.low_n, options.repeats, labels)


def count_units(
    families: Sequence[Family], maps: Sequence[Sequence[Representation]], options: EvaluationOptions
) -> int:
    """Units an assay."""
    states = sum(len(contenders) for contenders in maps) * len(options.poolings)
    contenders = states + options.control * len(families) + ("one_hot" in options.representations)
    return contenders * options.repeats


def plan_units(
    families: Sequence[Family],
    maps: Sequence[Sequence[Representation]],
    assays: Sequence[Assay],
    labels: FoldLabels | None,
    options: EvaluationOptions,
    cache: Path,
) -> Iterator[Unit]:
    """Every unit of a run, embedding an assay when its turn comes.

    One-hot goes first: it needs no embedding, so that workers are busy while this process runs the backbones.

    Args:
        families: models in evaluation.
        maps: contenders of each, from :func:`family_maps`.
        labels: ProteinGym's folds, or None.
        cache: folder of pooled states.

    Raises:
        InputError: a backbone returns NaN or infinity.
    """
    ordered = sorted(assays, key=lambda assay: -len(assay.mutants))
    all_folds: Mapping[str, list[Fold]] = {assay.name: assay_folds(assay, labels, options) for assay in ordered}

    def repeats(
        contender: Contender, assay: Assay, features: Features, digest: str, how: Representation | None
    ) -> Iterator[Unit]:
        """One unit a repeat, so that a run with more seeds computes the new ones only."""
        for repeat in range(options.repeats):
            chosen = [fold for fold in all_folds[assay.name] if fold.repeat == repeat]
            if contender.labels == SHUFFLED_LABELS:
                chosen = [fold for fold in chosen if fold.scheme == "random"]
            yield Unit(
                contender=contender,
                assay=assay.name,
                assay_digest=assay.digest,
                scores=assay.scores,
                mutation_counts=assay.mutation_counts,
                features=features,
                feature_digest=digest,
                representation=how,
                folds=chosen,
                probe=options.probe,
            )

    if "one_hot" in options.representations:
        for assay in ordered:
            yield from repeats(Contender("", 1.0, "", "one_hot", ""), assay, one_hot(assay), "one-hot", None)
    for family, contenders in zip(families, maps, strict=True):
        store = StateCache(cache, family.fingerprint)
        variants = sum(len(assay.mutants) for assay in ordered)
        with tqdm(total=variants, desc=f"embedding with {family.label}", unit="variant", disable=None) as progress:
            for assay in ordered:
                states = embed_assay(family, assay, store, options.batch_tokens, progress)
                for pooling in options.poolings:
                    pooled = states.pooled(pooling)
                    digest = f"{family.fingerprint} {pooling}"
                    for how in contenders:
                        contender = Contender(family.label, family.depth, pooling, how.kind, how.level)
                        yield from repeats(contender, assay, pooled, digest, how)
                    if options.control and pooling == options.poolings[0]:
                        largest = next(how for how in contenders if how.level == family.names[-1])
                        contender = Contender(
                            family.label, family.depth, pooling, largest.kind, largest.level, SHUFFLED_LABELS
                        )
                        yield from repeats(contender, assay, pooled, digest, largest)
