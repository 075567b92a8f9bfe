"""What a one-pass readout reads: layers of the largest backbone, as many as their moments allow."""

from __future__ import annotations

import random
from collections.abc import Sequence

from rd_hf.fitting.sample import Sample
from rd_hf.model.configuration_rd_esm import RDEsmConfig

# Beside the final state; more of them bring less each.
DEFAULT_LAYERS = 4
# Moments of three sets of residues, and a copy of one.
_COPIES = 4
MOMENTS_LIMIT = 16 << 30
# Of the sequences to fit on, those by which the ridge is chosen before all are fitted together.
_TUNING_SHARE = 0.1


def moments_bytes(config: RDEsmConfig, layers: int) -> int:
    """Bytes of the moments over all levels and so many layers of the largest backbone, float64, all copies."""
    width = sum(config.backbone_widths) + layers * config.backbone_widths[-1]
    return 8 * width**2 * _COPIES


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


def tuning_positions(sample: Sample, seed: int) -> frozenset[int]:
    """Positions of the sequences, none of them held out, by which the ridge is chosen."""
    positions = [position for position in range(len(sample.sequences)) if position not in sample.heldout]
    if len(positions) < 2:
        raise ValueError("--one-pass needs two sequences or more to fit on, since it chooses its ridge by some of them")
    count = max(1, round(_TUNING_SHARE * len(positions)))
    return frozenset(random.Random(seed + 2).sample(positions, count))
