"""Fitting the bases of a family: sequences -> backbones -> joint moments -> bases, under accelerate.

One streaming pass. Batches are laid out once, for all processes alike, and dealt to them by index; every
process keeps the moments of what it has seen and, now and then, writes them to disk together with the list of
batches they hold. After a kill the files are merged and only the batches in none of them are run, with any
number of processes. No embedding is ever kept.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
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
from rd_hf.data.text import readable
from rd_hf.fitting.one_pass import tuning_positions
from rd_hf.fitting.sample import FitOptions, Sample, SamplePart, plan_batches
from rd_hf.fitting.state import FitProgress, fit_settings, open_state, state_workspace
from rd_hf.memory import bound_kernels, trim_heap
from rd_hf.model.bases_rd_esm import RDEsmProjection, RDEsmReadout, RDEsmWhitening
from rd_hf.model.configuration_rd_esm import RDEsmConfig
from rd_hf.model.modeling_rd_esm import RDEsmModel


@dataclass(frozen=True)
class FitResult:
    """Fitted bases, a report a level, what they were fitted on, the one-pass readout where one was asked for, and what
    the blocks are whitened by."""

    bases: list[Basis]
    reports: list[FitReport]
    training_residues: int
    heldout_residues: int
    readout: Readout | None = None
    whitening: Whitening | None = None


@torch.inference_mode()
def backbone_states(
    model: RDEsmModel, window: Sequence[Sequence[str]], layers: Sequence[int] = ()
) -> list[list[torch.Tensor]]:
    """Final hidden states of every backbone at residues only.

    Args:
        window: batches of cleaned sequences. They go up the levels together, so that a model that loads each
            backbone when its turn comes loads it once a window; all their states are held until then.
        layers: of the largest backbone, whose states are wanted too.

    Returns:
        For each batch one (residues, k_i) tensor a level, in the backbone's dtype, then one a layer.
    """
    device = model.device
    inputs, kept = [], []
    for sequences in window:
        input_ids, attention_mask = collate(sequences)
        kept.append(residue_mask([len(sequence) for sequence in sequences], input_ids.shape[1]).to(device))
        inputs.append({"input_ids": input_ids.to(device), "attention_mask": attention_mask.to(device)})
    states: list[list[torch.Tensor]] = [[] for _ in window]

    def run(levels: list[int], backbone: PreTrainedModel) -> None:
        own = layers if levels[-1] == len(model.config.levels) - 1 else ()
        for found, arguments, rows in zip(states, inputs, kept, strict=True):
            found.extend(state[rows] for state in model.level_states(levels, backbone, arguments, own))

    model.visit_backbones(run)
    return states


def reduce_moments(moments: JointMoments, accelerator: Accelerator) -> JointMoments:
    """The moments of all processes together, in every process.

    All are first expressed about the common mean, after which sums and products simply add.
    """
    if accelerator.num_processes == 1:
        return moments
    count = torch.tensor([moments.count], dtype=torch.int64, device=moments.device)
    total = int(accelerator.reduce(count, reduction="sum"))
    mean = accelerator.reduce(moments.mean() * moments.count, reduction="sum") / max(total, 1)
    moments.recentre(mean)
    state = moments.state()
    for name in ("sum", "products"):
        state[name] = accelerator.reduce(state[name], reduction="sum")
    state["count"] = torch.tensor(total)
    return JointMoments.from_state(state, device=moments.device)


def check_options(config: RDEsmConfig, options: FitOptions) -> RDEsmConfig:
    """The config that a fit with these options gives, so that what does not fit is said before hours of work.

    Raises:
        ValueError: widths, residual directions or block weights do not fit the family.
    """
    directions = list(options.residual_directions or config.residual_directions)
    if options.block_weights is not None and len(options.block_weights) != len(config.levels):
        raise ValueError(
            f"{len(options.block_weights)} block weights for {len(config.levels)} levels "
            f"({', '.join(config.level_names)}): give one a level"
        )
    return RDEsmConfig(levels=config.levels, residual_directions=directions)


def fit_bases(
    model: RDEsmModel,
    sample: Sample,
    options: FitOptions,
    state_folder: str | Path,
    accelerator: Accelerator,
    resume: bool = False,
    checkpoint_seconds: float = 60.0,
    window_batches: int = 1,
) -> FitResult:
    """One pass of the backbones over the sample, then the chain in closed form.

    Args:
        model: the family; its bases are not read.
        sample: from :func:`draw_sample`, the same in every process.
        options: see :class:`FitOptions`.
        state_folder: where moments are kept while the pass runs.
        accelerator: single process, or any number under ``accelerate launch``.
        resume: continue an unfinished fit.
        checkpoint_seconds: time between two writes of the moments.
        window_batches: batches whose states are held at once, for a model that holds one backbone at a time.

    Returns:
        The same result in every process.

    Raises:
        ValueError: too few residues, an unfinished fit of other settings, NaN in a backbone's output.
    """
    config = check_options(model.config, options)
    widths = config.backbone_widths
    training = sample.residues(heldout=False)
    if training <= widths[0]:
        raise ValueError(
            f"{training} residues are too few to fit on: level {model.config.level_names[0]} is {widths[0]} wide and "
            f"needs more than {widths[0]} residues; give more sequences"
        )
    bound_kernels()
    state_folder = Path(state_folder)
    # One lock for all processes: the others wait for the main process at every turn.
    workspace = state_workspace(state_folder)
    if accelerator.is_main_process:
        workspace.claim()
    try:
        moments = _accumulate(
            model, sample, options, state_folder, accelerator, resume, checkpoint_seconds, window_batches
        )
    finally:
        workspace.leave()
    seen = sum(part.count for part in moments.values())
    expected = sum(len(sequence) for sequence in sample.sequences)
    if seen != expected:
        raise RuntimeError(
            f"the moments hold {seen} residues where the sample has {expected}: {state_folder} is inconsistent, "
            "delete it and fit again"
        )
    names, levels = model.config.level_names, len(widths)
    # The chain is fitted on all that is not held out, whether or not a readout chooses its ridge by some of it.
    fitting, tuning, held = moments["training"], moments.get("tuning"), moments["heldout"]
    of_levels = fitting.part(0, levels)
    if tuning is not None:
        of_levels = JointMoments.from_state(of_levels.state(), device=fitting.device)
        of_levels.merge(tuning.part(0, levels))
    kind, alpha = options.regression, options.ridge_alpha
    bases, reports = fit_chain(of_levels, names, config.residual_directions, kind, alpha, held.part(0, levels))
    whitening = chain_whitening(of_levels, bases, options.block_weights)
    if tuning is None:
        return FitResult(bases, reports, fitting.count, held.count, whitening=whitening)
    # On return all residues that are not held out are in one set.
    readout, figures = fit_readout(fitting, tuning, bases, names, kind, alpha, held)
    reports = [replace(report, one_pass=own) for report, own in zip(reports, figures, strict=True)]
    return FitResult(bases, reports, fitting.count, held.count, readout, whitening)


def _accumulate(
    model: RDEsmModel,
    sample: Sample,
    options: FitOptions,
    state_folder: Path,
    accelerator: Accelerator,
    resume: bool,
    checkpoint_seconds: float,
    window_batches: int,
) -> dict[SamplePart, JointMoments]:
    """The pass itself, see :func:`fit_bases`: moments of each part of the sample, of all processes."""
    layers = options.one_pass or ()
    tuning = frozenset() if options.one_pass is None else tuning_positions(sample, options.seed)
    widths = model.config.backbone_widths
    parts: list[SamplePart] = ["training", "heldout"]
    if tuning:
        parts.append("tuning")
    if accelerator.is_main_process:
        open_state(state_folder, fit_settings(sample, model, options), resume)
    accelerator.wait_for_everyone()
    state = FitProgress(state_folder, [*widths, *[widths[-1]] * len(layers)], accelerator, parts)
    batches = plan_batches(sample, options.batch_tokens, tuning)
    done = state.done_earlier()
    remaining = [index for index in range(len(batches)) if index not in done]
    # Every process must have listed the earlier files before one of them adds its own.
    accelerator.wait_for_everyone()
    taken_up = set(state.done)
    mine = [
        index for index in remaining[accelerator.process_index :: accelerator.num_processes] if index not in taken_up
    ]
    sizes = {index: sum(len(sample.sequences[p]) for p in batches[index][1]) for index in mine}
    label = "fitting"
    if accelerator.num_processes > 1:
        label += f" (process 1 of {accelerator.num_processes})"
    model.eval()
    saved = time.monotonic()
    with tqdm(
        total=sum(sizes.values()),
        desc=label,
        unit=" residues",
        unit_scale=True,
        disable=not accelerator.is_main_process,
    ) as bar:
        for start in range(0, len(mine), window_batches):
            window = mine[start : start + window_batches]
            sequences = [[sample.sequences[p] for p in batches[index][1]] for index in window]
            found = backbone_states(model, sequences, layers)
            for index, states in zip(window, found, strict=True):
                part, positions = batches[index]
                if not state.done:
                    _refuse_constant(states, model.config.level_names)
                try:
                    state.moments[part].update(states)
                except NonFiniteStatesError as error:
                    # Behind the levels come layers of the last of them.
                    level = model.config.level_names[min(error.level, len(widths) - 1)]
                    raise ValueError(
                        f"{error} (level {level}) on the batch that starts with record "
                        f"{sample.ids[positions[0]]!r}: check that backbone's weights, or use --dtype float32"
                    ) from error
                state.done.append(index)
                bar.update(sizes[index])
            del found
            if time.monotonic() - saved >= checkpoint_seconds:
                state.save()
                trim_heap()
                saved = time.monotonic()
    state.save()
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        state.merge_earlier()
    return {part: reduce_moments(moments, accelerator) for part, moments in state.moments.items()}


def _refuse_constant(states: Sequence[torch.Tensor], names: Sequence[str]) -> None:
    """Raise a ValueError where a backbone says the same of every residue: its weights are zero, or not its own."""
    for name, state in zip(names, states, strict=False):
        if len(state) > 1 and bool((state == state[0]).all()):
            raise ValueError(
                f"the backbone of level {name} gives the same hidden state for all {len(state)} residues of the first "
                "batch: its weights are empty; fetch or save them again"
            )


def install_bases(
    model: RDEsmModel, result: FitResult, options: FitOptions, sample: Sample, sources: Iterable[str]
) -> None:
    """Put fitted bases into the model (rounded to float32) and their record into its config."""
    model.config.residual_directions = [basis.directions.shape[1] for basis in result.bases]
    projections = []
    for basis in result.bases:
        prefix_width, backbone_width = basis.regression.shape
        projection = RDEsmProjection(prefix_width, backbone_width, basis.directions.shape[1]).to(model.device)
        for name, value in vars(basis).items():
            getattr(projection, name).copy_(value)
        projections.append(projection)
    model.projections = torch.nn.ModuleList(projections)
    # Of other bases, if there were any.
    model.whitening = model.config.whitening = None
    if result.readout is not None:
        model.config.readout = {"layers": list(options.one_pass or ())}
        model.readout = _installed(result.readout, options.one_pass or ()).to(model.device)
    if result.whitening is not None:
        criterion = "given" if options.block_weights else "each level's backbone"
        install_whitening(model, result.whitening, of="residues", criterion=criterion)
    # Said with what came of them.
    aside = ("one_pass", "block_weights")
    model.config.bases = {
        **{name: value for name, value in asdict(options).items() if name not in aside},
        "num_sequences": len(sample.sequences) - len(sample.heldout),
        "num_heldout_sequences": len(sample.heldout),
        "num_residues": result.training_residues,
        "num_heldout_residues": result.heldout_residues,
        "fitted_on": "accumulated",
        "data": [readable(Path(source).name if Path(source).exists() else source) for source in sources],
    }


def _installed(readout: Readout, layers: Sequence[int]) -> RDEsmReadout:
    """A fitted readout as the model holds it, rounded to float32."""
    prefix_width, width = readout.last.regression.shape
    module = RDEsmReadout(layers, width, prefix_width, readout.last.directions.shape[1])
    module.state_means.copy_(readout.feature_mean.view(-1, width))
    module.prefix_mean.copy_(readout.embedding_mean)
    module.weights.copy_(readout.weights.view(-1, width, prefix_width))
    for name, value in vars(readout.last).items():
        getattr(module.last, name).copy_(value)
    return module


def install_whitening(model: RDEsmModel, whitening: Whitening, **record: str | float) -> None:
    """Put what blocks are whitened by into a model (rounded to float32), and where it comes from into its config.

    For bases that came without: whiten by a set of your own, then save the model.

    Args:
        model: with its bases set.
        whitening: of its blocks, a level each; its weights are kept beside its maps.
        record: where the statistics come from: ``of`` ("residues", "proteins"), ``criterion`` of the weights.

    Raises:
        ValueError: its blocks are not those of the model.
    """
    dims = list(model.config.nested_dims.values())
    widths = [wide - narrow for narrow, wide in pairwise([0, *dims])]
    if whitening.widths != widths:
        raise ValueError(
            f"a whitening of blocks {whitening.widths} does not fit a model whose blocks are {widths} wide"
        )
    module = RDEsmWhitening(widths, whitening.weights).to(model.device)
    for block, mean, turned, weight in zip(module, whitening.means, whitening.maps, whitening.weights, strict=True):
        block.get_buffer("mean").copy_(mean)
        # A weight of nothing leaves nothing of its map.
        block.get_buffer("map").copy_(turned / weight if weight else turned)
    model.whitening = module
    model.config.whitening = {"weights": list(whitening.weights), **record}
