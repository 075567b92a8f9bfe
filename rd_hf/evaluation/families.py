"""Models in evaluation, and the states of their backbones at every residue."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoConfig, PretrainedConfig

from rd_hf.data.batching import collate, residue_mask
from rd_hf.data.fasta import InputError
from rd_hf.devices import check_device
from rd_hf.evaluation.options import EvaluationOptions
from rd_hf.hub import load_family
from rd_hf.hub.backbones import family_config
from rd_hf.hub.checkpoint import read_config
from rd_hf.model.configuration_rd_esm import RDEsmConfig
from rd_hf.model.families_rd_esm import FAMILIES, describe
from rd_hf.model.modeling_rd_esm import RDEsmModel


@dataclass(frozen=True)
class Family:
    """A model in evaluation; made by :meth:`load` or :meth:`chain`.

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

        Args:
            source: Hub id or folder.
            depth: relative depth of the states to use.
            one_pass: load the largest backbone alone; what is then called z is the embedding that is read out of it.

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
    def chain(cls, words: Sequence[str], device: str = "cpu", dtype: torch.dtype = torch.float32) -> Family:
        """Load backbones as one family, whose bases are yet to be fitted.

        Args:
            words: as ``rd-hf fit --backbones`` takes them, smallest first: ``NAME=REPO``, or a reverse-distilled
                family, which stands for its levels.

        Raises:
            InputError: see :func:`rd_hf.hub.backbones.family_config`, or a backbone cannot be loaded, or not there.
        """
        check_device(device)
        config = family_config(list(words))
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


def _load_model(source: str, dtype: torch.dtype, one_pass: bool) -> RDEsmModel:
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

    Args:
        one_pass: whether a model whose fit kept a readout comes once more, in one pass, behind itself.

    Raises:
        InputError: nothing is asked for, or something cannot be loaded.
    """
    if not options.model and not options.backbones:
        raise InputError("there is nothing to evaluate: give --model or --backbones")
    families = []
    for model in options.model:
        families += [Family.load(model, depth, options.device) for depth in options.depth]
        if one_pass and families[-1].model.config.readout is not None:
            families.append(Family.load(model, device=options.device, one_pass=True))
    return families + ([Family.chain(options.backbones, options.device)] if options.backbones else [])


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
