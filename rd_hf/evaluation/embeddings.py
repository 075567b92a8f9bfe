"""Pooled backbone states of variants: one forward pass each, kept on disk by sequence.

What is kept are the concatenated states z = [h_1, ..., h_m] of all backbones, pooled, before any basis: bases can
be refitted and contenders added without running a backbone again.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from tqdm import tqdm
from transformers import AutoConfig

from rd_hf.bases.moments import JointMoments, load_tensors, save_tensors
from rd_hf.data.batching import collate, residue_mask, token_budget_batches
from rd_hf.data.fasta import InputError
from rd_hf.evaluation.assays import Assay
from rd_hf.model.configuration_rd_esm import RDEsmConfig
from rd_hf.model.families_rd_esm import FAMILIES, describe
from rd_hf.model.modeling_rd_esm import RDEsmModel

POOLINGS = ("mean", "site", "difference")
# Variants a cache file: a run that stops loses at most this many forward passes.
SHARD_VARIANTS = 2048
CHECKPOINT_SECONDS = 60.0


@dataclass(frozen=True)
class Family:
    """A model in evaluation.

    Attributes:
        label: how tables call it.
        model: in eval mode, on its device.
        depth: relative depth of the states used, in (0, 1]; 1 is the final state, after the last layer norm.
        fingerprint: of backbones, dtype and depth; equal fingerprints give equal states.
        fitted: whether the model holds bases; else they are fitted where they are needed.
    """

    label: str
    model: RDEsmModel
    depth: float
    fingerprint: str
    fitted: bool = True

    @property
    def names(self) -> list[str]:
        """Levels, smallest first."""
        return self.model.config.level_names

    @property
    def widths(self) -> list[int]:
        """k_i of each backbone; in one pass, the width of what is read out."""
        config = self.model.config
        return [config.hidden_size] if config.one_pass else config.backbone_widths


def fingerprint(model: RDEsmModel, depth: float) -> str:
    """SHA-256 of the backbones' parameters (bases play no part, but in one pass), their dtype and the depth."""
    digest = hashlib.sha256(f"depth {depth}".encode())
    tensors: dict[str, torch.Tensor] = dict(model.backbones.named_parameters())
    if model.config.one_pass:
        tensors |= {f"readout.{name}": buffer for name, buffer in model.readout.named_buffers()}
    for name, parameter in sorted(tensors.items()):
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
        values = parameter.detach().cpu().contiguous().flatten().view(torch.uint8)
        digest.update(values.numpy().tobytes())
    for level, entry in enumerate(model.config.levels):
        if "layer" in entry or "layers_of" in entry:
            digest.update(f"level {level} after layer {model.config.depth(level)}".encode())
    return digest.hexdigest()[:16]


def load_family(
    source: str, depth: float = 1.0, device: str = "cpu", dtype: torch.dtype = torch.float32, one_pass: bool = False
) -> Family:
    """Load a reverse-distilled family, or a plain backbone (ESM-2, ESM-C, ...) as a family of one level.

    Args:
        source: Hub id or folder.
        depth: relative depth of the states to use.
        one_pass: load the largest backbone alone; what is then called z is the embedding that is read out of it.

    Raises:
        InputError: it cannot be loaded, or is neither.
    """
    if not 0 < depth <= 1:
        raise InputError(f"--depth {depth} is not a share of the layers; give a number above 0 and up to 1")
    try:
        config = RDEsmConfig.from_pretrained(source) if _is_rd(source) else AutoConfig.from_pretrained(source)
        if isinstance(config, RDEsmConfig):
            model = RDEsmModel.from_pretrained(source, dtype=dtype, one_pass=one_pass)
        elif config.model_type in FAMILIES:
            entry = {"name": "ESM", "backbone": describe(config.to_dict()), "repo_id": source}
            model = RDEsmModel(RDEsmConfig(levels=[entry], backbones_in_checkpoint=False))
            model.load_backbones(dtype=dtype)
            parameters = sum(parameter.numel() for parameter in model.backbones.parameters())
            model.config.levels[0]["name"] = f"{parameters / 1e6:.3g}M"
        else:
            known = ", ".join(family.title for family in FAMILIES.values())
            raise InputError(f"{source} is a {config.model_type} model; give a reverse-distilled one or one of {known}")
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{source} cannot be loaded as a model: {' '.join(str(error).split())}") from error
    model = model.eval().to(device)
    label = (Path(source).name if Path(source).exists() else source) + (", one pass" if one_pass else "")
    return Family(label, model, depth, fingerprint(model, depth))


def _is_rd(source: str) -> bool:
    from transformers import PretrainedConfig

    settings, _ = PretrainedConfig.get_config_dict(source)
    return settings.get("model_type") == RDEsmConfig.model_type


@torch.inference_mode()
def residue_states(family: Family, sequences: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Concatenated states of one batch.

    Args:
        sequences: cleaned.

    Returns:
        z, (batch, longest + 2, K) in float32 on the model's device, and the mask of residues, (batch, longest + 2)
        bool (cls, eos and padding are False).
    """
    model = family.model
    input_ids, attention_mask = collate(sequences)
    device = next(model.parameters()).device
    input_ids, attention_mask = input_ids.to(device), attention_mask.to(device)
    if model.config.one_pass:
        states = [model(input_ids, attention_mask, long_input="whole").last_hidden_state]
    elif family.depth == 1:
        output = model(input_ids, attention_mask, output_backbone_states=True, long_input="whole")
        states = list(output.backbone_states or ())
    else:
        output = model(input_ids, attention_mask, output_hidden_states=True, long_input="whole")
        hidden = list(output.hidden_states or ())
        states = []
        for index, levels in enumerate(model.config.backbone_groups):
            layers = model.config.backbone_depth(index)
            own, hidden = hidden[: layers + 1], hidden[layers + 1 :]  # embedding output, then one a layer
            states += [own[max(1, round(family.depth * model.config.depth(level)))] for level in levels]
    mask = residue_mask([len(sequence) for sequence in sequences], input_ids.shape[1]).to(device)
    return torch.cat([state.float() for state in states], dim=-1), mask


def fitting_moments(
    family: Family, sequences: Sequence[str], cache: Path | None, batch_tokens: int = 4096
) -> JointMoments:
    """Joint moments of the family's states over ``sequences``.

    Args:
        sequences: cleaned; every residue counts once.
        cache: folder where they are kept, also half-way, so that an interrupted pass goes on; or None.
        batch_tokens: budget of a forward pass.

    Raises:
        InputError: a file in ``cache`` is damaged.
    """
    digest = hashlib.sha256("\n".join([family.fingerprint, str(batch_tokens), *sequences]).encode()).hexdigest()[:16]
    path = None if cache is None else cache / f"moments-{digest}.safetensors"
    moments, done = JointMoments(family.widths), 0
    if path is not None and path.exists():
        try:
            tensors = load_tensors(path)
            done = int(tensors.pop("batches"))
            moments = JointMoments.from_state(tensors)
        except (ValueError, KeyError) as error:
            raise InputError(f"{path} holds no whole moments ({error}); delete it to compute them again") from error
    batches = token_budget_batches([len(sequence) for sequence in sequences], batch_tokens)
    saved = time.monotonic()
    with tqdm(total=len(sequences), desc=f"moments of {family.label}", unit="sequence", disable=None) as progress:
        for number, batch in enumerate(batches):
            if number >= done:
                states, mask = residue_states(family, [sequences[position] for position in batch])
                moments.update(states[mask].split(family.widths, dim=-1))
            progress.update(len(batch))
            finished = number + 1 == len(batches)
            if path is not None and number >= done and (finished or time.monotonic() - saved > CHECKPOINT_SECONDS):
                path.parent.mkdir(parents=True, exist_ok=True)
                save_tensors(path, {**moments.state(), "batches": torch.tensor(number + 1)})
                saved = time.monotonic()
    return moments


@dataclass(frozen=True)
class PooledStates:
    """Pooled z of variants.

    Attributes:
        mean: mean over residues, (n, K) float32.
        site: mean over the substituted positions, (n, K) float32.
        wild_type_site: the wild type's, at the positions of each variant, (n, K) float32.
    """

    mean: np.ndarray
    site: np.ndarray
    wild_type_site: np.ndarray

    def pooled(self, pooling: str) -> np.ndarray:
        """(n, K) float32 of one of :data:`POOLINGS`.

        "difference" is that of variant and wild type at the substituted positions: over all residues it would be
        "mean" less a constant, which a ridge with an intercept does not see.

        Raises:
            ValueError: unknown pooling.
        """
        if pooling == "mean":
            return self.mean
        if pooling == "site":
            return self.site
        if pooling == "difference":
            return self.site - self.wild_type_site
        raise ValueError(f"unknown pooling {pooling!r}: choose from {', '.join(POOLINGS)}")


class StateCache:
    """Pooled states on disk: safetensors files of up to :data:`SHARD_VARIANTS` rows, looked up by digest.

    Files are written whole or not at all, and are only ever added, so any number of runs may share a folder. A
    file that cannot be read is reported and computed again.

    Args:
        folder: created on first use.
        fingerprint: of the family; each has a folder of its own.
    """

    def __init__(self, folder: str | Path, fingerprint: str) -> None:
        self.folder = Path(folder) / fingerprint
        self._where: dict[bytes, tuple[Path, int]] = {}
        for path in sorted(self.folder.glob("states-*.safetensors")):
            try:
                with safe_open(path, framework="pt") as file:
                    self._remember(path, file.get_tensor("digests"))
            except (SafetensorError, OSError) as error:
                tqdm.write(f"{path} is damaged ({error}); its variants are embedded again")

    def _remember(self, path: Path, digests: torch.Tensor) -> None:
        for row, digest in enumerate(digests.numpy()):
            self._where[digest.tobytes()] = (path, row)

    @staticmethod
    def digest(sequence: str, positions: Sequence[int]) -> bytes:
        """Key of one variant: 16 bytes of the SHA-256 of its sequence and the positions pooled."""
        return hashlib.sha256(f"{sequence} {json.dumps(list(positions))}".encode()).digest()[:16]

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._where

    def read(self, digests: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
        """Rows in the order asked: mean and site, (n, K) float32 each."""
        by_file: dict[Path, list[tuple[int, int]]] = {}
        for target, digest in enumerate(digests):
            path, row = self._where[digest]
            by_file.setdefault(path, []).append((target, row))
        mean = site = np.empty((0, 0), dtype=np.float32)
        for path, pairs in by_file.items():
            with safe_open(path, framework="np") as file:
                stored_mean, stored_site = file.get_tensor("mean"), file.get_tensor("site")
            if not mean.size:
                mean = np.empty((len(digests), stored_mean.shape[1]), dtype=np.float32)
                site = np.empty_like(mean)
            targets, rows = map(list, zip(*pairs, strict=True))
            mean[targets], site[targets] = stored_mean[rows], stored_site[rows]
        return mean, site

    def add(self, digests: Sequence[bytes], mean: torch.Tensor, site: torch.Tensor) -> None:
        """Keep rows: (n, K) float32 each."""
        self.folder.mkdir(parents=True, exist_ok=True)
        keys = torch.from_numpy(np.frombuffer(b"".join(digests), dtype=np.uint8).reshape(len(digests), 16).copy())
        name = hashlib.sha256(keys.numpy().tobytes()).hexdigest()[:16]
        path = self.folder / f"states-{name}.safetensors"
        save_tensors(path, {"digests": keys, "mean": mean, "site": site})
        self._remember(path, keys)


def _site_mean(states: torch.Tensor, positions: Sequence[int]) -> torch.Tensor:
    """Mean of (length + 2, K) states over residue positions counted from 0 (cls is token 0)."""
    return states[[position + 1 for position in positions]].mean(dim=0)


def _pooled_batches(
    family: Family, variants: Sequence[tuple[str, tuple[int, ...]]], batch_tokens: int
) -> Iterator[tuple[list[int], torch.Tensor, torch.Tensor]]:
    """Rows of each batch, and their mean and site states, (rows, K) float32 on the CPU."""
    for batch in token_budget_batches([len(sequence) for sequence, _ in variants], batch_tokens):
        states, mask = residue_states(family, [variants[row][0] for row in batch])
        weight = mask[:, :, None].float()
        mean = (states * weight).sum(dim=1) / weight.sum(dim=1)
        site = torch.stack(
            [
                _site_mean(state, variants[row][1]) if variants[row][1] else average
                for state, row, average in zip(states, batch, mean, strict=True)
            ]
        )
        yield batch, mean.cpu(), site.cpu()


def _embed_missing(
    family: Family,
    variants: Sequence[tuple[str, tuple[int, ...]]],
    describe: Callable[[int], str],
    cache: StateCache,
    batch_tokens: int,
    progress: tqdm | None,
) -> list[bytes]:
    """Embed what the cache lacks; the digest of every variant.

    Args:
        variants: cleaned sequences, and the positions pooled for "site".
        describe: what an error calls a row.

    Raises:
        InputError: a backbone returns NaN or infinity.
    """
    digests = [StateCache.digest(sequence, positions) for sequence, positions in variants]
    # Once each: two rows with one digest are one variant.
    todo = list({digest: row for row, digest in enumerate(digests) if digest not in cache}.values())
    if progress is not None:
        progress.update(len(variants) - len(todo))
    for start in range(0, len(todo), SHARD_VARIANTS):
        rows = todo[start : start + SHARD_VARIANTS]
        keys, means, sites = [], [], []
        for batch, mean, site in _pooled_batches(family, [variants[row] for row in rows], batch_tokens):
            finite = torch.isfinite(mean).all(dim=1) & torch.isfinite(site).all(dim=1)
            if not finite.all():
                row = rows[batch[int((~finite).nonzero()[0])]]
                raise InputError(f"{family.label} returned NaN or infinity for {describe(row)}; evaluate in float32")
            keys += [digests[rows[position]] for position in batch]
            means.append(mean)
            sites.append(site)
            if progress is not None:
                progress.update(len(batch))
        cache.add(keys, torch.cat(means), torch.cat(sites))
    return digests


def embed_assay(
    family: Family, assay: Assay, cache: StateCache, batch_tokens: int = 4096, progress: tqdm | None = None
) -> PooledStates:
    """Pooled states of every variant of an assay, from the cache where they are there.

    Args:
        batch_tokens: budget of a forward pass.
        progress: advanced by one a variant.

    Raises:
        InputError: a backbone returns NaN or infinity; the message names the variant.
    """
    variants = list(zip(assay.sequences, assay.positions, strict=True))
    digests = _embed_missing(
        family, variants, lambda row: f"{assay.name} {assay.mutants[row]}", cache, batch_tokens, progress
    )
    pooled_mean, pooled_site = cache.read(digests)
    states, _ = residue_states(family, [assay.wild_type])
    wild_type = torch.stack([_site_mean(states[0], positions) for positions in assay.positions]).cpu().numpy()
    return PooledStates(pooled_mean, pooled_site, wild_type)


def embed_proteins(
    family: Family,
    names: Sequence[str],
    sequences: Sequence[str],
    cache: StateCache,
    batch_tokens: int = 4096,
    progress: tqdm | None = None,
) -> np.ndarray:
    """Mean z over the residues of whole proteins, from the cache where they are there: (n, K) float32.

    Args:
        names: what errors call them.
        sequences: cleaned, however long.
        batch_tokens, progress: as for :func:`embed_assay`.

    Raises:
        InputError: a backbone returns NaN or infinity; the message names the protein.
    """
    # No position is special: "site" then repeats the mean.
    variants = [(sequence, tuple[int, ...]()) for sequence in sequences]
    mean, _ = cache.read(_embed_missing(family, variants, names.__getitem__, cache, batch_tokens, progress))
    return mean
