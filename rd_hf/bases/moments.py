"""Joint first and second moments of all levels' hidden states: everything a fit needs, in constant memory.

For one residue let z = [h_1, ..., h_m] be the concatenated final states of all backbones, K wide. Each quantity of the
chain (covariances, regressions, residual spectra) is a function of n, mean(z) and the joint scatter
S = sum (z - mean)(z - mean)^T. Moments of disjoint sets of residues add up exactly (Chan, Golub and LeVeque 1983), so
that batches, processes and machines merge, and a saved state resumes.

Cost per residue: little over K^2 / 2 multiply-adds (one triangle of S, in tiles), in float64; at K = 1440 (8M, 35M,
150M) half a percent of the forward passes that produce z. Size: 8 K^2 bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from rd_hf.files import replacing

# Columns per product: only tiles of S on and above its diagonal are computed. Narrower tiles save more of the lower
# half, wider ones run nearer to full speed; a GPU wants more numbers at once than a CPU.
TILE_COLUMNS = {"cpu": 160, "cuda": 640}
# Rows per product: enough for full speed, and few enough that their float64 copy stays small beside S (2048 rows of
# K = 2720 are 45 MB).
CHUNK_ROWS = 2048

# GPUs whose float64 runs at half the float32 rate; on the others the products are formed in float32.
_FAST_FLOAT64 = {(6, 0), (7, 0), (8, 0), (9, 0), (10, 0)}


def product_dtype(device: torch.device) -> torch.dtype:
    """What products of rows are formed in: float64, or float32 on GPUs whose float64 is slow."""
    slow = device.type == "cuda" and torch.cuda.get_device_capability(device) not in _FAST_FLOAT64
    return torch.float32 if slow else torch.float64


class NonFiniteStatesError(ValueError):
    """A backbone returned NaN or infinity; ``level`` is its position, from 0."""

    def __init__(self, level: int) -> None:
        super().__init__(f"backbone {level + 1} returned NaN or infinite hidden states")
        self.level = level


class JointMoments:
    """Streaming n, mean and scatter of [h_1, ..., h_m].

    Sums are kept in float64 about a pilot mean (the mean of the first rows), so that subtracting n mean mean^T at the
    end cancels nothing even where a channel's mean is a hundred times its deviation. Products of rows are formed in
    ``product_dtype`` before they are added: float32 for devices whose float64 is slow. Such rows are centred about
    their own mean first, so that the scatter S is good to 1e-6 of sqrt(S_ii S_jj) however far means lie from zero.
    """

    def __init__(
        self, widths: Sequence[int], device: torch.device | str = "cpu", product_dtype: torch.dtype = torch.float64
    ) -> None:
        self.widths = tuple(int(width) for width in widths)
        self.product_dtype = product_dtype
        self.count = 0
        total = sum(self.widths)
        self._shift = torch.zeros(total, dtype=torch.float64, device=device)
        self._sum = torch.zeros(total, dtype=torch.float64, device=device)
        # Only tiles on and above the diagonal are kept up to date.
        self._products = torch.zeros(total, total, dtype=torch.float64, device=device)

    @classmethod
    def of(cls, widths: Sequence[int], count: int, mean: torch.Tensor, scatter: torch.Tensor) -> JointMoments:
        """Make moments of a mean, (K,), and a scatter, (K, K), both float64."""
        state = {"shift": mean, "sum": torch.zeros_like(mean), "products": scatter}
        state |= {"count": torch.tensor(count), "widths": torch.tensor(list(widths))}
        return cls.from_state(state, mean.device)

    def first_levels(self, count: int) -> JointMoments:
        """Return the moments of the first levels by themselves: a view, to read and not to update."""
        return self._view(self.widths[:count])

    def as_two(self, count: int) -> JointMoments:
        """Return these moments as of two levels, the first ``count`` and the others: a view, likewise."""
        return self._view((sum(self.widths[:count]), sum(self.widths[count:])))

    def _view(self, widths: Sequence[int]) -> JointMoments:
        total = sum(widths)
        state = {"shift": self._shift[:total], "sum": self._sum[:total], "products": self._products[:total, :total]}
        state |= {"count": torch.tensor(self.count), "widths": torch.tensor(widths)}
        return JointMoments.from_state(state, self.device)

    @property
    def offsets(self) -> list[int]:
        """Start of each level in z, and K at the end."""
        return [0, *accumulate(self.widths)]

    @property
    def device(self) -> torch.device:
        """Device of the sums."""
        return self._sum.device

    @torch.no_grad()
    def update(self, states: Sequence[torch.Tensor]) -> None:
        """Add residues: per level (residues, k_i), any float dtype and device, without cls, eos, pad and mask.

        Raises:
            ValueError: widths or numbers of rows differ.
            NonFiniteStatesError: NaN or infinity; nothing was added.
        """
        got = tuple(state.shape[-1] for state in states)
        rows = {state.shape[0] for state in states}
        if got != self.widths or len(rows) != 1:
            raise ValueError(f"expected states of widths {self.widths} and equal length, got widths {got}, rows {rows}")
        for level, state in enumerate(states):
            # Without a temporary: a sum is finite only if every term is.
            if not torch.isfinite(state.sum(dtype=torch.float32)):
                raise NonFiniteStatesError(level)
        for start in range(0, rows.pop(), CHUNK_ROWS):
            chunk = [state[start : start + CHUNK_ROWS].to(self.device, torch.float64) for state in states]
            if self.count == 0:
                self._shift = torch.cat([state.mean(dim=0) for state in chunk])
            centred = torch.cat(chunk, dim=1).sub_(self._shift)
            self._sum += centred.sum(dim=0)
            factor = centred
            if self.product_dtype != torch.float64:
                # About their own mean, so that nothing is rounded but what they vary by.
                own = centred.mean(dim=0)
                factor = (centred - own).to(self.product_dtype)
                self._products.addr_(own, own, alpha=len(centred))
            for low, high in _tiles(self._sum):
                target = self._products[low:high, low:]
                left, right = factor[:, low:high].T, factor[:, low:]
                if factor.dtype == torch.float64:
                    target.addmm_(left, right)
                else:
                    target += left @ right
            self.count += centred.shape[0]

    def mean(self) -> torch.Tensor:
        """mean(z): (K,) float64."""
        return self._shift + self._sum / max(self.count, 1)

    def scatter_between(self, first: int, second: int, end: int | None = None) -> torch.Tensor:
        """Scatter of level ``first`` with levels ``second`` (not before it) to ``end``: one rectangle of S, a copy.

        Args:
            first: position of the level of the rows.
            second: position of the first level of the columns.
            end: position after the last level of the columns; by default ``second + 1``.

        Returns:
            (k_first, sum of the columns' widths) float64; exactly symmetric where both are one level.
        """
        offsets = self.offsets
        rows = slice(offsets[first], offsets[first + 1])
        columns = slice(offsets[second], offsets[second + 1 if end is None else end])
        found = torch.addr(self._products[rows, columns], self._sum[rows], self._sum[columns], alpha=self._correction)
        if first == second:
            _mirror(found[:, : self.widths[first]])
        return found

    def scatter_diagonal(self) -> torch.Tensor:
        """Sum of squared deviations of every channel, the diagonal of S: (K,) float64."""
        return torch.addcmul(self._products.diagonal(), self._sum, self._sum, value=self._correction)

    @property
    def _correction(self) -> float:
        return -1.0 / max(self.count, 1)

    def scatter(self) -> torch.Tensor:
        """S = sum (z - mean)(z - mean)^T: (K, K) float64, symmetric; a copy."""
        return _mirror(torch.addr(self._products, self._sum, self._sum, alpha=self._correction))

    def recentre(self, shift: torch.Tensor) -> None:
        """Express the sums about another point, (K,) float64; mean and scatter stay what they are.

        With x' = x + d, sum x' = s + n d and sum x' x'^T = P + d s^T + s d^T + n d d^T.
        """
        shift = shift.to(self.device, torch.float64)
        step = self._shift - shift
        moved = self._sum + self.count * step
        self._products.addr_(step, self._sum).addr_(moved, step)
        self._sum, self._shift = moved, shift.clone()

    def merge(self, other: JointMoments) -> None:
        """Add the residues of other moments (pairwise update of Chan et al. 1983); ValueError if widths differ."""
        if other.widths != self.widths:
            raise ValueError(f"moments of widths {other.widths} do not add to those of widths {self.widths}")
        if other.count == 0:
            return
        theirs = JointMoments.from_state(other.state(), device=self.device)
        if self.count == 0:
            self._shift = theirs._shift
        theirs.recentre(self._shift)
        self._sum += theirs._sum
        self._products += theirs._products
        self.count += theirs.count

    def state(self) -> dict[str, torch.Tensor]:
        """Copies of all that makes these moments: count, widths, shift, sum, products."""
        return {
            "count": torch.tensor(self.count),
            "widths": torch.tensor(self.widths),
            "shift": self._shift.clone(),
            "sum": self._sum.clone(),
            "products": self._products.clone(),
        }

    @classmethod
    def from_state(
        cls,
        state: Mapping[str, torch.Tensor],
        device: torch.device | str = "cpu",
        product_dtype: torch.dtype = torch.float64,
    ) -> JointMoments:
        """Make the moments that :meth:`state` describes."""
        moments = cls([], device, product_dtype)
        moments.widths, moments.count = tuple(state["widths"].tolist()), int(state["count"])
        # Copies, in memory as torch aligns it: what a file was read into lies anywhere, and products round by it.
        moments._shift, moments._sum, moments._products = (
            state[name].to(device, copy=True) for name in ("shift", "sum", "products")
        )
        return moments


def _tiles(of: torch.Tensor) -> Iterator[tuple[int, int]]:
    """First and last column (exclusive) of each tile of a square as wide as a tensor is long."""
    width, columns = len(of), TILE_COLUMNS.get(of.device.type, TILE_COLUMNS["cpu"])
    return ((low, min(low + columns, width)) for low in range(0, width, columns))


def _mirror(matrix: torch.Tensor) -> torch.Tensor:
    """Copy what is above the diagonal below it, in place, and in tiles: it takes no memory of the matrix's size."""
    for low, high in _tiles(matrix):
        matrix[high:, low:high] = matrix[low:high, high:].T
        diagonal = matrix[low:high, low:high]
        diagonal.copy_(diagonal.triu() + diagonal.triu(1).T)
    return matrix


def save_tensors(path: str | Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write a safetensors file atomically: after a kill a reader finds the old file or the new one, whole."""
    # safetensors writes beside the name that it is given, and renames: both lie in a hidden folder of their own.
    with replacing(path) as fresh:
        save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, fresh)


def load_tensors(path: str | Path, *names: str) -> dict[str, torch.Tensor]:
    """Read a safetensors file, or only those of its tensors that ``names`` names.

    Raises:
        ValueError: missing or damaged, or without a tensor of that name; the message names the file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in names or file.keys()}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} cannot be read ({error}); it is damaged or no safetensors file") from error
