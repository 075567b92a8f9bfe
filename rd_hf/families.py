"""Families of protein language models that this project names: one description that configs are made from.

Nothing heavy is imported until a config is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
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
    """

    name: str
    repo_id: str
    width: int
    layers: int
    heads: int
    commit: str | None = None
    download: int = 0


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
        "intermediate_size": 4 * member.width,
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


def esm2_config(level: str) -> RDEsmConfig:
    """The chain from 8M up to ``level``, bases only, each backbone pinned to a commit of its repo.

    Raises:
        ValueError: ESM-2 has no such level, or it is the smallest.
    """
    from rd_hf.model.configuration_rd_esm import RDEsmConfig

    names = [member.name for member in ESM2]
    if level not in names[1:]:
        raise ValueError(f"no reverse-distilled ESM-2 {level}: choose {', '.join(names[1:])}")
    levels = [
        {"name": member.name, "repo_id": member.repo_id, "revision": member.commit, "backbone": esm2_backbone(member)}
        for member in ESM2[: names.index(level) + 1]
    ]
    return RDEsmConfig(levels=levels, backbones_in_checkpoint=False)


def named_config(name: str) -> RDEsmConfig | None:
    """The description that a name such as ``rd-esm2-650M`` stands for, wherever one is; None for any other name."""
    level = name.removeprefix("rd-esm2-")
    known = level != name and level in [member.name for member in ESM2[1:]]
    return esm2_config(level) if known else None
