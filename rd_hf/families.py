"""Families of protein language models that this project names: one description that configs are made from.

Nothing heavy is imported until a config is asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rd_hf.model.configuration_rd_esm import RDEsmConfig


@dataclass(frozen=True)
class Member:
    """One model of a family.

    Attributes:
        name: level name, by number of parameters.
        repo_id: Hub id of its weights.
        width, layers, heads: architecture.
        commit: of the repo, to which configs are pinned; None for a model that lies nowhere.
        download: bytes of its weight files at that commit.
        inner: width of the feed-forward half of a layer; four times the width where it is not said.
    """

    name: str
    repo_id: str
    width: int
    layers: int
    heads: int
    commit: str | None = None
    download: int = 0
    inner: int = 0


# Lin et al. 2023, table S1; Hub ids by Meta AI. The first four repos hold safetensors at these commits, the last two
# `.bin` shards alone.
ESM2 = (
    Member("8M", "facebook/esm2_t6_8M_UR50D", 320, 6, 20, "c731040fcd8d73dceaa04b0a8e6329b345b0f5df", 31_384_292),
    Member("35M", "facebook/esm2_t12_35M_UR50D", 480, 12, 20, "6fbf070e65b0b7291e7bbcd451118c216cff79d8", 136_008_798),
    Member(
        "150M", "facebook/esm2_t30_150M_UR50D", 640, 30, 20, "a695f6045e2e32885fa60af20c13cb35398ce30c", 595_257_706
    ),
    Member(
        "650M", "facebook/esm2_t33_650M_UR50D", 1280, 33, 20, "08e4846e537177426273712802403f7ba8261b6c", 2_609_506_392
    ),
    Member(
        "3B", "facebook/esm2_t36_3B_UR50D", 2560, 36, 40, "476b639933c8baad5ad09a60ac1a87f987b656fc", 11_367_082_474
    ),
    Member(
        "15B", "facebook/esm2_t48_15B_UR50D", 5120, 48, 40, "5fbca39631164edc1d402a5aa369f982f72ee282", 60_538_109_592
    ),
)


def esm2_backbone(member: Member) -> dict[str, Any]:
    """Arguments of the ``EsmConfig`` of an ESM-2 model, as its config.json on the Hub has them."""
    return {
        "vocab_size": 33,
        "pad_token_id": 1,
        "mask_token_id": 32,
        "hidden_size": member.width,
        "num_hidden_layers": member.layers,
        "num_attention_heads": member.heads,
        "intermediate_size": member.inner or 4 * member.width,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "max_position_embeddings": 1026,
        "initializer_range": 0.02,
        "layer_norm_eps": 1e-5,
        "position_embedding_type": "rotary",
        "emb_layer_norm_before": False,
        "token_dropout": True,
    }


# ESM Cambrian (EvolutionaryScale 2024), in the layout that transformers has itself, safetensors. Where no commit is
# named, fitting pins the one of its day.
ESMC = (
    Member("300M", "biohub/ESMC-300M-hf", 960, 30, 15, None, 1_332_032_536, 2560),
    Member(
        "600M", "biohub/ESMC-600M-hf", 1152, 36, 18, "0fb34e7e5fe1f85d0abaa3d35e2671107c0b458c", 2_300_201_352, 3072
    ),
    Member("6B", "biohub/ESMC-6B-hf", 2560, 80, 40, None, 25_408_161_000, 6912),
)
MEMBERS = (*ESM2, *ESMC)


def esmc_backbone(member: Member) -> dict[str, Any]:
    """What a level says of an ESM-C model: arguments of its ``EsmcConfig``, as its config.json on the Hub has them."""
    return {
        "model_type": "esmc",
        "vocab_size": 64,
        "pad_token_id": 1,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "mask_token_id": 32,
        "hidden_size": member.width,
        "num_hidden_layers": member.layers,
        "num_attention_heads": member.heads,
        "num_key_value_heads": member.heads,
        "head_dim": member.width // member.heads,
        "intermediate_size": member.inner,
        "hidden_act": "silu",
        "max_position_embeddings": 2048,
        "initializer_range": 0.02,
        "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
    }


def _chain(levels: dict[str, Member], directions: list[int] | None = None) -> RDEsmConfig:
    """Bases only, each backbone pinned to the commit of its repo, where one is named here."""
    from rd_hf.model.configuration_rd_esm import RDEsmConfig

    entries = [
        {
            "name": name,
            "repo_id": member.repo_id,
            "revision": member.commit,
            "backbone": esmc_backbone(member) if member in ESMC else esm2_backbone(member),
        }
        for name, member in levels.items()
    ]
    return RDEsmConfig(levels=entries, residual_directions=directions, backbones_in_checkpoint=False)


def _up_to(members: tuple[Member, ...], level: str, title: str) -> RDEsmConfig:
    names = [member.name for member in members]
    if level not in names[1:]:
        raise ValueError(f"no reverse-distilled {title} {level}: choose {', '.join(names[1:])}")
    return _chain({member.name: member for member in members[: names.index(level) + 1]})


def esm2_config(level: str) -> RDEsmConfig:
    """The chain from 8M up to ``level``, bases only, each backbone pinned to a commit of its repo.

    Raises:
        ValueError: ESM-2 has no such level, or it is the smallest.
    """
    return _up_to(ESM2, level, "ESM-2")


def esmc_config(level: str) -> RDEsmConfig:
    """The chain of ESM-C models from 300M up to ``level``, bases only.

    Raises:
        ValueError: ESM-C has no such level, or it is the smallest.
    """
    return _up_to(ESMC, level, "ESM-C")


def lossless_config(level: str) -> RDEsmConfig:
    """As :func:`esm2_config`, with all directions of every level kept: as wide as the backbones together.

    Raises:
        ValueError: as there.
    """
    config = esm2_config(level)
    config.residual_directions = config.backbone_widths[1:]
    return config


def mixed_config() -> RDEsmConfig:
    """ESM-2 650M, then what ESM-C 600M knows beyond it: all of its 1,152 directions, since the widths do not grow."""
    members = {"esm2-650M": ESM2[3], "esmc-600M": ESMC[1]}
    return _chain(members, [members["esmc-600M"].width])


# Every named family, and how its description is made; the small mini family lies in hub_configs alone.
NAMED: dict[str, Callable[[], RDEsmConfig]] = {
    **{f"rd-esm2-{member.name}": partial(esm2_config, member.name) for member in ESM2[1:]},
    **{f"rd-esm2-{member.name}-lossless": partial(lossless_config, member.name) for member in ESM2[1:]},
    **{f"rd-esmc-{member.name}": partial(esmc_config, member.name) for member in ESMC[1:]},
    "rd-esm2-650M-esmc-600M": mixed_config,
}


def named_config(name: str) -> RDEsmConfig | None:
    """The description that a name such as ``rd-esm2-650M`` stands for, wherever one is; None for any other name."""
    return NAMED[name]() if name in NAMED else None
