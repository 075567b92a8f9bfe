"""Other readouts of the nested embedding from the largest backbone alone, and how near they come.

A quadratic readout has, beside the layers' states f, all products of two of their k leading principal components. They
are features of a residue like any other, so that moments of [z, f, products] hold all that a ridge needs; but the mean
of a product is no product of means, and every protein is run again for them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import torch

from rd_hf.bases.chain import fit_chain
from rd_hf.bases.moments import JointMoments, load_tensors, save_tensors
from rd_hf.bases.regression import descending_eigh
from rd_hf.data.batching import token_budget_batches
from rd_hf.evaluation.representations import Representation, chain_maps, selection
from rd_hf.fitting.fit import backbone_states
from rd_hf.model.modeling_rd_esm import RDEsmModel
from studies.forms import copies, read_map, restricted

TODAY, EXACT = "today's", "exact"


@dataclass(frozen=True)
class Products:
    """All products of two of the leading components of the layers' states."""

    mean: torch.Tensor = field(repr=False)  # of f, (F,)
    components: torch.Tensor = field(repr=False)  # (F, k) float64, scores have unit variance

    @classmethod
    def fit(cls, features: JointMoments, count: int) -> Products:
        """From moments of f, whose channels are first brought to one variance."""
        deviation = (features.scatter_diagonal() / features.count).sqrt().clamp_min(1e-12)
        scatter = features.scatter() / torch.outer(deviation, deviation) / features.count
        values, vectors = descending_eigh(scatter, count)
        return cls(features.mean(), vectors / deviation[:, None] / values[:count].sqrt())

    def __call__(self, features: torch.Tensor) -> torch.Tensor:
        """Of (n, F) states: (n, k (k + 1) / 2), those of fewer components first."""
        scores = (features.double() - self.mean) @ self.components
        return torch.cat([scores[:, : last + 1] * scores[:, last : last + 1] for last in range(scores.shape[1])], dim=1)


@dataclass(frozen=True)
class Reader:
    """What is gathered of a protein: the levels' final states, layers of the largest, and products of these."""

    model: RDEsmModel
    layers: tuple[int, ...]
    products: Products | None = None
    components: tuple[int, ...] = ()  # numbers of components to try, growing
    batch_tokens: int = 4096

    @property
    def widths(self) -> list[int]:
        """Of the levels, the layers, and what each number of components adds."""
        own = self.model.config.backbone_widths
        added = [
            after * (after + 1) // 2 - before * (before + 1) // 2 for before, after in pairwise((0, *self.components))
        ]
        return [*own, *[own[-1]] * len(self.layers), *added]

    def states(self, sequences: Sequence[str]) -> Iterator[tuple[list[int], torch.Tensor]]:
        """Positions of each batch's sequences, and all of its residues' states, in order: (residues, K)."""
        for batch in token_budget_batches([len(sequence) for sequence in sequences], self.batch_tokens):
            chosen = [sequences[position] for position in batch]
            (found,) = backbone_states(self.model, [chosen], self.layers)
            if self.products is not None:
                found.append(self.products(torch.cat(found[len(self.model.config.levels) - 1 :], dim=1)))
            yield batch, torch.cat([state.double() for state in found], dim=1)

    def moments(self, sequences: Sequence[str]) -> JointMoments:
        """Of all residues."""
        moments = JointMoments(self.widths)
        for _, rows in self.states(sequences):
            moments.update(rows.split(self.widths, dim=1))
        return moments

    def means(self, sequences: Sequence[str], folder: Path, fingerprint: str) -> torch.Tensor:
        """Means over residues, (n, K) float64, kept in a file of ``folder`` for these sequences."""
        key = hashlib.sha256("\n".join([fingerprint, str(self.layers), str(self.components), *sequences]).encode())
        if self.products is not None:
            key.update(self.products.components.numpy().tobytes())
        path = folder / f"readouts-{key.hexdigest()[:16]}.safetensors"
        if not path.exists():
            rows = torch.empty(len(sequences), sum(self.widths), dtype=torch.float64)
            for batch, states in self.states(sequences):
                parts = states.split([len(sequences[position]) for position in batch])
                rows[batch] = torch.stack([part.mean(dim=0) for part in parts])
            folder.mkdir(parents=True, exist_ok=True)
            save_tensors(path, {"means": rows})
        return load_tensors(path)["means"]


def readout_maps(
    reader: Reader, names: Sequence[str], fitting: JointMoments, tuning: JointMoments
) -> list[Representation]:
    """Every level of the exact chain and of each readout, as maps of what the reader gathers.

    Args:
        names: of the levels.
        fitting, tuning: from :meth:`Reader.moments`, of different sequences.
    """
    count, growth = len(names), reader.model.config.residual_directions
    both = restricted(fitting, range(len(fitting.widths)))
    both.merge(tuning)
    linear = list(range(count + len(reader.layers)))
    kinds = {TODAY: (linear, False), "chain": (linear, True)}
    for number, components in enumerate(reader.components, start=1):
        kinds[f"quadratic, {components}"] = ([*linear, *range(len(linear), len(linear) + number)], False)
    widths = fitting.widths[:count]
    bases, _ = fit_chain(both.first_levels(count), names, growth)
    first = Representation(EXACT, names[0], selection(0, widths[0], sum(widths)), torch.zeros(widths[0]).numpy())
    maps = []
    for how in (first, *chain_maps(EXACT, names, widths, bases)):
        matrix = copies(fitting, range(count)).numpy() @ how.matrix
        maps.append(Representation(EXACT, how.level, matrix, how.offset))
    for kind, (order, own_prefix) in kinds.items():
        matrix, offset = read_map(fitting, tuning, order, growth, own_prefix)
        ends = [how.width for how in maps[:count]]
        maps += [
            Representation(kind, name, matrix[:, :end].numpy(), offset[:end].numpy())
            for name, end in zip(names, ends, strict=True)
        ]
    return maps


def cosine(how: Representation, exact: Representation, heldout: JointMoments) -> float:
    """Inner product of both embeddings' deviations over the residues, by their norms."""
    scatter = heldout.scatter().numpy()
    along = scatter @ exact.matrix
    both, own, other = (
        (how.matrix * along).sum(),
        (how.matrix * (scatter @ how.matrix)).sum(),
        (exact.matrix * along).sum(),
    )
    return float(both / (own * other) ** 0.5)
