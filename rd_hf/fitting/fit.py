"""Fitting the bases of a family: sequences -> backbones -> joint moments -> bases, under accelerate.

A single read of the data. Batches are planned once, for all processes alike, and dealt to them by index; every process
keeps the moments of its batches and, now and then, writes them to disk with the list of those batches, so that a fit
that was killed runs the others alone. No embedding is ever kept.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from tqdm import tqdm
from transformers import PreTrainedModel

from rd_hf.bases.chain import Basis, FitReport, fit_chain
from rd_hf.bases.moments import JointMoments, NonFiniteStatesError
from rd_hf.bases.readout import Readout, fit_readout
from rd_hf.bases.whitening import Whitening, chain_whitening
from rd_hf.embedding.concurrency import Aside
from rd_hf.embedding.engine import is_out_of_memory
from rd_hf.embedding.layouts import layout_of
from rd_hf.embedding.transfer import all_moved, current, moved
from rd_hf.embedding.waiting import DeviceClock
from rd_hf.files import Workspace
from rd_hf.fitting.sample import Sample, Split, plan_batches, tuning_positions
from rd_hf.fitting.settings import FitOptions
from rd_hf.fitting.state import FitProgress, how_it_runs, settled
from rd_hf.memory import bound_kernels, trim_heap
from rd_hf.model.configuration_rd_esm import RDEsmConfig
from rd_hf.model.layers_rd_esm import backbone_arguments
from rd_hf.model.modeling_rd_esm import RDEsmModel

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FitResult:
    """Fitted bases, a report per level, how many residues they are of, and the readout if one was asked for.

    Attributes:
        run: how the states were made, as the model's record has it; see :func:`rd_hf.fitting.state.how_it_runs`.
        seconds: of this process's device, since its first batch: ``computing``, of them in ``moments``, and
            ``waiting`` for the host between batches.
    """

    bases: list[Basis]
    reports: list[FitReport]
    training_residues: int
    heldout_residues: int
    readout: Readout | None = None
    whitening: Whitening | None = None
    run: Mapping[str, Any] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)


# Of a batch what the model is called with, and where residues are among its tokens; both on the model's device.
Inputs = tuple[dict[str, Any], torch.Tensor]


def batch_inputs(model: RDEsmModel, batches: Sequence[Sequence[str]]) -> list[Inputs]:
    """Make batches of cleaned sequences ready, in padded rows or one packed row each, as the model takes them."""
    layout, device = layout_of(model), model.device
    found = []
    with current(device):
        for sequences in batches:
            residues = layout.residues([len(sequence) for sequence in sequences])
            found.append((all_moved(layout.arguments(sequences), device), moved(residues, device)))
    return found


@torch.inference_mode()
def backbone_states(
    model: RDEsmModel,
    batches: Sequence[Sequence[str]],
    layers: Sequence[int] = (),
    inputs: Sequence[Inputs] | None = None,
) -> list[list[torch.Tensor]]:
    """Final hidden states of every backbone, at residues only, then those of these layers of the largest.

    Batches of cleaned sequences go up the levels together, so that a model that loads each backbone when its turn comes
    loads it once; all their states are held until then. ``inputs``: of :func:`batch_inputs`, where they are made.

    Returns:
        For each batch one (residues, k_i) tensor per level, in the backbone's dtype, then one per layer.
    """
    made = batch_inputs(model, batches) if inputs is None else inputs
    ready = [(backbone_arguments(model.config, **one, long_input="whole"), residues) for one, residues in made]
    states: list[list[torch.Tensor]] = [[] for _ in batches]

    def run(levels: list[int], backbone: PreTrainedModel) -> None:
        own = layers if levels[-1] == len(model.config.levels) - 1 else ()
        for found, (arguments, residues) in zip(states, ready, strict=True):
            all_tokens = model.level_states(levels, backbone, arguments, own)
            found.extend(state.flatten(0, 1)[residues] for state in all_tokens)

    model.visit_backbones(run)
    return states


def _states(
    model: RDEsmModel, batches: Sequence[Sequence[str]], layers: Sequence[int], inputs: Sequence[Inputs] | None
) -> list[list[torch.Tensor]]:
    """As :func:`backbone_states`, in halves where memory is short."""
    try:
        return backbone_states(model, batches, layers, inputs)
    except (RuntimeError, MemoryError) as error:
        count = sum(map(len, batches))
        if not is_out_of_memory(error) or count == 1:
            raise
    logger.warning("out of memory with %d sequences at once: computed in halves; --batch-tokens sets less", count)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if len(batches) > 1:
        middle = len(batches) // 2
        return [one for half in (batches[:middle], batches[middle:]) for one in _states(model, half, layers, None)]
    (batch,), middle = batches, count // 2
    first, second = (_states(model, [half], layers, None)[0] for half in (batch[:middle], batch[middle:]))
    return [[torch.cat(pair) for pair in zip(first, second, strict=True)]]


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
    options = settled(options, model, state_folder, accelerator)
    batches = plan_batches(sample, options.batch_tokens or 1, tuning, layout_of(model).plan_all)
    bound_kernels()
    # One lock for all processes: the others wait for the main process at every turn.
    workspace = Workspace(state_folder, "a fit")
    if accelerator.is_main_process:
        workspace.claim()
    try:
        progress = FitProgress(Path(state_folder), model, sample, options, accelerator)
        seconds = _accumulate(model, sample, batches, progress, checkpoint_seconds, group_batches, show_progress)
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
    run = how_it_runs(model, options)
    return replace(_solve(moments, means, config, options), run=run, seconds=seconds)


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
) -> dict[str, float]:
    """Run the batches that are not done, and add their states to this process's moments; seconds of the device."""
    accelerator, names = progress.accelerator, model.config.level_names
    mine = progress.remaining(len(batches))
    logger.info("%d of %d batches are to be run by this process", len(mine), len(batches))
    processes = accelerator.num_processes
    label = "fitting" if processes == 1 else f"fitting (process 1 of {processes})"
    total = sum(len(sample.sequences[position]) for index in mine for position in batches[index][1])
    groups = [mine[start : start + group_batches] for start in range(0, len(mine), group_batches)]
    texts = [[[sample.sequences[position] for position in batches[index][1]] for index in group] for group in groups]
    model.eval()
    clock, adding = DeviceClock(model.device), DeviceClock(model.device)
    saved = time.monotonic()
    shown = accelerator.is_main_process and show_progress
    with (
        tqdm(total=total, desc=label, unit=" residues", unit_scale=True, disable=not shown) as bar,
        current(model.device),
        Aside() as aside,
    ):
        if model.device.type == "cuda":
            aside.start()
        # Those of the next group are made ready while the device has this one's.
        ready = aside.soon(partial(batch_inputs, model, texts[0] if texts else []))
        for place, group in enumerate(groups):
            inputs = ready()
            ready = aside.soon(partial(batch_inputs, model, texts[place + 1] if place + 1 < len(texts) else []))
            with clock.computing():
                found = _states(model, texts[place], progress.layers, inputs)
            for index, states, own in zip(group, found, texts[place], strict=True):
                split, positions = batches[index]
                if not progress.done:
                    _refuse_constant(states, names)
                try:
                    with clock.computing(), adding.computing():
                        progress.add(index, split, states, [len(sequence) for sequence in own])
                except NonFiniteStatesError as error:
                    # Behind the levels come layers of the last of them.
                    raise ValueError(
                        f"{error} (level {names[min(error.level, len(names) - 1)]}) on the batch that starts with "
                        f"record {sample.ids[positions[0]]!r}: check that backbone's weights, or use --dtype float32"
                    ) from error
                bar.update(len(states[0]))
            del found, states, inputs
            if time.monotonic() - saved >= checkpoint_seconds:
                aside.write(progress.saving())
                trim_heap()
                saved = time.monotonic()
        aside.write(progress.saving())
    logger.info("%s waited for the host %s", model.device, clock)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        progress.merge_earlier()
    share = adding.share  # which counts what is left to count
    logger.info("moments took %.1f s of them", adding.computing_seconds if share is not None else 0.0)
    return {
        "computing": clock.computing_seconds,
        "moments": adding.computing_seconds,
        "waiting": clock.waiting_seconds,
    }


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
