"""The first publication's own model (``reverse_distillation`` 0.1.0 over fair-esm) with the weights of one of ours.

Its class is used as its ``from_pretrained`` puts it together: fair-esm's ESM2 modules and its torch scalers in
module dictionaries, called through its ``forward``. Only what would come from a network is filled in here.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch import nn

from rd_hf.model.modeling_rd_esm import RDEsmModel

INSTALL = "pip install --no-deps reverse-distillation==0.1.0 and pip install fbpca loguru fair-esm"
# Names of one layer's parts: transformers' and fair-esm's.
_PARTS = (
    ("attention.self.query", "self_attn.q_proj"),
    ("attention.self.key", "self_attn.k_proj"),
    ("attention.self.value", "self_attn.v_proj"),
    ("attention.output.dense", "self_attn.out_proj"),
    ("attention.LayerNorm", "self_attn_layer_norm"),
    ("intermediate.dense", "fc1"),
    ("output.dense", "fc2"),
    ("LayerNorm", "final_layer_norm"),
)


def available() -> bool:
    """Whether the packages are installed."""
    return all(importlib.util.find_spec(name) for name in ("reverse_distillation", "esm", "fbpca", "loguru"))


def published_model(model: RDEsmModel, compiled: bool = False) -> nn.Module:
    """The published ``RDESM`` that computes what ``model`` does at residues.

    Each regression of ``model`` is replaced by one of half its rank, which is how principal component regressions
    look in its files: about half of the components pass. Its language-model heads, which its forward pass computes
    and does not use, stay random.

    Args:
        model: float32, on the CPU, levels named as in ESM-2 from 8M on and with ESM-2's numbers of layers, which
            the published class looks up by name.
        compiled: put ``torch.compile`` where its ``from_pretrained`` does: around each backbone and scaler.
    """
    from loguru import logger

    # It tells of every step on standard error.
    logger.remove()
    from reverse_distillation.models.rd_model import RDESM

    names = model.config.level_names
    backbones: dict[str, Any] = {
        name: _as_fair_esm(backbone) for name, backbone in zip(names, model.backbones, strict=True)
    }
    scalers: dict[str, Any] = {
        name: _scaler(projection) for name, projection in zip(names[1:], model.projections, strict=True)
    }
    special = next(iter(backbones.values()))
    if compiled:
        backbones = {name: torch.compile(backbone, dynamic=True) for name, backbone in backbones.items()}
        scalers = {name: torch.compile(scaler, dynamic=True) for name, scaler in scalers.items()}
    published: Any = RDESM(list(names), nn.ModuleDict(backbones), nn.ModuleDict(scalers)).eval()
    published.special_tokens = [special.padding_idx, special.mask_idx, special.cls_idx, special.eos_idx]
    return published


def _as_fair_esm(backbone: nn.Module) -> Any:
    """fair-esm's ESM2 with the weights of transformers' model."""
    from esm.model.esm2 import ESM2

    config: Any = backbone.config
    twin = ESM2(config.num_hidden_layers, config.hidden_size, config.num_attention_heads, "ESM-1b").eval()
    twin.requires_grad_(False)
    source, state = backbone.state_dict(), {}
    for layer in range(config.num_hidden_layers):
        for ours, theirs in _PARTS:
            for kind in ("weight", "bias"):
                state[f"layers.{layer}.{theirs}.{kind}"] = source[f"encoder.layer.{layer}.{ours}.{kind}"]
    for kind in ("weight", "bias"):
        state[f"emb_layer_norm_after.{kind}"] = source[f"encoder.emb_layer_norm_after.{kind}"]
    state["embed_tokens.weight"] = state["lm_head.weight"] = source["embeddings.word_embeddings.weight"]
    absent, unexpected = twin.load_state_dict(state, strict=False)
    left = [key for key in absent if not key.startswith(("lm_head.", "contact_head.")) and "rot_emb" not in key]
    if left or unexpected:
        raise RuntimeError(f"fair-esm's model is not as this benchmark knows it: {left + list(unexpected)}")
    return twin


@torch.no_grad()
def _scaler(projection: nn.Module) -> Any:
    """Its scaler in torch, as read from a file of kind pcr, and the same regression folded into ``projection``."""
    from reverse_distillation.scaler.rd import rdScalerGPUOptimized

    buffers = dict(projection.named_buffers())
    width, kept = buffers["regression"].shape[0], buffers["regression"].shape[0] // 2
    components, _ = torch.linalg.qr(torch.randn(width, width, generator=torch.Generator().manual_seed(width)))
    coefficients = components[:, :kept].T @ buffers["regression"]
    buffers["regression"].copy_(components[:, :kept] @ coefficients)
    scaler: Any = rdScalerGPUOptimized()
    scaler.regressor_type = "pcr"
    scaler.regressor_step = scaler.predict_pcr
    scaler.n_significant_pcs_ = kept
    values = {
        "input_mean_": buffers["prefix_mean"],
        "output_mean_": buffers["backbone_mean"],
        "input_components_": components,
        "coef_": coefficients.T,
        "intercept_": torch.zeros_like(buffers["backbone_mean"]),
        "mean_": torch.zeros_like(buffers["backbone_mean"]),
        "components_": buffers["directions"].T,
    }
    for name, value in values.items():
        scaler.register_buffer(name, value.contiguous().clone())
    scaler.is_trained = True
    return scaler.eval()
