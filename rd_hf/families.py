"""Families of protein language models that this project names: one record per family, which configs are made from.

Nothing heavy is imported until a config is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
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
        commit: of the repo, to which configs are pinned; None for a model that is published nowhere.
        download: bytes of its weight files at that commit.
        inner: width of the feed-forward half of a layer; 0 for four times the width.
    """

    name: str
    repo_id: str
    width: int
    layers: int
    heads: int
    commit: str | None = None
    download: int = 0
    inner: int = 0

    @property
    def sizes(self) -> dict[str, Any]:
        """The settings of a backbone that all families name alike."""
        return {
            "hidden_size": self.width,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "intermediate_size": self.inner or 4 * self.width,
            "pad_token_id": 1,
            "mask_token_id": 32,
            "initializer_range": 0.02,
        }


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
    return member.sizes | {
        "vocab_size": 33,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "max_position_embeddings": 1026,
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


def esmc_backbone(member: Member) -> dict[str, Any]:
    """Arguments of the ``EsmcConfig`` of an ESM-C model, as its config.json on the Hub has them."""
    return member.sizes | {
        "model_type": "esmc",
        "vocab_size": 64,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "num_key_value_heads": member.heads,
        "head_dim": member.width // member.heads,
        "hidden_act": "silu",
        "max_position_embeddings": 2048,
        "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
    }


@dataclass(frozen=True)
class Family:
    """One family of backbones, as the package names, counts and cites it.

    How its models are built and run stands in :class:`rd_hf.model.families_rd_esm.BackboneFamily`, of the same
    ``model_type``.

    Attributes:
        prefix: before a level's name in the names of its chains.
        members: its published models, smallest first.
        backbone: settings of a member.
        stores_positions: its files hold a table of absolute positions, whether or not the model reads it.
        longest_trained: residues of the longest sequences that its models were trained on; None if not known.
        citation: BibTeX entry of its paper, for the cards of its chains.
    """

    prefix: str
    members: tuple[Member, ...]
    backbone: Callable[[Member], dict[str, Any]]
    stores_positions: bool = False
    longest_trained: int | None = None
    citation: str | None = None

    def up_to(self, level: str) -> tuple[Member, ...]:
        """Members from the smallest up to a level; a ValueError if it has no such level, or it is the smallest."""
        names = [member.name for member in self.members]
        if level not in names[1:]:
            from rd_hf.model.families_rd_esm import family_of

            title = family_of(self.backbone(self.members[0])).title
            raise ValueError(f"no reverse-distilled {title} {level}: choose {', '.join(names[1:])}")
        return self.members[: names.index(level) + 1]

    def config(self, level: str) -> RDEsmConfig:
        """The chain from the smallest member up to a level, as :func:`esm2_config`."""
        return _chain((member.name, self, member) for member in self.up_to(level))


# By `model_type`, as the records that travel.
FAMILIES: Mapping[str, Family] = {
    "esm": Family("rd-esm2", ESM2, esm2_backbone, stores_positions=True, longest_trained=1022),
    "esmc": Family(
        "rd-esmc",
        ESMC,
        esmc_backbone,
        citation="""@misc{esm2024cambrian,
  title = {{ESM Cambrian}: Revealing the mysteries of proteins with unsupervised learning},
  author = {{ESM Team}},
  howpublished = {EvolutionaryScale},
  year = {2024}
}""",
    ),
}


def _chain(levels: Iterable[tuple[str, Family, Member]], directions: list[int] | None = None) -> RDEsmConfig:
    """Bases only, each backbone pinned to the commit of its repo, where one is named here."""
    from rd_hf.model.configuration_rd_esm import RDEsmConfig

    entries = [
        {"name": name, "repo_id": member.repo_id, "revision": member.commit, "backbone": family.backbone(member)}
        for name, family, member in levels
    ]
    return RDEsmConfig(levels=entries, residual_directions=directions, backbones_in_checkpoint=False)


def esm2_config(level: str) -> RDEsmConfig:
    """The chain of ESM-2 models from 8M up to ``level``, bases only, each backbone pinned to a commit of its repo.

    A ValueError if ESM-2 has no such level, or it is the smallest.
    """
    return FAMILIES["esm"].config(level)


def lossless_config(level: str) -> RDEsmConfig:
    """As :func:`esm2_config`, with all directions of every level kept: as wide as the backbones together."""
    config = esm2_config(level)
    config.residual_directions = config.backbone_widths[1:]
    return config


def mixed_config() -> RDEsmConfig:
    """ESM-2 650M, then what ESM-C 600M knows beyond it: all of its 1,152 directions, since the widths do not grow."""
    larger = ESMC[1]
    levels = [("esm2-650M", FAMILIES["esm"], ESM2[3]), ("esmc-600M", FAMILIES["esmc"], larger)]
    return _chain(levels, [larger.width])


# Every named chain, and how its config is made; the small mini family lies in hub_configs alone.
NAMED: dict[str, Callable[[], RDEsmConfig]] = {
    **{
        f"{family.prefix}-{member.name}": partial(family.config, member.name)
        for family in FAMILIES.values()
        for member in family.members[1:]
    },
    **{f"rd-esm2-{member.name}-lossless": partial(lossless_config, member.name) for member in ESM2[1:]},
    "rd-esm2-650M-esmc-600M": mixed_config,
}


def named_config(name: str) -> RDEsmConfig | None:
    """The config that a name such as ``rd-esm2-650M`` stands for, wherever one is; None for any other name."""
    return NAMED[name]() if name in NAMED else None
