"""Configuration of a reverse-distilled family.

This file travels to the Hub beside ``modeling_rd_esm.py``: it imports public names of transformers only.
"""

import copy
import itertools
import os
from typing import Any

from transformers import PretrainedConfig
from transformers.utils import logging

from .alphabet_rd_esm import check_tokens
from .families_rd_esm import family_of, longest_input
from .fields_rd_esm import (
    COMMON_FIELDS,
    LEVEL_NAME,
    check_entry,
    check_readout,
    check_whitening,
    expect,
    is_whole,
    stored_entries,
    whole_entries,
    wrong,
)

logger = logging.get_logger(__name__)

# The version that writes a checkpoint. This file travels without the package, so it cannot ask it.
RD_HF_VERSION = "0.2.0"

# Follow from the others; written for other tools, never read back.
_DERIVED_FIELDS = (
    *("nested_dims", "hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size"),
    *("is_matryoshka", "matryoshka_dimensions"),
)


class RDEsmConfig(PretrainedConfig):
    r"""
    Describes a chain of backbones (smallest first) and the bases that nest their embeddings.

    Args:
        levels (`list[dict]`):
            One entry a level, smallest first. `name` ("150M"), `backbone` (its `model_type`, "esm" where there is
            none, and the arguments of that type's config), `repo_id` (Hub id or local folder it comes from, or
            `None`) and `revision` (the commit of that repo that was used when the bases were fitted, or `None`).
            A level with `layer` n is its backbone as if that ended after n layers, normed by its final norm.
            Neighbouring levels of one backbone share its weights and one forward pass: all but one of them say in
            `layers_of` under whose name the weights lie.
        residual_directions (`list[int]`, *optional*):
            Directions of the residual that each level after the first adds. By default `k_i - k_(i-1)`, the
            paper's choice, so that a nested embedding is as wide as its largest backbone; any number from 1 to
            `k_i` is allowed, and with `k_i` at every level nothing of any backbone is lost.
        level (`str`, *optional*):
            The largest level to build. `None` means the whole family. `from_pretrained(..., level="150M")`
            therefore loads a smaller model out of a larger checkpoint.
        bases (`dict`, *optional*):
            How the bases were fitted (regression, sequences, residues, seed, data): a record, never read by the
            model. The model card is written from it.
        whitening (`dict`, *optional*):
            `None`: the checkpoint holds no statistics to whiten by. Otherwise they are there, with `weights`, a number
            a level that its whitened block is multiplied by, and a record of where both come from (`of`,
            `criterion`).
        backbones_in_checkpoint (`bool`):
            `True`: the checkpoint holds backbones and bases. `False`: it holds the bases only, and each backbone
            is fetched from its `repo_id` at its `revision`.
        readout (`dict`, *optional*):
            Of a family that was fitted with a one-pass readout, what that reads: `layers`, those of the largest
            backbone beside its final state.
        one_pass (`bool`):
            Run the largest backbone alone and read every level out of its layers. As `level` it is said when
            loading: `from_pretrained(..., one_pass=True)`.
        exact_activation (`bool`):
            `False`: the backbones' layers are computed in fewer passes over memory than transformers takes, which
            rounds otherwise (by some 5e-6 in a final state of order one, float32). `True`: the same bits as
            transformers' own classes. The weights are the same.
        rd_hf_version (`str`, *optional*):
            The version that wrote the checkpoint; `None` before 0.2.0. Saving writes the version that saves.

    Attributes that follow from these and are written to `config.json` for other tools to read: `nested_dims`
    (level name to width of its nested embedding), `hidden_size` (the widest of them), `num_hidden_layers` (of
    all backbones), `num_attention_heads` and `vocab_size` (of the largest backbone); `is_matryoshka` and
    `matryoshka_dimensions` (the widths), without which inference servers refuse a request for fewer dimensions.

    Fields that this version does not know, from a newer one, are dropped with a warning that names them.

    Raises:
        ValueError: a field is of another type than the one above, a backbone is none that this version can build,
            names repeat or cannot be part of a file name, widths do not grow while `residual_directions` is left
            to its default, a number of directions is out of range, vocabularies differ, or `level` is unknown.
    """

    model_type = "rd_esm"
    # What `Trainer` leaves aside when it gathers predictions.
    keys_to_ignore_at_inference = ["hidden_states", "attentions", "backbone_states"]

    def __init__(
        self,
        levels: list[dict[str, Any]] | None = None,
        residual_directions: list[int] | None = None,
        level: str | None = None,
        bases: dict[str, Any] | None = None,
        whitening: dict[str, Any] | None = None,
        backbones_in_checkpoint: bool = True,
        exact_activation: bool = False,
        initializer_range: float = 0.02,
        rd_hf_version: str | None = None,
        readout: dict[str, Any] | None = None,
        one_pass: bool = False,
        **kwargs: Any,
    ) -> None:
        for derived in _DERIVED_FIELDS:
            kwargs.pop(derived, None)
        self._drop_unknown(kwargs)
        expect("levels", levels, list, "a list with an entry for each level")
        expect("residual_directions", residual_directions, list, "a list of whole numbers")
        expect("level", level, str, "the name of a level")
        expect("bases", bases, dict, "an object")
        expect("readout", readout, dict, "an object with layers")
        for field, value in (
            ("backbones_in_checkpoint", backbones_in_checkpoint),
            ("exact_activation", exact_activation),
        ):
            if not isinstance(value, bool):
                raise wrong(field, "true or false", value)
        levels = whole_entries(levels)
        for index, entry in enumerate(levels or []):
            check_entry(f"levels[{index}]", entry)
            check_tokens(entry["name"], entry)
        self.levels = [{"repo_id": None, "revision": None, **entry} for entry in levels or []]
        self.level = level
        self.bases = bases or {}
        check_whitening(whitening, len(self.levels))
        self.whitening = whitening or None
        self.backbones_in_checkpoint = backbones_in_checkpoint
        self.exact_activation = exact_activation
        self.initializer_range = initializer_range
        self.rd_hf_version = rd_hf_version
        self.readout = readout
        self.one_pass = one_pass
        self._check_levels()
        self.residual_directions = self._directions(residual_directions)
        if self.levels:
            kwargs.setdefault("pad_token_id", self.levels[0]["backbone"].get("pad_token_id", 1))
            self.level_index(level)
        if readout is not None:
            check_readout(readout, self.levels)
        super().__init__(**kwargs)

    @staticmethod
    def _drop_unknown(fields: dict[str, Any]) -> None:
        """Remove what a newer version of this file may have added, and say so."""
        known = COMMON_FIELDS | set(vars(PretrainedConfig()))
        unknown = sorted(name for name in fields if name not in known and not name.startswith("_"))
        for name in unknown:
            del fields[name]
        if unknown:
            logger.warning(
                f"config.json has fields that this version of RDEsmConfig does not know and leaves out: "
                f"{', '.join(unknown)}; if results depend on them, use the code that came with the checkpoint "
                f"(trust_remote_code=True) or a newer rd_hf"
            )

    def _check_levels(self) -> None:
        names = self.level_names
        for name in names:
            if not LEVEL_NAME.fullmatch(name):
                raise ValueError(f"level name {name!r} cannot be part of a file name; use letters, digits, . _ and -")
        if len(set(names)) != len(names):
            raise ValueError(f"level names must differ, got {names}")
        for index, levels in enumerate(self.backbone_groups):
            if self.backbone_name(index) in [self.backbone_name(other) for other in range(index)]:
                raise ValueError(f"levels that are layers of {self.backbone_name(index)} must follow one another")
            if any(self.levels[level]["backbone"] != self.levels[levels[0]]["backbone"] for level in levels):
                raise ValueError(f"levels that are layers of {self.backbone_name(index)} must have one backbone")

    def _directions(self, given: list[int] | None) -> list[int]:
        widths = self.backbone_widths
        names = self.level_names
        if given is None:
            given = [wide - narrow for narrow, wide in itertools.pairwise(widths)]
            for index, directions in enumerate(given):
                if directions < 1:
                    raise ValueError(
                        f"level {names[index + 1]} ({widths[index + 1]} wide) does not grow beyond {names[index]} "
                        f"({widths[index]} wide): order levels by width, or give residual_directions, how many "
                        f"directions each level after the first adds"
                    )
        for index, directions in enumerate(given):
            if not is_whole(directions):
                raise wrong(f"residual_directions[{index}]", "a whole number", directions)
        if len(given) != max(0, len(widths) - 1):
            raise ValueError(
                f"residual_directions needs one number for each level after the first ({len(widths) - 1}), got {given}"
            )
        for name, width, directions in zip(names[1:], widths[1:], given):
            if not 1 <= directions <= width:
                raise ValueError(f"level {name} can keep 1 to {width} residual directions, not {directions}")
        return list(given)

    @property
    def level_names(self) -> list[str]:
        """Names of the levels, smallest first."""
        return [entry["name"] for entry in self.levels]

    @property
    def backbone_widths(self) -> list[int]:
        """Hidden size k_i of each backbone."""
        return [entry["backbone"]["hidden_size"] for entry in self.levels]

    def level_index(self, level: str | None) -> int:
        """Position of a level; `None` is the largest.

        Raises:
            ValueError: the family has no such level; the message lists those it has.
        """
        if level is None:
            return len(self.levels) - 1
        if level not in self.level_names:
            raise ValueError(f"unknown level {level!r}: this model has {', '.join(self.level_names)}")
        return self.level_names.index(level)

    @property
    def nested_dims(self) -> dict[str, int]:
        """Width of each level's nested embedding, up to `level`."""
        dims: dict[str, int] = {}
        width = 0
        for index in range(self.level_index(self.level) + 1):
            width += self.backbone_widths[0] if index == 0 else self.residual_directions[index - 1]
            dims[self.level_names[index]] = width
        return dims

    @property
    def hidden_size(self) -> int:
        """Width of the widest nested embedding."""
        return max(self.nested_dims.values(), default=0)

    @property
    def is_lossless(self) -> bool:
        """Whether all directions of every backbone are kept, so that each one's state follows from the embedding."""
        return bool(self.levels) and self.residual_directions == self.backbone_widths[1:]

    @property
    def is_matryoshka(self) -> bool:
        """Whether an embedding may be cut to fewer dimensions."""
        return True

    @property
    def matryoshka_dimensions(self) -> list[int]:
        """Dimensions that an embedding may be cut to."""
        return list(self.nested_dims.values())

    @property
    def num_hidden_layers(self) -> int:
        """Layers of all backbones together, as far as they run."""
        return sum(self.backbone_depth(index) for index in range(len(self.backbone_groups)))

    @property
    def num_attention_heads(self) -> int:
        """Heads of the largest backbone."""
        return self.levels[-1]["backbone"]["num_attention_heads"] if self.levels else 0

    @property
    def vocab_size(self) -> int:
        """Vocabulary that all backbones share."""
        return min((entry["backbone"]["vocab_size"] for entry in self.levels), default=0)

    def backbone_config(self, index: int) -> PretrainedConfig:
        """The library's config of the backbone of the level at a position, `EsmConfig` for ESM-2.

        Raises:
            ValueError: this release of transformers does not have its family.
        """
        backbone = self.levels[index]["backbone"]
        return family_of(backbone).config(backbone, self.level_names[index])

    def check_release(self) -> None:
        """Raise `ValueError` if this release of transformers lacks the family of a level that runs."""
        for index in range(len(self.levels) - 1 if self.one_pass else 0, len(self.levels)):
            self.backbone_config(index)

    @property
    def backbone_groups(self) -> list[list[int]]:
        """For each backbone, the positions of the levels that it serves: one, or several that are its layers."""
        groups: list[list[int]] = []
        before = None
        for index, entry in enumerate(self.levels):
            name = entry.get("layers_of", entry["name"])
            if name == before:
                groups[-1].append(index)
            else:
                groups.append([index])
            before = name
        return groups

    def first_backbone(self, level: int) -> int:
        """Position of the backbone of the level at a position; beyond the last level, that behind the last backbone."""
        return next(
            (index for index, levels in enumerate(self.backbone_groups) if level <= levels[-1]),
            len(self.backbone_groups),
        )

    def backbone_entry(self, index: int) -> dict[str, Any]:
        """The last of the levels of the backbone at a position."""
        return self.levels[self.backbone_groups[index][-1]]

    def backbone_name(self, index: int) -> str:
        """Name under which the weights of the backbone at a position are kept."""
        entry = self.backbone_entry(index)
        return entry.get("layers_of", entry["name"])

    def depth(self, level: int) -> int:
        """Layers of its backbone that the level at a position ends after."""
        entry = self.levels[level]
        return entry.get("layer") or entry["backbone"]["num_hidden_layers"]

    def backbone_depth(self, index: int) -> int:
        """Layers that the backbone at a position needs."""
        return max(self.depth(level) for level in self.backbone_groups[index])

    def longest_input(self, level: str | None = None) -> int | None:
        """Longest input of `level`, in tokens with cls and eos: that of the strictest backbone that runs for it;
        `None` where all have rotary positions, and take any."""
        entries = self.levels[-1:] if self.one_pass else self.levels[: self.level_index(level) + 1]
        return min(filter(None, (longest_input(entry["backbone"]) for entry in entries)), default=None)

    def up_to(self, level: str | None) -> "RDEsmConfig":
        """A copy that ends at `level`, as if the larger levels did not exist."""
        index = self.level_index(level)
        cut = copy.deepcopy(self)
        cut.levels = cut.levels[: index + 1]
        cut.residual_directions = cut.residual_directions[:index]
        if len(cut.levels) < len(self.levels):
            # It reads the largest backbone, which is no longer one of them.
            cut.readout = None
        if cut.whitening:
            cut.whitening["weights"] = cut.whitening["weights"][: index + 1]
        cut.level = None
        return cut

    def as_loaded(self) -> "RDEsmConfig":
        """A copy that describes what a model of this config holds: the levels up to `level`, or in one pass all.

        Raises:
            ValueError: one pass, for which this family was not fitted.
        """
        if not self.one_pass:
            return self.up_to(self.level)
        if self.readout is None:
            raise ValueError(
                "this family was fitted without a one-pass readout: fit it with rd-hf fit --one-pass, or load it "
                "without one_pass=True"
            )
        whole = copy.deepcopy(self)
        # It was taken from exact embeddings, and would not whiten these.
        whole.whitening = None
        return whole

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """As in transformers.

        Raises:
            ValueError: the checkpoint is of another model type, which transformers itself would only warn of, or it
                has no levels.
        """
        config, unused = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        found = config.get("model_type", cls.model_type)
        if found != cls.model_type:
            raise ValueError(
                f"{pretrained_model_name_or_path} is a checkpoint of type {found!r}, not {cls.model_type!r}: name a "
                f"reverse-distilled family here"
            )
        if not config.get("levels") and config:
            raise ValueError(
                f"{pretrained_model_name_or_path}: levels in its config.json must be a list with an entry for each "
                f"level, not {config.get('levels')!r}"
            )
        return config, unused

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        """As in transformers."""
        self.rd_hf_version = RD_HF_VERSION
        super().save_pretrained(save_directory, *args, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """The fields of `config.json`, derived ones included."""
        output = super().to_dict()
        output["levels"] = stored_entries(output["levels"])
        for name in ("readout", "one_pass", "whitening", "exact_activation"):
            # Absent where there is none, as in every config.json of before there were any.
            if not output.get(name):
                output.pop(name, None)
        return output | {name: getattr(self, name) for name in _DERIVED_FIELDS}
