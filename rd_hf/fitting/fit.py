"""Fitting the bases of a family: sequences -> backbones -> joint moments -> bases, under accelerate.

A single read of the data. Batches are planned once, for all processes alike, and dealt to them by index; every process
keeps the moments of its batches and, now and then, writes them to disk with the list of those batches, so that a fit
that was killed runs the others alone. No embedding is ever kept.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise, zip_longest
from pathlib import Path

import torch
from accelerate import Accelerator
from tqdm import tqdm
from transformers import PreTrainedModel

from rd_hf.bases.chain import Basis, FitReport, fit_chain
from rd_hf.bases.moments import JointMoments, NonFiniteStatesError
from rd_hf.bases.readout import Readout, fit_readout
from rd_hf.bases.whitening import Whitening, chain_whitening
from rd_hf.data.batching import collate, residue_mask
from rd_hf.data.records import readable
from rd_hf.files import Workspace
from rd_hf.fitting.sample import Sample, Split, plan_batches, tuning_positions
from rd_hf.fitting.settings import FitOptions
from rd_hf.fitting.state import FitProgress
from rd_hf.memory import bound_kernels, trim_heap
from rd_hf.model.bases_rd_esm import RDEsmProjection, RDEsmReadout, RDEsmWhitening
from rd_hf.model.configuration_rd_esm import RDEsmConfig
from rd_hf.model.modeling_rd_esm import RDEsmModel

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FitResult:
    """Fitted bases, a report per level, how many residues they are of, and the readout if one was asked for."""

    bases: list[Basis]
    reports: list[FitReport]
    training_residues: int
    heldout_residues: int
    readout: Readout | None = None
    whitening: Whitening | None = None


@torch.inference_mode()
def backbone_states(
    model: RDEsmModel, batches: Sequence[Sequence[str]], layers: Sequence[int] = ()
) -> list[list[torch.Tensor]]:
    """Final hidden states of every backbone, at residues only, then those of these layers of the largest.

    Batches of cleaned sequences go up the levels together, so that a model that loads each backbone when its turn comes
    loads it once; all their states are held until then.

    Returns:
        For each batch one (residues, k_i) tensor per level, in the backbone's dtype, then one per layer.
    """
    device = model.device
    inputs, masks = [], []
    for sequences in batches:
        input_ids, attention_mask = collate(sequences)
        masks.append(residue_mask([len(sequence) for sequence in sequences], input_ids.shape[1]).to(device))
        inputs.append({"input_ids": input_ids.to(device), "attention_mask": attention_mask.to(device)})
    states: list[list[torch.Tensor]] = [[] for _ in batches]

    def run(levels: list[int], backbone: PreTrainedModel) -> None:
        own = layers if levels[-1] == len(model.config.levels) - 1 else ()
        for found, arguments, mask in zip(states, inputs, masks, strict=True):
            found.extend(state[mask] for state in model.level_states(levels, backbone, arguments, own))

    model.visit_backbones(run)
    return states


def fitted_config(config: RDEsmConfig, options: FitOptions) -> RDEsmConfig:
    """Return the config that a fit with these options gives: what does not fit is found before hours of work.

    Raises:
        ValueError: widths, residual directions or block weights do not fit the family.
    """
    directions = list(options.residual_directions or config.residual_directions)
    weights, names = options.block_weights, config.level_names
    if weights is not None and len(weights) != len(names):
        raise ValueError(f"{len(weights)} block weights for {len(names)} levels ({', '.join(names)}): give one a level")
    return RDEsmConfig(levels=config.levels, residual_directions=directions)


def fit_bases(
    model: RDEsmModel,
    sample: Sample,
    options: FitOptions,
    state_folder: str | Path,
    accelerator: Accelerator,
    resume: bool = True,
    checkpoint_seconds: float = 60.0,
    group_batches: int = 1,
    window_batches: int | None = None,
    show_progress: bool = True,
) -> FitResult:
    """Run the backbones over the sample once, then solve the chain in closed form.

    Args:
        model: the family; its bases are not read.
        sample: from :func:`draw_sample`, the same in every process; so is the result.
        options: of the fit.
        state_folder: where moments are kept meanwhile; those of an unfinished fit are taken up.
        accelerator: single process, or any number under ``accelerate launch``.
        resume: without effect, and gone in the next version: an unfinished fit is always taken up.
        checkpoint_seconds: time between two writes of the moments.
        group_batches: batches whose states are held at once, for a model that holds one backbone at a time.
        window_batches: deprecated name of ``group_batches``.
        show_progress: whether the main process shows a bar.

    Raises:
        ValueError: too few residues, an unfinished fit of other settings, NaN in a backbone's output.
    """
    if window_batches is not None:
        warnings.warn("window_batches is called group_batches now", FutureWarning, stacklevel=2)
        group_batches = window_batches
    config = fitted_config(model.config, options)
    names, widths = config.level_names, config.backbone_widths
    training = sample.residues(heldout=False)
    if training <= widths[0]:
        raise ValueError(
            f"{training} residues are too few to fit on: level {names[0]} is {widths[0]} wide and "
            f"needs more than {widths[0]} residues; give more sequences"
        )
    tuning = frozenset() if options.one_pass is None else tuning_positions(sample, options.seed)
    batches = plan_batches(sample, options.batch_tokens, tuning)
    bound_kernels()
    # One lock for all processes: the others wait for the main process at every turn.
    workspace = Workspace(state_folder, "a fit")
    if accelerator.is_main_process:
        workspace.claim()
    try:
        progress = FitProgress(Path(state_folder), model, sample, options, accelerator)
        _accumulate(model, sample, batches, progress, checkpoint_seconds, group_batches, show_progress)
    finally:
        workspace.leave()
    moments = {split: _reduced(own, accelerator) for split, own in progress.moments.items()}
    means = moments.pop("means")
    seen, expected = sum(split.count for split in moments.values()), sum(map(len, sample.sequences))
    if seen != expected:
        raise RuntimeError(
            f"the moments hold {seen} residues where the sample has {expected}: {state_folder} is inconsistent, "
            "delete it and fit again"
        )
    return _solve(moments, means, config, options)


def _solve(
    moments: Mapping[Split, JointMoments], means: JointMoments, config: RDEsmConfig, options: FitOptions
) -> FitResult:
    """Everything in closed form, from the moments of each split of the sample, and of the means of sequences."""
    names, levels = config.level_names, len(config.levels)
    kind, alpha = options.regression, options.ridge_alpha
    training, tuning, heldout = moments["training"], moments.get("tuning"), moments["heldout"]
    # The chain is fitted on all that is not held out, whether or not a readout chooses its ridge by some of it.
    states = training.first_levels(levels)
    if tuning is not None:
        states = JointMoments.from_state(states.state(), device=training.device)
        states.merge(tuning.first_levels(levels))
    judged_on = heldout.first_levels(levels)
    bases, reports = fit_chain(states, names, config.residual_directions, kind, alpha, judged_on)
    whitening = chain_whitening(states, bases, options.block_weights, sequence_means=means)
    result = FitResult(bases, reports, states.count, heldout.count, whitening=whitening)
    if tuning is None:
        return result
    readout, figures = fit_readout(training, tuning, bases, names, kind, alpha, heldout)
    reports = [replace(report, one_pass=own) for report, own in zip(reports, figures, strict=True)]
    return replace(result, reports=reports, readout=readout)


def _accumulate(
    model: RDEsmModel,
    sample: Sample,
    batches: Sequence[tuple[Split, list[int]]],
    progress: FitProgress,
    checkpoint_seconds: float,
    group_batches: int,
    show_progress: bool,
) -> None:
    """Run the batches that are not done, and add their states to this process's moments."""
    accelerator, names = progress.accelerator, model.config.level_names
    mine = progress.remaining(len(batches))
    logger.info("%d of %d batches are to be run by this process", len(mine), len(batches))
    processes = accelerator.num_processes
    label = "fitting" if processes == 1 else f"fitting (process 1 of {processes})"
    total = sum(len(sample.sequences[position]) for index in mine for position in batches[index][1])
    model.eval()
    saved = time.monotonic()
    shown = accelerator.is_main_process and show_progress
    with tqdm(total=total, desc=label, unit=" residues", unit_scale=True, disable=not shown) as bar:
        for start in range(0, len(mine), group_batches):
            group = mine[start : start + group_batches]
            sequences = [[sample.sequences[position] for position in batches[index][1]] for index in group]
            found = backbone_states(model, sequences, progress.layers)
            for index, states in zip(group, found, strict=True):
                split, positions = batches[index]
                if not progress.done:
                    _refuse_constant(states, names)
                try:
                    progress.add(index, split, states, [len(sample.sequences[position]) for position in positions])
                except NonFiniteStatesError as error:
                    # Behind the levels come layers of the last of them.
                    raise ValueError(
                        f"{error} (level {names[min(error.level, len(names) - 1)]}) on the batch that starts with "
                        f"record {sample.ids[positions[0]]!r}: check that backbone's weights, or use --dtype float32"
                    ) from error
                bar.update(len(states[0]))
            del found, states
            if time.monotonic() - saved >= checkpoint_seconds:
                progress.save()
                trim_heap()
                saved = time.monotonic()
    progress.save()
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        progress.merge_earlier()


def _refuse_constant(states: Sequence[torch.Tensor], names: Sequence[str]) -> None:
    """Stop where a backbone gives all residues the same state: its weights are zero, or not its own."""
    for name, state in zip(names, states, strict=False):
        if len(state) > 1 and bool((state == state[0]).all()):
            raise ValueError(
                f"the backbone of level {name} gives the same hidden state for all {len(state)} residues of the first "
                "batch: its weights are empty; fetch or save them again"
            )


def _reduced(moments: JointMoments, accelerator: Accelerator) -> JointMoments:
    """The moments of all processes together, in every process: about the common mean, sums and products add."""
    if accelerator.num_processes == 1:
        return moments
    count = torch.tensor([moments.count], dtype=torch.int64, device=moments.device)
    total = int(accelerator.reduce(count, reduction="sum"))
    moments.recentre(accelerator.reduce(moments.mean() * moments.count, reduction="sum") / max(total, 1))
    state = moments.state()
    for name in ("sum", "products"):
        state[name] = accelerator.reduce(state[name], reduction="sum")
    return JointMoments.from_state({**state, "count": torch.tensor(total)}, device=moments.device)


def install_bases(
    model: RDEsmModel, result: FitResult, options: FitOptions, sample: Sample, sources: Iterable[str]
) -> None:
    """Put fitted bases into the model (rounded to float32) and their record into its config."""
    config = model.config
    config.residual_directions = [basis.directions.shape[1] for basis in result.bases]
    model.projections = torch.nn.ModuleList(_projection(basis).to(model.device) for basis in result.bases)
    # Those of other bases, if there were any.
    model.whitening = config.whitening = None
    if config.readout is not None:
        config.readout = None
        del model.readout
    if result.readout is not None:
        layers = list(options.one_pass or ())
        config.readout = {"layers": layers}
        model.readout = _readout(result.readout, layers).to(model.device)
    if result.whitening is not None:
        criterion = "given" if options.block_weights else "each level's backbone"
        install_whitening(model, result.whitening, of="residues", criterion=criterion)
    # The others are recorded with what came of them.
    record = {name: value for name, value in asdict(options).items() if name not in ("one_pass", "block_weights")}
    config.bases = {
        **record,
        "num_sequences": len(sample.sequences) - len(sample.heldout),
        "num_heldout_sequences": len(sample.heldout),
        "num_residues": result.training_residues,
        "num_heldout_residues": result.heldout_residues,
        "num_distinct_sequences": sample.distinct,
        "fitted_on": "accumulated",
        "data": source_names(sources),
    }


def source_names(sources: Iterable[str]) -> list[str]:
    """What the data of a fit are called in its record: files by their names alone."""
    return [readable(Path(source).name if Path(source).exists() else source) for source in sources]


def _projection(basis: Basis) -> RDEsmProjection:
    prefix_width, backbone_width = basis.regression.shape
    projection = RDEsmProjection(prefix_width, backbone_width, basis.directions.shape[1])
    projection.load_state_dict(vars(basis))
    return projection


def _readout(readout: Readout, layers: Sequence[int]) -> RDEsmReadout:
    prefix_width, width = readout.last.regression.shape
    module = RDEsmReadout(layers, width, prefix_width, readout.last.directions.shape[1])
    module.last = _projection(readout.last)
    module.state_means.copy_(readout.feature_mean.view(-1, width))
    module.prefix_mean.copy_(readout.embedding_mean)
    module.weights.copy_(readout.weights.view(-1, width, prefix_width))
    return module


def install_whitening(model: RDEsmModel, whitening: Whitening, **record: str | float) -> None:
    """Put a whitening of its blocks into a model (rounded to float32), and where it comes from into its config.

    For bases that came without: whiten by a set of your own, then save the model. The record says what the statistics
    are ``of`` ("residues", "proteins"), and the ``criterion`` of the weights. Grids to round to
    (``--output-dtype int8``) are those of its ``spreads``, and none without.

    Raises:
        ValueError: the blocks are not those of the model.
    """
    widths, own = (
        [wide - narrow for narrow, wide in pairwise([0, *model.config.nested_dims.values()])],
        whitening.widths,
    )
    if own != widths:
        raise ValueError(f"a whitening of blocks {own} does not fit a model whose blocks are {widths} wide")
    module = RDEsmWhitening(widths, whitening.weights, bool(whitening.spreads))
    parts = zip_longest(module, whitening.means, whitening.maps, whitening.weights, whitening.spreads)
    for block, mean, matrix, weight, spread in parts:
        # A weight of zero leaves nothing of its map.
        state = {"mean": mean, "map": matrix / weight if weight else matrix}
        block.load_state_dict(state if spread is None else state | {"spread": spread})
    model.whitening = module.to(model.device)
    grids = {"grids": True} if whitening.spreads else {}
    model.config.whitening = {"weights": list(whitening.weights), **grids, **record}
