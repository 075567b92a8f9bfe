"""Models in evaluation: their states at every residue, and the sequences that bases and baselines are fitted on."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from transformers import AutoConfig, PretrainedConfig

from rd_hf.bases.chain import Basis, fit_chain
from rd_hf.bases.moments import JointMoments, load_tensors, save_tensors
from rd_hf.carried import model_place
from rd_hf.data.batching import collate, residue_mask, token_budget_batches
from rd_hf.data.records import InputError
from rd_hf.devices import check_device, pick_device
from rd_hf.evaluation.options import EvaluationOptions
from rd_hf.evaluation.progress import progress_bar
from rd_hf.fitting import FitOptions, Sample, draw_sample
from rd_hf.hub import load_family
from rd_hf.hub.backbones import family_config
from rd_hf.hub.checkpoint import read_config
from rd_hf.model.configuration_rd_esm import RDEsmConfig
from rd_hf.model.families_rd_esm import FAMILIES, describe
from rd_hf.model.modeling_rd_esm import RDEsmModel
from rd_hf.model_names import check_model_name
from rd_hf.network import asks_hub

logger = logging.getLogger(__name__)

CHECKPOINT_SECONDS = 60.0


@dataclass(frozen=True)
class Family:
    """A model in evaluation; made by :meth:`load` or :meth:`chain`."""

    label: str  # how tables call it
    model: RDEsmModel  # in eval mode, on its device
    depth: float  # of the states used, in (0, 1]; 1 is the final state, after the last layer norm
    fingerprint: str  # of backbones, dtype and depth; equal fingerprints give equal states
    fitted: bool = True  # whether the model holds bases; else they are fitted where they are needed

    @classmethod
    def load(
        cls,
        source: str,
        depth: float = 1.0,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        one_pass: bool = False,
    ) -> Family:
        """Load a reverse-distilled family, or a plain backbone (ESM-2, ESM-C, ...) as a family of one level.

        In one pass the largest backbone is loaded alone; what is then called z is the embedding that is read out of it.

        Raises:
            InputError: it cannot be loaded, or not on that device, or is neither.
        """
        check_device(device)
        if not 0 < depth <= 1:
            raise InputError(f"--depth {depth} is not a share of the layers; give a number above 0 and up to 1")
        try:
            model = _load_model(source, dtype, one_pass)
        except InputError:
            raise
        except (OSError, ValueError) as error:
            raise InputError(f"{source} cannot be loaded as a model: {' '.join(str(error).split())}") from error
        model = model.eval().to(device)
        label = (Path(source).name if Path(source).exists() else source) + (", one pass" if one_pass else "")
        return cls(label, model, depth, fingerprint(model, depth))

    @classmethod
    def chain(
        cls,
        words: Sequence[str],
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        keep: Literal["all"] | None = None,
    ) -> Family:
        """Load backbones as one family, whose bases are yet to be fitted.

        Words are those of ``rd-hf fit --backbones``, smallest first, and ``keep`` is its ``--keep``; see
        :func:`rd_hf.hub.backbones.family_config`.

        Raises:
            InputError: a word cannot be understood, or a backbone cannot be loaded, or not on that device.
        """
        check_device(device)
        config = family_config(list(words), keep)
        try:
            model = load_family(config, dtype=dtype).eval().to(device)
        except (OSError, ValueError) as error:
            raise InputError(f"--backbones: {' '.join(str(error).split())}") from error
        return cls(f"chain to {config.level_names[-1]}", model, 1.0, fingerprint(model, 1.0), fitted=False)

    @property
    def names(self) -> list[str]:
        """Levels, smallest first."""
        return self.model.config.level_names

    @property
    def widths(self) -> list[int]:
        """k_i of each backbone; in one pass, the width of what is read out."""
        config = self.model.config
        return [config.hidden_size] if config.one_pass else config.backbone_widths


@asks_hub
def _load_model(source: str, dtype: torch.dtype, one_pass: bool) -> RDEsmModel:
    check_model_name(source)
    source = model_place(source)
    fields, _ = PretrainedConfig.get_config_dict(source)
    found = fields.get("model_type")
    if found == RDEsmConfig.model_type:
        read_config(source)
        return RDEsmModel.from_pretrained(source, dtype=dtype, one_pass=one_pass)
    if found not in FAMILIES:
        known = ", ".join(family.title for family in FAMILIES.values())
        raise InputError(f"{source} is a {found} model; give a reverse-distilled one or one of {known}")
    # Stated, since without it the library asks at a terminal whether to run code that the config names.
    config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    entry = {"name": "ESM", "backbone": describe(config.to_dict()), "repo_id": source}
    model = RDEsmModel(RDEsmConfig(levels=[entry], backbones_in_checkpoint=False))
    model.load_backbones(dtype=dtype)
    parameters = sum(parameter.numel() for parameter in model.backbones.parameters())
    model.config.levels[0]["name"] = f"{parameters / 1e6:.3g}M"
    return model


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


def load_families(options: EvaluationOptions, one_pass: bool = False) -> list[Family]:
    """Load what ``--model``, ``--depth`` and ``--backbones`` ask for.

    With ``one_pass`` a model whose fit kept a readout comes once more, in one pass, behind itself.
    """
    if not options.model and not options.backbones:
        raise InputError("there is nothing to evaluate: give --model or --backbones")
    families = []
    device = str(pick_device()) if options.device is None else options.device
    for model in options.model:
        families += [Family.load(model, depth, device) for depth in options.depth]
        if one_pass and families[-1].model.config.readout is not None:
            families.append(Family.load(model, device=device, one_pass=True))
    families += [Family.chain(options.backbones, device)] if options.backbones else []
    for family in families:
        logger.info("%s loaded: levels %s on %s", family.label, ", ".join(family.names), device)
    return families


@torch.inference_mode()
def residue_states(family: Family, sequences: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Run the backbones on one batch of cleaned sequences.

    Returns:
        z, the concatenated states, (batch, longest + 2, K) in float32 on the model's device, and the mask of residues,
        (batch, longest + 2) bool (cls, eos and padding are False).
    """
    model = family.model
    input_ids, attention_mask = (tensor.to(model.device) for tensor in collate(sequences))
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
            own, hidden = hidden[: layers + 1], hidden[layers + 1 :]  # embedding output, then one per layer
            states += [own[max(1, round(family.depth * model.config.depth(level)))] for level in levels]
    mask = residue_mask([len(sequence) for sequence in sequences], input_ids.shape[1]).to(model.device)
    return torch.cat([state.float() for state in states], dim=-1), mask


def draw_fit_sample(family: Family, options: EvaluationOptions) -> Sample:
    """Draw the sample that a model's config records, or the one that ``--num-sequences`` and ``--seed`` ask for."""
    record, number = family.model.config.bases, options.fit_sequences
    if number is None and record.get("num_sequences"):
        number = record["num_sequences"] + record.get("num_heldout_sequences", 0)
    wanted = FitOptions(
        num_sequences=number,
        seed=record.get("seed", 0) if options.fit_seed is None else options.fit_seed,
        heldout_fraction=record.get("heldout_fraction", 0.1),
        max_length=record.get("max_length", 1022),
    )
    return draw_sample(options.fit_data, wanted, progress=True)


def split_sample(sample: Sample) -> tuple[list[str], list[str]]:
    """Training and held-out sequences."""
    parts: tuple[list[str], list[str]] = ([], [])
    for position, sequence in enumerate(sample.sequences):
        parts[position in sample.heldout].append(sequence)
    return parts


def fitting_moments(
    family: Family, sequences: Sequence[str], cache: Path | None, batch_tokens: int = 4096
) -> JointMoments:
    """Joint moments of the family's states over cleaned sequences, of which every residue counts once.

    They are kept in the folder ``cache``, if there is one, also half-way, so that an interrupted reading goes on; a
    damaged file there is an InputError.
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
    with progress_bar(total=len(sequences), desc=f"moments of {family.label}", unit="sequence") as progress:
        for number, batch in enumerate(batches, start=1):
            progress.update(len(batch))
            if number <= done:
                continue
            states, mask = residue_states(family, [sequences[position] for position in batch])
            moments.update(states[mask].split(family.widths, dim=-1))
            if path is not None and (number == len(batches) or time.monotonic() - saved > CHECKPOINT_SECONDS):
                path.parent.mkdir(parents=True, exist_ok=True)
                save_tensors(path, {**moments.state(), "batches": torch.tensor(number)})
                saved = time.monotonic()
    return moments


def model_bases(family: Family) -> list[Basis]:
    """The bases that a model holds, as :func:`rd_hf.bases.chain.fit_chain` gives them, float64 on the CPU."""
    names = ("prefix_mean", "backbone_mean", "regression", "directions")
    return [
        Basis(*(getattr(projection, name).detach().double().cpu() for name in names))
        for projection in family.model.projections
    ]


def family_bases(family: Family, moments: JointMoments | None) -> Sequence[Basis]:
    """The chain of one family.

    The model's own bases hold for its final states; at another depth, and where it holds none, the chain is fitted, by
    principal component regression with the model's numbers of directions; InputError where there are no moments.
    """
    if len(family.names) == 1 or (family.fitted and family.depth == 1):
        return model_bases(family)
    if moments is None:
        what = f"--depth {family.depth:g}" if family.fitted else f"{family.label} (--backbones)"
        raise InputError(f"{what} needs bases of its own; give --input to fit them on")
    return fit_chain(moments, family.names, family.model.config.residual_directions)[0]


def refit_difference(family: Family, moments: JointMoments) -> float:
    """How far the model's regressions are from those fitted on ``moments``: largest relative norm over levels.

    Judged by the regressions: directions of nearly equal variance may rotate within their plane.
    """
    config = family.model.config
    kind, alpha = config.bases.get("regression", "pcr"), config.bases.get("ridge_alpha", 1.0)
    again, _ = fit_chain(moments, family.names, config.residual_directions, kind, alpha)
    return max(
        float(torch.linalg.norm(mine.regression - own.regression) / torch.linalg.norm(mine.regression))
        for mine, own in zip(again, model_bases(family), strict=True)
    )
