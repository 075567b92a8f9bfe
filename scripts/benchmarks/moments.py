"""What gathering moments adds to the forward passes of a fit, on 8M + 35M + 150M (random weights, ESM-2's widths).

The floor. A residue costs 2 x 12 x sum(layers x width^2) = 380 million floating-point operations in the backbones,
in float32; its moments cost K^2 = 2.1 million (one triangle of a K x K outer product, K = 1,440) and half as much
again in tiles that cross the diagonal, in float64, which runs at half the rate: a little over one per cent. Bytes: S
(16.6 MB) is read and written once for every 2,048 residues, which is 16 kB per residue, beside 5.8 kB for the states
and 11.5 kB for their float64 copy.
"""

from __future__ import annotations

import torch

from benchmarks.common import ESM2_SIZES, Ratio, alternating, full_groups, medians, paired, random_family
from rd_hf.bases.moments import JointMoments
from rd_hf.fitting import backbone_states

TOKENS = 4096  # as rd-hf fit batches by default
BATCHES = 1


def run(rounds: int) -> list[Ratio]:
    """Seconds of the moments as a share of the forward passes they ride on."""
    model = random_family(ESM2_SIZES)
    batches = full_groups(TOKENS, BATCHES)
    moments = JointMoments(model.config.backbone_widths)
    states: list[list[torch.Tensor]] = []

    def forward() -> None:
        states[:] = backbone_states(model, batches)

    def gather() -> None:
        for batch in states:
            moments.update(batch)

    forward()
    gather()
    seconds = alternating({"forward": forward, "moments": gather}, rounds)
    middle = medians(seconds)
    residues = sum(len(batch[0]) for batch in states)
    shown = {name: f"{value / residues * 1e6:,.0f} µs" for name, value in middle.items()}
    return [
        Ratio(
            "moments / forward passes, 8M + 35M + 150M, float32",
            paired(seconds["moments"], seconds["forward"]),
            0.10,
            at_least=False,
            detail=f"{shown['moments']} / {shown['forward']} per residue",
        )
    ]
