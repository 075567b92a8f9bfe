"""Fitting the bases of a family: sequences -> backbones -> joint moments -> bases, under accelerate.

One streaming pass. Batches are laid out once, for all processes alike, and dealt to them by index; every
process keeps the moments of what it has seen and, now and then, writes them to disk together with the list of
batches they hold. After a kill the files are merged and only the batches in none of them are run, with any
number of processes. No embedding is ever kept.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import random
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from filelock import FileLock, Timeout
from tqdm import tqdm

from rd_hf.bases.chain import Basis, FitReport, fit_chain
from rd_hf.bases.moments import JointMoments, NonFiniteStatesError, load_tensors, save_tensors
from rd_hf.bases.regression import RegressionKind
from rd_hf.configuration_rd_esm import RDEsmConfig
from rd_hf.data.batching import collate, residue_mask, token_budget_batches
from rd_hf.data.fasta import InputError
from rd_hf.data.residues import RejectedSequenceError, clean_sequence
from rd_hf.data.sources import read_records
from rd_hf.modeling_rd_esm import RDEsmModel, RDEsmProjection

# GPUs whose float64 runs at half the float32 rate; on the others the products are formed in float32.
_FAST_FLOAT64 = {(6, 0), (7, 0), (8, 0), (9, 0), (10, 0)}


@dataclass(frozen=True)
class FitOptions:
    """What a fit is asked to do.

    Attributes:
        num_sequences: distinct sequences to sample; None takes all.
        seed: of the sample and of the held-out split.
        heldout_fraction: share of the sampled sequences kept out of the fit, to judge it.
        regression: "pcr" (the paper's), "ols" or "ridge".
        ridge_alpha: penalty of "ridge".
        residual_directions: how many each level after the first keeps; None is the paper's k_i - k_(i-1).
        max_length: residues of a sequence that are used, from its start (ESM-2 was trained on 1,022).
        batch_tokens: tokens a batch, padding included.
    """

    num_sequences: int | None = None
    seed: int = 0
    heldout_fraction: float = 0.1
    regression: RegressionKind = "pcr"
    ridge_alpha: float = 1.0
    residual_directions: tuple[int, ...] | None = None
    max_length: int = 1022
    batch_tokens: int = 4096

    def __post_init__(self) -> None:
        if self.num_sequences is not None and self.num_sequences < 1:
            raise ValueError(f"the number of sequences must be positive, got {self.num_sequences}")
        if not 0 <= self.heldout_fraction < 1:
            raise ValueError(f"the held-out fraction must lie in [0, 1), got {self.heldout_fraction}")
        if self.max_length < 1 or self.batch_tokens < 1:
            raise ValueError("the maximal length and the token budget must be positive")


@dataclass(frozen=True)
class Sample:
    """Sequences to fit on and sequences to judge by, cleaned and cut.

    Attributes:
        ids, sequences: of the whole sample, in input order.
        heldout: positions of those kept out of the fit.
        records, rejected, duplicates: what the sources held.
    """

    ids: list[str]
    sequences: list[str]
    heldout: frozenset[int]
    records: int
    rejected: int
    duplicates: int

    def residues(self, *, heldout: bool) -> int:
        """Residues of one side of the split."""
        return sum(len(s) for position, s in enumerate(self.sequences) if (position in self.heldout) == heldout)


@dataclass(frozen=True)
class FitResult:
    """Fitted bases, a report a level, and what they were fitted on."""

    bases: list[Basis]
    reports: list[FitReport]
    training_residues: int
    heldout_residues: int


def draw_sample(
    sources: Sequence[str], options: FitOptions, sequence_column: str | None = None, progress: bool = False
) -> Sample:
    """Read every source once and draw distinct sequences from them, uniformly and by seed.

    Memory holds the sample and 16 bytes for each distinct sequence read.

    Raises:
        InputError: a source cannot be read, or nothing usable is in them.
    """
    draw = random.Random(options.seed)
    seen: set[bytes] = set()
    # The n sequences of smallest random priority are a uniform sample without replacement; a heap of their
    # negated priorities drops the largest as others come in.
    kept: list[tuple[float, int, str, str]] = []
    records = rejected = duplicates = 0
    for source in sources:
        for record in tqdm(
            read_records(source, sequence_column),
            desc=f"reading {Path(source).name}",
            unit=" records",
            disable=not progress,
        ):
            records += 1
            try:
                sequence = clean_sequence(record.sequence)[: options.max_length]
            except RejectedSequenceError:
                rejected += 1
                continue
            digest = hashlib.blake2b(sequence.encode(), digest_size=16).digest()
            if digest in seen:
                duplicates += 1
                continue
            seen.add(digest)
            item = (-draw.random(), records, record.id, sequence)
            if options.num_sequences is None or len(kept) < options.num_sequences:
                heapq.heappush(kept, item)
            else:
                heapq.heappushpop(kept, item)
    if not kept:
        raise InputError(f"{', '.join(map(str, sources))}: none of {records} records holds a usable protein sequence")
    kept.sort(key=lambda item: item[1])
    heldout_count = round(options.heldout_fraction * len(kept))
    heldout = frozenset(random.Random(options.seed + 1).sample(range(len(kept)), heldout_count))
    return Sample([k[2] for k in kept], [k[3] for k in kept], heldout, records, rejected, duplicates)


def _batches(sample: Sample, budget: int) -> list[tuple[bool, list[int]]]:
    """(is held out, positions in the sample) of every batch of the pass, the same in every process."""
    batches = []
    for heldout in (False, True):
        positions = [p for p in range(len(sample.sequences)) if (p in sample.heldout) == heldout]
        lengths = [len(sample.sequences[p]) for p in positions]
        batches += [(heldout, [positions[i] for i in batch]) for batch in token_budget_batches(lengths, budget)]
    return batches


@torch.inference_mode()
def backbone_states(model: RDEsmModel, window: Sequence[Sequence[str]]) -> list[list[torch.Tensor]]:
    """Final hidden states of every backbone at residues only.

    Args:
        window: batches of cleaned sequences. They go up the levels together, so that a model that loads each
            backbone when its turn comes loads it once a window; all their states are held until then.

    Returns:
        For each batch one (residues, k_i) tensor a level, in the backbone's dtype.
    """
    device = model.device
    inputs, kept = [], []
    for sequences in window:
        input_ids, attention_mask = collate(sequences)
        kept.append(residue_mask([len(sequence) for sequence in sequences], input_ids.shape[1]).to(device))
        inputs.append({"input_ids": input_ids.to(device), "attention_mask": attention_mask.to(device)})
    states: list[list[torch.Tensor]] = [[] for _ in window]

    def run(_: int, backbone: torch.nn.Module) -> None:
        for found, arguments, rows in zip(states, inputs, kept, strict=True):
            found.append(backbone(**arguments).last_hidden_state[rows])

    model.visit_backbones(run)
    return states


class _Progress:
    """Moments of this process, where they are kept, and which batches they hold."""

    def __init__(self, folder: Path, widths: Sequence[int], accelerator: Accelerator) -> None:
        device = accelerator.device
        # MPS has no float64.
        self.device = torch.device("cpu") if device.type == "mps" else device
        product_dtype = torch.float64
        if device.type == "cuda" and torch.cuda.get_device_capability(device) not in _FAST_FLOAT64:
            product_dtype = torch.float32
        self.moments = {
            heldout: JointMoments(widths, device=self.device, product_dtype=product_dtype) for heldout in (False, True)
        }
        self.done: list[int] = []
        self.earlier = sorted(folder.glob("moments-*.safetensors"))
        runs = [int(path.name.split("-")[1]) for path in self.earlier]
        self.path = folder / f"moments-{max(runs, default=-1) + 1:04d}-{accelerator.process_index:04d}.safetensors"

    def save(self) -> None:
        state = {"done": torch.tensor(self.done, dtype=torch.int64)}
        for heldout, moments in self.moments.items():
            state |= {f"{'heldout' if heldout else 'training'}.{key}": v for key, v in moments.state().items()}
        save_tensors(self.path, state)

    def done_earlier(self) -> set[int]:
        """Batches that files of former runs hold."""
        done: set[int] = set()
        for path in self.earlier:
            done |= set(load_tensors(path)["done"].tolist())
        return done

    def merge_earlier(self) -> None:
        """Add the moments of former runs to this process's."""
        for path in self.earlier:
            tensors = load_tensors(path)
            for heldout, moments in self.moments.items():
                prefix = "heldout." if heldout else "training."
                state = {key.removeprefix(prefix): v for key, v in tensors.items() if key.startswith(prefix)}
                moments.merge(JointMoments.from_state(state))


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


def _settings(sample: Sample, model: RDEsmModel, options: FitOptions) -> dict[str, Any]:
    """What must not change between an interrupted fit and its continuation."""
    digest = hashlib.sha256()
    for sequence in sample.sequences:
        digest.update(sequence.encode() + b"\n")
    weights = hashlib.sha256()

    def digest_weights(level: int, backbone: torch.nn.Module) -> None:
        for name, parameter in backbone.named_parameters():
            # A sum a parameter tells other weights apart at the cost of one read, without hashing gigabytes.
            total = float(parameter.detach().double().sum())
            weights.update(f"{level}.{name} {tuple(parameter.shape)} {parameter.dtype} {total!r}".encode())

    model.visit_backbones(digest_weights)
    levels = dict(zip(model.config.level_names, model.config.backbone_widths, strict=True))
    return {
        "sequences": digest.hexdigest(),
        "heldout": hashlib.sha256(str(sorted(sample.heldout)).encode()).hexdigest(),
        "levels": levels,
        "backbone weights": weights.hexdigest(),
        "batch tokens": options.batch_tokens,
    }


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Keep other fits out of a state folder.

    Raises:
        ValueError: another fit has it.
    """
    try:
        held = FileLock(folder / "lock").acquire(timeout=0)
    except Timeout as error:
        raise ValueError(
            f"another fit is at work in {folder.parent}: wait for it, or choose another --output"
        ) from error
    with held:
        yield


def open_state(folder: Path, settings: dict[str, Any], resume: bool) -> None:
    """Start or continue the state of a fit in ``folder``.

    Raises:
        ValueError: an unfinished fit is there and ``resume`` was not asked for, or it was of other settings;
            the message names them.
    """
    record = folder / "settings.json"
    if record.exists():
        if not resume:
            raise ValueError(
                f"{folder.parent} holds an unfinished fit: add --resume to continue it, or delete {folder} to start "
                "over"
            )
        before = json.loads(record.read_text())
        changed = [name for name in settings if before.get(name) != settings[name]]
        if changed:
            raise ValueError(
                f"the unfinished fit in {folder} was of other {', '.join(changed)}: "
                f"repeat the command that began it, or delete {folder} to start over"
            )
    else:
        temporary = record.with_suffix(".tmp")
        temporary.write_text(json.dumps(settings, indent=1) + "\n")
        temporary.replace(record)


def fit_bases(
    model: RDEsmModel,
    sample: Sample,
    options: FitOptions,
    state_folder: Path,
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
    # Built anew so that widths and directions are checked before hours of work, not after.
    config = RDEsmConfig(
        levels=model.config.levels,
        residual_directions=list(options.residual_directions) if options.residual_directions else None,
    )
    widths = config.backbone_widths
    training = sample.residues(heldout=False)
    if training <= widths[0]:
        raise ValueError(
            f"{training} residues are too few to fit on: level {model.config.level_names[0]} is {widths[0]} wide and "
            f"needs more than {widths[0]} residues; give more sequences"
        )
    state_folder.mkdir(parents=True, exist_ok=True)
    # One lock for all processes: the others wait for the main process at every turn.
    with claimed(state_folder) if accelerator.is_main_process else nullcontext():
        train_moments, held_moments = _accumulate(
            model, sample, options, state_folder, accelerator, resume, checkpoint_seconds, window_batches
        )
    seen = train_moments.count + held_moments.count
    expected = sum(len(sequence) for sequence in sample.sequences)
    if seen != expected:
        raise RuntimeError(
            f"the moments hold {seen} residues where the sample has {expected}: {state_folder} is inconsistent, "
            "delete it and fit again"
        )
    bases, reports = fit_chain(
        train_moments,
        model.config.level_names,
        config.residual_directions,
        options.regression,
        options.ridge_alpha,
        held_moments,
    )
    return FitResult(bases, reports, train_moments.count, held_moments.count)


def _accumulate(
    model: RDEsmModel,
    sample: Sample,
    options: FitOptions,
    state_folder: Path,
    accelerator: Accelerator,
    resume: bool,
    checkpoint_seconds: float,
    window_batches: int,
) -> tuple[JointMoments, JointMoments]:
    """The pass itself, see :func:`fit_bases`: moments of training and of held-out residues, of all processes."""
    if accelerator.is_main_process:
        open_state(state_folder, _settings(sample, model, options), resume)
    accelerator.wait_for_everyone()
    state = _Progress(state_folder, model.config.backbone_widths, accelerator)
    batches = _batches(sample, options.batch_tokens)
    done = state.done_earlier()
    remaining = [index for index in range(len(batches)) if index not in done]
    # Every process must have listed the earlier files before one of them adds its own.
    accelerator.wait_for_everyone()
    mine = remaining[accelerator.process_index :: accelerator.num_processes]
    sizes = {index: sum(len(sample.sequences[p]) for p in batches[index][1]) for index in mine}
    label = "fitting"
    if accelerator.num_processes > 1:
        label += f" (process 1 of {accelerator.num_processes})"
    bar = tqdm(
        total=sum(sizes.values()),
        desc=label,
        unit=" residues",
        unit_scale=True,
        disable=not accelerator.is_main_process,
    )
    model.eval()
    saved = time.monotonic()
    for start in range(0, len(mine), window_batches):
        window = mine[start : start + window_batches]
        found = backbone_states(model, [[sample.sequences[p] for p in batches[index][1]] for index in window])
        for index, states in zip(window, found, strict=True):
            heldout, positions = batches[index]
            try:
                state.moments[heldout].update(states)
            except NonFiniteStatesError as error:
                raise ValueError(
                    f"{error} (level {model.config.level_names[error.level]}) on the batch that starts with record "
                    f"{sample.ids[positions[0]]!r}: check that backbone's weights, or use --dtype float32"
                ) from error
            state.done.append(index)
            bar.update(sizes[index])
        del found
        if time.monotonic() - saved >= checkpoint_seconds:
            state.save()
            saved = time.monotonic()
    bar.close()
    state.save()
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        state.merge_earlier()
    return reduce_moments(state.moments[False], accelerator), reduce_moments(state.moments[True], accelerator)


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
    model.config.bases = {
        **asdict(options),
        "num_sequences": len(sample.sequences) - len(sample.heldout),
        "num_heldout_sequences": len(sample.heldout),
        "num_residues": result.training_residues,
        "num_heldout_residues": result.heldout_residues,
        "fitted_on": "accumulated",
        "data": [Path(source).name if Path(source).exists() else source for source in sources],
    }
