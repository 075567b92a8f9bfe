"""A whole fit: a family loaded, bases fitted on a sample, and the model saved."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from tqdm import tqdm

from rd_hf.bases.chain import FitReport
from rd_hf.data.batching import SPECIAL_TOKENS
from rd_hf.data.remote import is_remote, pinned
from rd_hf.data.sources import check_sources
from rd_hf.embedding.compiling import check_compiler, decided
from rd_hf.embedding.dtypes import warn_of
from rd_hf.embedding.layouts import packing_pays
from rd_hf.embedding.options import AUTO, ON
from rd_hf.files import Workspace, replacing
from rd_hf.fitting.fit import fit_bases, fitted_config
from rd_hf.fitting.install import install_bases, source_names
from rd_hf.fitting.sample import Sample, draw_sample
from rd_hf.fitting.settings import CPU_FIT_TOKENS, FitOptions, FitSettings, FitSummary
from rd_hf.fitting.state import SETTINGS_FILE, STATE_FILES, begun_with, is_state
from rd_hf.hub.backbones import family_config
from rd_hf.hub.checkpoint import (
    REPORT_FILE,
    by_name,
    is_checkpoint,
    load_family,
    read_config,
    refuse_foreign,
    save_checkpoint,
)
from rd_hf.launch import Processes, leave, processes
from rd_hf.model.configuration_rd_esm import RDEsmConfig
from rd_hf.model.layers_rd_esm import PACKED_ATTENTION
from rd_hf.model.modeling_rd_esm import RDEsmModel

logger = logging.getLogger(__name__)

# Beside the final state; more of them bring less each.
DEFAULT_LAYERS = 4
# Moments of three sets of residues, and a copy of one.
_COPIES = 4
MOMENTS_LIMIT = 16 << 30


def run_fit(
    settings: FitSettings,
    group: Processes | None = None,
    report: Callable[[str], None] | None = None,
    on_sample: Callable[[Sample], None] | None = None,
    show_progress: bool = True,
) -> FitSummary:
    """Run a fit to its end, or from where an earlier run of it stopped; the model is then in its folder.

    Args:
        settings: the fit.
        group: this process among those that share it; by default as the launcher started them.
        report: called with sentences that a user should see; by default prints them beside the progress bar.
        on_sample: called with the sample before the backbones run; as ``report``, in the main process alone.
        show_progress: whether bars are shown.

    Raises:
        ValueError, OSError: a family, data or folder that cannot be used, or one that holds a fit of other settings.
    """
    output = Path(settings.output)
    workspace = Workspace(output / ".fit", "a fit")
    if _is_finished(workspace):
        _refuse_other(settings)
        leave(group)
        return FitSummary(str(output))
    if not is_checkpoint(output):
        workspace.refuse_others([workspace.path.name] if is_state(workspace.path) else [])
    refuse_foreign(output)
    group = group or processes()
    check_sources(settings.data, group.world)
    report = (report or partial(tqdm.write, file=sys.stderr)) if group.is_main else lambda _: None
    accelerator = Accelerator()
    # All have looked at the folder before one of them changes it.
    accelerator.wait_for_everyone()
    model, keep = _load(settings)
    model = model.to(accelerator.device)
    if packing_pays(model):
        model.set_attn_implementation(PACKED_ATTENTION)
    levels = ", ".join(model.config.level_names)
    logger.info(
        "fitting levels %s on %s, dtype %s, state in %s", levels, accelerator.device, settings.dtype, workspace.path
    )
    if warning := warn_of(settings.dtype, str(accelerator.device)):
        report(warning)
    options = _fitted_options(settings, model.config, keep, report)
    shown = group.is_main and show_progress
    # Of what may move on all processes read one version.
    places = broadcast_object_list([pinned(one) if is_remote(one) else one for one in settings.data])
    sample = draw_sample(places, options, settings.sequence_column, progress=shown, say=report)
    if group.is_main and on_sample is not None:
        on_sample(sample)
    _compile(model, settings, sample, workspace.path, report)
    group_batches = 1
    if settings.group_tokens is not None:
        # How much memory is free before any backbone is loaded says little.
        tokens = options.batch_tokens or CPU_FIT_TOKENS
        options, group_batches = replace(options, batch_tokens=tokens), settings.group_tokens // tokens
    result = fit_bases(
        model,
        sample,
        options,
        workspace.path,
        accelerator,
        checkpoint_seconds=settings.checkpoint_seconds,
        group_batches=group_batches,
        show_progress=show_progress,
    )
    if group.is_main:
        install_bases(model, result, options, sample, settings.data)
        _save(settings, model, result.reports, report)
        # The state goes last: while it is there, the fit counts as unfinished and is saved again.
        workspace.remove(*STATE_FILES)
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return FitSummary(str(output), tuple(result.reports))


def _is_finished(workspace: Workspace) -> bool:
    """Whether the output holds a finished fit; what a run that was killed while it cleared up left is removed."""
    if not (workspace.output / REPORT_FILE).exists() or (workspace.path / SETTINGS_FILE).exists():
        return False
    if workspace.record() is not None:
        workspace.claim()
        workspace.remove(*STATE_FILES)
    with suppress(OSError):
        workspace.path.rmdir()
    return True


def _refuse_other(settings: FitSettings) -> None:
    """Raise a ValueError where the finished fit of a folder is not the one that is asked for, by what it records.

    Nothing is to be computed: configs are compared, and names of data, but no weights and no sequences.
    """
    before, (source, keep) = RDEsmConfig.from_pretrained(settings.output), _source(settings)
    now = source if isinstance(source, RDEsmConfig) else by_name(source) or read_config(source)
    changed = ["backbones"]
    if [_backbone(entry) for entry in before.levels] == [_backbone(entry) for entry in now.levels]:
        options = _fitted_options(settings, now, now.backbone_widths[1:] if keep == "all" else keep, lambda _: None)
        pairs = _recorded(before, options) | {
            "data": (before.bases.get("data"), source_names(settings.data)),
            "residual directions": (
                before.residual_directions,
                list(options.residual_directions or now.residual_directions),
            ),
        }
        changed = [name for name, (then, asked) in pairs.items() if then != asked]
    if changed:
        raise ValueError(
            f"{settings.output} holds a finished fit of other {', '.join(changed)}: choose another --output, or "
            "delete it"
        )


def _backbone(entry: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(entry.get(name) for name in ("name", "backbone", "layer", "layers_of"))


def _recorded(config: RDEsmConfig, options: FitOptions) -> dict[str, tuple[Any, Any]]:
    """Of each option what a fitted model records, and what is asked for."""
    record, readout, whitening = config.bases, config.readout or {}, config.whitening or {}
    names = ["seed", "heldout_fraction", "regression", "ridge_alpha", "max_length"]
    # What is not asked for is as the fit had it.
    names += [] if options.batch_tokens is None else ["batch_tokens"]
    pairs: dict[str, tuple[Any, Any]] = {name: (record.get(name), getattr(options, name)) for name in names}
    given = whitening.get("weights") if whitening.get("criterion") == "given" else None
    pairs["block_weights"] = (given, None if options.block_weights is None else list(options.block_weights))
    pairs["one-pass layers"] = (readout.get("layers"), None if options.one_pass is None else list(options.one_pass))
    if "num_heldout_sequences" in record:
        drawn = record["num_sequences"] + record["num_heldout_sequences"]
        # Versions before this one did not note how many there were to draw from.
        distinct = record.get("num_distinct_sequences", drawn)
        pairs["num_sequences"] = (drawn, min(options.num_sequences or distinct, distinct))
    return pairs


def _source(settings: FitSettings) -> tuple[RDEsmConfig | str, list[int] | Literal["all"] | None]:
    """Where the family comes from, and how many residual directions it was asked to keep (None: as its config says)."""
    keep: list[int] | Literal["all"] | None = None
    if settings.keep:
        keep = "all" if settings.keep == ("all",) else [int(word) for word in settings.keep]
    # Widths need not grow, where --keep says what each level adds.
    return family_config(list(settings.backbones), keep) if settings.backbones else str(settings.config), keep


def _load(settings: FitSettings) -> tuple[RDEsmModel, Sequence[int] | None]:
    """The family, and how many residual directions it was asked to keep (None for what its config says)."""
    source, keep = _source(settings)
    sequential = settings.group_tokens is not None
    revisions = {level: commit for level, _, commit in (word.partition("=") for word in settings.revision_of)}
    model = load_family(source, revisions=revisions, dtype=settings.dtype, sequential=sequential)
    homeless = [entry["name"] for entry in model.config.levels if entry["repo_id"] is None]
    if sequential and homeless:
        raise ValueError(
            f"--group-tokens saves bases only, and {settings.config} does not say where the backbone of "
            f"{', '.join(homeless)} is to be fetched from: set its repo_id in config.json"
        )
    return model, model.config.backbone_widths[1:] if keep == "all" else keep


def _fitted_options(
    settings: FitSettings, config: RDEsmConfig, keep: Sequence[int] | None, report: Callable[[str], None]
) -> FitOptions:
    """The options with what follows from the family: lengths, directions, layers of a readout."""
    options, limit = settings.options, config.longest_input()
    if limit is not None and limit - SPECIAL_TOKENS < options.max_length:
        options = replace(options, max_length=limit - SPECIAL_TOKENS)
        report(f"{options.max_length:,} residues used of a sequence: a backbone has positions for no more")
    if settings.one_pass is not None:
        options = replace(options, one_pass=choose_layers(config, settings.one_pass))
    if keep is not None:
        options = replace(options, residual_directions=tuple(keep))
    try:
        fitted_config(config, options)
    except ValueError as error:
        words = str(error).replace("residual_directions", "--keep")
        raise ValueError(words if keep is None or "--keep" in words else f"--keep: {words}") from error
    return options


def moments_bytes(config: RDEsmConfig, layers: int) -> int:
    """Bytes of the moments over all levels and so many layers of the largest backbone, float64, all copies."""
    levels = sum(config.backbone_widths)
    width = levels + layers * config.backbone_widths[-1]
    # The means of sequences have moments over the levels alone.
    return 8 * (width**2 * _COPIES + levels**2)


def choose_layers(config: RDEsmConfig, asked: Sequence[int] = ()) -> tuple[int, ...]:
    """Choose layers below the final state, in growing order; 0 is what the first layer is given.

    Of those asked for, the last layer stands for the final state, which is read always. By default there are four,
    evenly spread from 0, or as many as the limit allows.

    Raises:
        ValueError: a family of one level, a layer that the largest backbone lacks, or moments beyond the limit.
    """
    if len(config.backbone_groups) < 2:
        why = "the levels of this family are layers of one backbone, which runs once anyway"
        if len(config.levels) < 2:
            why = "this family has one level only"
        raise ValueError(f"--one-pass takes the place of smaller backbones, and {why}")
    largest, count = config.levels[-1], config.depth(len(config.levels) - 1)
    if not asked:
        wanted = min(DEFAULT_LAYERS, count)
        while wanted and moments_bytes(config, wanted) > MOMENTS_LIMIT:
            wanted -= 1
        return tuple(sorted({position * count // wanted for position in range(wanted)}))
    for layer in asked:
        if not 0 <= layer <= count:
            raise ValueError(f"--one-pass {layer}: the backbone of {largest['name']} has layers 0 to {count}")
    layers = tuple(sorted(set(asked) - {count}))
    size = moments_bytes(config, len(layers))
    if size > MOMENTS_LIMIT:
        width = config.backbone_widths[-1]
        raise ValueError(
            f"--one-pass with {len(layers)} layers of {largest['name']} ({width:,} wide) needs moments of "
            f"{size / 2**30:,.0f} GiB, and the limit is {MOMENTS_LIMIT / 2**30:,.0f} GiB: name fewer layers"
        )
    return layers


def _compile(
    model: RDEsmModel, settings: FitSettings, sample: Sample, state: Path, report: Callable[[str], None]
) -> None:
    """Compile the layers where that was asked for, or auto finds it worth it; an unfinished fit keeps what it has."""
    choice = settings.compile
    if choice in (None, AUTO):
        choice = begun_with(state, "compile") or choice
    if choice == AUTO:
        residues = sum(map(len, sample.sequences))
        choice, said = decided(choice, str(model.device), residues, model.config.hidden_size)
        if said is not None:
            report(said)
    if choice == ON:
        check_compiler(str(model.device))
        model.compile_layers()


def _save(settings: FitSettings, model: RDEsmModel, reports: list[FitReport], report: Callable[[str], None]) -> None:
    """Save the model with its report, and the figure where matplotlib is installed."""
    from rd_hf.bases.figure import draw_fit

    figure = Path(settings.output) / ".fit" / "fit_report.png"
    try:
        with replacing(figure) as fresh:
            draw_fit(reports).savefig(fresh, dpi=120, format="png")
    except ImportError:
        report('no fit_report.png: matplotlib is not installed: pip install "rd_hf[plots]"')
    full = settings.form == "full"
    if settings.form is None and settings.group_tokens is None:
        full = model.config.backbones_in_checkpoint
        if settings.backbones:
            full = any(Path(entry["repo_id"]).is_dir() for entry in model.config.levels)
    shown, largest = figure if figure.exists() else None, settings.max_shard_size
    save_checkpoint(model, settings.output, backbones=full, report=reports, figure=shown, max_shard_size=largest)
