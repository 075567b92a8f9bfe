"""Joint first and second moments of all levels' hidden states: everything a fit needs, in constant memory.

For one residue let z = [h_1, ..., h_m] be the concatenated final states of all backbones, K wide. Each
quantity of the chain (covariances, regressions, residual spectra) is a function of n, mean(z) and the joint
scatter S = sum (z - mean)(z - mean)^T. Moments of disjoint sets of residues add up exactly (Chan, Golub and
LeVeque 1983), so batches, processes and machines merge, and a saved state resumes.

Cost a residue: about K^2 multiply-adds (one triangle of blocks of S), in float64; K = 1440 (8M, 35M, 150M) is
1 % of the forward passes that produce z. Size: 8 K^2 bytes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from itertools import accumulate, pairwise
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

# Rows per product: long enough for a full-speed matrix product, short enough that the float64 copy of one
# block stays small beside S (4096 rows of K = 2720 are 89 MB).
BLOCK_ROWS = 4096


class NonFiniteStatesError(ValueError):
    """A backbone returned NaN or infinity; the message names the level."""


class JointMoments:
    """Streaming n, mean and scatter of [h_1, ..., h_m].

    Sums are kept in float64 about a pilot mean (the mean of the first batch), so that subtracting n mean mean^T
    at the end cancels nothing even where a channel's mean is a hundred times its deviation.

    Args:
        widths: k_i of each level.
        product_dtype: dtype in which the products of one block are formed before they are added in float64;
            ``torch.float32`` for devices whose float64 is slow. Values are centred first, so a float32 product
            is good to about 1e-6 of the block's own scatter.
    """

    def __init__(
        self,
        widths: Sequence[int],
        device: torch.device | str = "cpu",
        product_dtype: torch.dtype = torch.float64,
    ) -> None:
        self.widths = tuple(int(width) for width in widths)
        self.product_dtype = product_dtype
        total = sum(self.widths)
        self.count = 0
        self._shift = torch.zeros(total, dtype=torch.float64, device=device)
        self._sum = torch.zeros(total, dtype=torch.float64, device=device)
        # Only the blocks on and above the diagonal are kept up to date; scatter() mirrors them.
        self._products = torch.zeros(total, total, dtype=torch.float64, device=device)

    @property
    def offsets(self) -> list[int]:
        """Start of each level in z, and K at the end: m + 1 numbers."""
        return [0, *accumulate(self.widths)]

    @property
    def device(self) -> torch.device:
        """Where the sums live."""
        return self._sum.device

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(tensor.nbytes for tensor in (self._shift, self._sum, self._products))

    @torch.no_grad()
    def update(self, states: Sequence[torch.Tensor]) -> None:
        """Add residues.

        Args:
            states: one (residues, k_i) tensor a level, any float dtype and device; rows are residues only (no
                cls, eos, pad or mask).

        Raises:
            ValueError: widths or numbers of rows differ.
            NonFiniteStatesError: NaN or infinity; nothing was added.
        """
        got = tuple(state.shape[-1] for state in states)
        rows = {state.shape[0] for state in states}
        if got != self.widths or len(rows) != 1:
            raise ValueError(f"expected states of widths {self.widths} and equal length, got widths {got}, rows {rows}")
        for level, state in enumerate(states):
            if not torch.isfinite(state).all():
                raise NonFiniteStatesError(f"level {level + 1} of {len(states)} returned NaN or infinite hidden states")
        (residues,) = rows
        if residues == 0:
            return
        offsets = self.offsets
        for start in range(0, residues, BLOCK_ROWS):
            block = [state[start : start + BLOCK_ROWS].to(self.device, torch.float64) for state in states]
            if self.count == 0:
                self._shift = torch.cat([part.mean(dim=0) for part in block])
            centred = torch.cat(block, dim=1).sub_(self._shift)
            self._sum += centred.sum(dim=0)
            factor = centred if self.product_dtype == torch.float64 else centred.to(self.product_dtype)
            for level in range(len(self.widths)):
                low, high = offsets[level], offsets[level + 1]
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

    def scatter(self) -> torch.Tensor:
        """S = sum (z - mean)(z - mean)^T: (K, K) float64, symmetric; a copy."""
        return self._mirror(self._products - torch.outer(self._sum, self._sum) / max(self.count, 1))

    def _mirror(self, upper: torch.Tensor) -> torch.Tensor:
        # Blocks above the diagonal are authoritative; diagonal blocks are symmetric up to rounding, which is
        # averaged away so that eigh sees an exactly symmetric matrix whichever triangle it reads.
        offsets = self.offsets
        for low, high in pairwise(offsets):
            diagonal = upper[low:high, low:high]
            diagonal.copy_((diagonal + diagonal.T) / 2)
            upper[high:, low:high] = upper[low:high, high:].T
        return upper

    def merge(self, other: JointMoments) -> None:
        """Add the residues of ``other`` (Chan et al. 1983): S = S_a + S_b + d d^T n_a n_b / (n_a + n_b).

        Raises:
            ValueError: the two describe other widths.
        """
        if other.widths != self.widths:
            raise ValueError(f"moments of widths {other.widths} do not add to those of widths {self.widths}")
        if other.count == 0:
            return
        if self.count == 0:
            self._shift, self._sum, self._products = other._shift.clone(), other._sum.clone(), other._products.clone()
            self._shift, self._sum = self._shift.to(self.device), self._sum.to(self.device)
            self.count = other.count
            return
        # Re-express the other's sums about this shift: with x' = x + d, sum x' x'^T gains d s^T + s d^T + n d d^T.
        shift = (other._shift - self._shift.to(other.device)).to(self.device)
        their_sum = other._sum.to(self.device)
        self._products += other._products.to(self.device)
        self._products += torch.outer(shift, their_sum) + torch.outer(their_sum + other.count * shift, shift)
        self._sum += their_sum + other.count * shift
        self.count += other.count

    def save(self, path: str | Path, metadata: dict[str, str] | None = None, **tensors: torch.Tensor) -> None:
        """Write the state to a safetensors file, atomically: a reader sees the old file or the new one, whole.

        Args:
            path: file to write.
            metadata: strings to keep beside it.
            tensors: more tensors to keep in the same file, so that they can never disagree with it.
        """
        path = Path(path)
        temporary = path.with_name(path.name + ".tmp")
        state = {"shift": self._shift, "sum": self._sum, "products": self._products, **tensors}
        header = {"count": str(self.count), "widths": json.dumps(self.widths), **(metadata or {})}
        save_file({name: tensor.cpu().contiguous() for name, tensor in state.items()}, temporary, metadata=header)
        with temporary.open("rb+") as handle:
            os.fsync(handle.fileno())
        temporary.replace(path)

    @classmethod
    def load(cls, path: str | Path, device: torch.device | str = "cpu") -> tuple[JointMoments, dict[str, torch.Tensor]]:
        """Read what :meth:`save` wrote: the moments and the extra tensors.

        Raises:
            ValueError: not such a file, or a damaged one; the message names it.
        """
        try:
            with safe_open(path, framework="pt", device="cpu") as file:
                header = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no dict)
            moments = cls(json.loads(header["widths"]), device=device)
            moments.count = int(header["count"])
            for name in ("shift", "sum", "products"):
                setattr(moments, f"_{name}", tensors.pop(name).to(device))
        except (SafetensorError, KeyError, OSError) as error:
            raise ValueError(f"{path} is not a readable file of moments ({error}); delete it to start over") from error
        return moments, tensors
