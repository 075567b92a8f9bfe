"""What number formats cost the residual blocks: the columns that each level appends, against float64.

Compared, each level for itself:

* ``float32``: backbones and bases;
* ``bfloat16``: backbones in bfloat16, bases in float32, the embedding returned in bfloat16, which is what a model
  loaded with ``dtype=torch.bfloat16`` does;
* ``all bfloat16``: backbones, means, regressions, directions and every product in bfloat16 (products add up in
  float32 inside and are rounded once), which no option of this project does and this module emulates.

Two figures each: the relative error |got - exact| / |exact| (Frobenius) and the mean over residues of the cosine
between got and exact. The floor: rounding exact numbers to bfloat16 once is an error of 0.17 %. In floating-point
operations the bases cost half a per cent of the backbones (see ``forward.py``), so a narrower format there cannot
save anything worth an error.

On two kinds of states:

(a) ``rd-esm2-mini`` over carried proteins, the exact answer being the whole model in float64. This has every source
of error in it, backbones included, at widths of 64 to 192 and six layers; ESM-2's are wider, deeper and trained a
hundred thousand times longer.

(b) Real final states of ESM-2, 8M to 3B, of 103 residues, where the file with them is at hand. They have what the
small family lacks: channels whose mean is a hundred times their deviation, where bfloat16 keeps no digit of what is
left after the mean is taken off. The states are taken as exact and then rounded (or not) to bfloat16, so that these
rows show what rounding and the arithmetic of the bases cost, **not** what bfloat16 costs inside of ESM-2's layers:
that comes on top. So few residues say nothing about what a fit on them is worth: the bases are fitted, a few leading
directions per level, in float64 on copies with a tenth of each channel's deviation added as noise, and judged on fresh
noise. The leading directions are the largest; trailing ones of a real basis are smaller and suffer more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.common import REPOSITORY, Ratio, carried_proteins
from rd_hf.bases.chain import Basis, fit_chain
from rd_hf.bases.moments import JointMoments, load_tensors
from rd_hf.data.batching import SPECIAL_TOKENS, collate, residue_mask, token_budget_batches
from rd_hf.fitting import backbone_states
from rd_hf.hub.checkpoint import load_family
from rd_hf.model.modeling_rd_esm import RDEsmModel

MINI = REPOSITORY / "hub_configs" / "rd-esm2-mini"
REAL_STATES = REPOSITORY.parent / "shared" / "data" / "esm2_outputs" / "fastplms_goldens"
REAL_LEVELS = ("8M", "35M", "150M", "650M", "3B")
PROTEINS = 32
BATCH_TOKENS = 2048
DIRECTIONS, COPIES, FRESH_COPIES, NOISE = 32, 8, 4, 0.1


@dataclass(frozen=True)
class Error:
    """How far a residual block is from the exact one.

    Attributes:
        relative: Frobenius norm of the difference over that of the exact block.
        cosine: mean over residues.
        pooled: as ``relative``, of the means over each sequence's residues; None where there are none.
    """

    relative: float
    cosine: float
    pooled: float | None = None

    def __str__(self) -> str:
        pooled = "" if self.pooled is None else f", mean-pooled {100 * self.pooled:.2g} %"
        return f"{100 * self.relative:.2g} % (1 - cosine {1 - self.cosine:.1e}{pooled})"


Errors = Mapping[str, Mapping[str, Error]]  # by level, then by format


def run(rounds: int) -> list[Ratio]:
    """See the module's docstring; nothing is timed, so one round says it all."""
    ratios = _ratios("rd-esm2-mini", mini_errors(load_family(MINI), carried_proteins()[:PROTEINS]))
    if REAL_STATES.is_dir():
        ratios += _ratios("ESM-2's states", real_errors(*real_states(REAL_STATES, REAL_LEVELS)))
    else:
        print(f"no figures on real ESM-2 states: {REAL_STATES} is absent", flush=True)
    return ratios


def residual_blocks(states: Sequence[torch.Tensor], bases: Sequence[Basis], dtype: torch.dtype) -> list[torch.Tensor]:
    """The chain's blocks r_i V_i with everything in one dtype.

    Args:
        states: (residues, k_i) per level, any float dtype.
        bases: one for each level after the first.

    Returns:
        (residues, d_i) of ``dtype`` for each level after the first.
    """
    prefix = states[0].to(dtype)
    blocks = []
    for state, basis in zip(states[1:], bases, strict=True):
        centred = state.to(dtype) - basis.backbone_mean.to(dtype)
        residual = centred - (prefix - basis.prefix_mean.to(dtype)) @ basis.regression.to(dtype)
        blocks.append(residual @ basis.directions.to(dtype))
        prefix = torch.cat((prefix, blocks[-1]), dim=1)
    return blocks


def error(got: torch.Tensor, exact: torch.Tensor, lengths: Sequence[int] = ()) -> Error:
    """Judge a block, (residues, d) of any float dtype, by the exact one in float64.

    Args:
        lengths: residues of each sequence, in order, to judge mean-pooled blocks too.
    """
    got = got.double()
    relative = float((got - exact).norm() / exact.norm())
    cosine = float(torch.cosine_similarity(got, exact, dim=1).mean())
    if not lengths:
        return Error(relative, cosine)
    pooled = [torch.stack([part.mean(dim=0) for part in rows.split(list(lengths))]) for rows in (got, exact)]
    return Error(relative, cosine, float((pooled[0] - pooled[1]).norm() / pooled[1].norm()))


def mini_errors(model: RDEsmModel, sequences: Sequence[str]) -> Errors:
    """(a): errors of a whole family in each format.

    Args:
        model: float32; it is float64 when this returns.
        sequences: cleaned.
    """
    bases = [
        Basis(**{name: buffer.double() for name, buffer in projection.named_buffers()})
        for projection in model.projections
    ]
    lengths = [len(sequence) for sequence in sequences]
    batches = [[sequences[position] for position in batch] for batch in token_budget_batches(lengths, BATCH_TOKENS)]
    lengths = [len(sequence) for batch in batches for sequence in batch]
    # From float32 each time: what bfloat16 rounded away does not come back.
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    states = {"float32": _states(model, batches)}
    model.to(torch.bfloat16)
    states["bfloat16"] = _states(model, batches)
    returned = residual_blocks(states["bfloat16"], bases, torch.float32)
    _check_is_the_models(model, batches[0], returned)
    model.to(torch.float64).load_state_dict(weights)
    true = _states(model, batches)
    exact = residual_blocks(true, bases, torch.float64)
    blocks = {
        "float32": residual_blocks(states["float32"], bases, torch.float32),
        "bfloat16": [block.bfloat16() for block in returned],
        "all bfloat16": residual_blocks(states["bfloat16"], bases, torch.bfloat16),
        # What is left of the error if backbones computed exactly and only rounded their answer.
        "exact states rounded": residual_blocks([state.bfloat16() for state in true], bases, torch.float32),
    }
    return {
        level: {kind: error(blocks[kind][place], exact[place], lengths) for kind in blocks}
        for place, level in enumerate(model.config.level_names[1:])
    }


def _states(model: RDEsmModel, batches: Sequence[Sequence[str]]) -> list[torch.Tensor]:
    """Final states of each backbone at all residues: (residues, k_i) each."""
    return [torch.cat(parts) for parts in zip(*backbone_states(model, batches), strict=True)]


@torch.inference_mode()
def _check_is_the_models(model: RDEsmModel, sequences: Sequence[str], blocks: Sequence[torch.Tensor]) -> None:
    """Raise unless the model in bfloat16 returns these blocks, rounded, for its first residues."""
    input_ids, attention_mask = collate(sequences)
    mask = residue_mask([len(sequence) for sequence in sequences], input_ids.shape[1])
    rows = model(input_ids, attention_mask=attention_mask).last_hidden_state[mask]
    start = model.config.backbone_widths[0]
    for block in blocks:
        width = block.shape[1]
        torch.testing.assert_close(rows[:, start : start + width], block[: len(rows)].bfloat16(), atol=0.02, rtol=0.02)
        start += width


def real_states(folder: Path, levels: Sequence[str]) -> tuple[dict[str, torch.Tensor], list[int]]:
    """Final states of real ESM-2 models at the same residues, (residues, k_i) float64 per level; sequences' lengths."""
    states = {}
    lengths: list[int] = []
    for level in levels:
        tensors = load_tensors(folder / f"esm2_{level.lower()}.safetensors")
        mask, input_ids = tensors["input__attention_mask"].bool(), tensors["input__input_ids"]
        lengths = (mask.sum(dim=1) - SPECIAL_TOKENS).tolist()
        states[level] = tensors["output__last_hidden_state"][residue_mask(lengths, input_ids.shape[1])].double()
    return states, lengths


def real_errors(states: Mapping[str, torch.Tensor], lengths: Sequence[int], directions: int = DIRECTIONS) -> Errors:
    """(b): errors of rounding and of the bases' arithmetic, by level.

    Args:
        states: (residues, k_i) float64 per level, smallest first; taken as exact.
        lengths: residues of each sequence, in order.
        directions: that each level keeps.
    """
    generator = torch.Generator().manual_seed(0)

    def noisy(copies: int) -> list[torch.Tensor]:
        return [
            (state + NOISE * state.std(dim=0) * torch.randn(copies, *state.shape, generator=generator).double())
            .flatten(0, 1)
            for state in states.values()
        ]  # fmt: skip

    moments = JointMoments([state.shape[1] for state in states.values()])
    moments.update(noisy(COPIES))
    bases, _ = fit_chain(moments, list(states), [directions] * (len(states) - 1))
    del moments
    fresh = noisy(FRESH_COPIES)
    rounded = [state.bfloat16() for state in fresh]
    exact = residual_blocks(fresh, bases, torch.float64)
    blocks = {
        "float32": residual_blocks([state.float() for state in fresh], bases, torch.float32),
        "bfloat16": [block.bfloat16() for block in residual_blocks(rounded, bases, torch.float32)],
        "all bfloat16": residual_blocks(rounded, bases, torch.bfloat16),
    }
    return {
        level: {kind: error(blocks[kind][place], exact[place], list(lengths) * FRESH_COPIES) for kind in blocks}
        for place, level in enumerate(list(states)[1:])
    }


def _ratios(what: str, errors: Errors) -> list[Ratio]:
    """A figure per level, and the one comparison that has a target."""
    ratios = [
        Ratio(
            f"{what}, {level}: relative error of bfloat16, %", 100 * of["bfloat16"].relative, None, at_least=False,
            detail="; ".join(f"{kind} {of[kind]}" for kind in of),
        )
        for level, of in errors.items()
    ]  # fmt: skip
    worst = max(of["bfloat16"].relative / of["all bfloat16"].relative for of in errors.values())
    name = f"{what}: error with float32 bases / all bfloat16, worst level"
    return [*ratios, Ratio(name, worst, 1.0, at_least=False, detail="backbones in bfloat16 both times")]
