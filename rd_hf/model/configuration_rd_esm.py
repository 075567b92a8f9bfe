"""Configuration of a reverse-distilled family, and what its fields may hold.

This file travels to the Hub beside ``modeling_rd_esm.py``. Releases of transformers up to 5.0 fetch of a repo's code
only what a file itself names: so it imports from every file that it needs, directly or not.
"""

import copy
import itertools
import math
import os
import re
from collections.abc import Collection, Mapping
from typing import Any

import torch
from transformers import PretrainedConfig
from transformers.utils import logging

from .families_rd_esm import (
    check_backbone,
    check_number,
    check_tokens,
    expect,
    family_of,
    is_whole,
    longest_input,
    stored_entries,
    whole_entries,
    wrong,
)
from .files_rd_esm import LEVEL_NAME
from .pooling_rd_esm import LONG_INPUTS, MAX_RESIDUES, SPECIAL_TOKENS

logger = logging.get_logger(__name__)

# The version that writes a checkpoint. This file travels without the package, so it cannot ask it.
RD_HF_VERSION = "0.2.0"

# Follow from the others; written for other tools, never read back.
_DERIVED_FIELDS = (
    *("nested_dims", "hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size"),
    *("is_matryoshka", "matryoshka_dimensions"),
)
# transformers' names of what a head predicts: numbers, one class of several, or each class by itself.
PROBLEMS = ("regression", "single_label_classification", "multi_label_classification")
# What a head answers of.
HEADS = ("sequences", "residues")
# What git allows in the name of a branch or tag, and no absolute path.
_REVISION = re.compile(r"[^\x00-\x20\x7f~^:?*\[\\/][^\x00-\x20\x7f~^:?*\[\\]*")
# Beyond any classifier's, and still made in no time.
_MOST_LABELS = 2**20
_DTYPES = ("float32", "bfloat16", "float16", "float64")
# Who runs a model decides these, never the config.json of a checkpoint: how it is computed (for an attention called
# "owner/kernel" transformers fetches compiled code), which files are read, and what the checkpoint is called.
RUNNERS_FIELDS = frozenset(
    (
        *("attn_implementation", "experts_implementation", "kernel_config", "fusion_config", "distributed_config"),
        *("transformers_weights", "name_or_path", "trust_remote_code"),
    )
)
# Fields that some transformers release from 4.57 on writes for every model, whether or not the running one does.
COMMON_FIELDS = {
    *("model_type", "auto_map", "transformers_version", "name_or_path", "trust_remote_code", "transformers_weights"),
    *("dtype", "torch_dtype", "quantization_config", "attn_implementation"),
    *("output_attentions", "output_hidden_states"),
    *("return_dict", "use_return_dict", "use_cache", "problem_type", "num_labels", "id2label", "label2id"),
    *("tie_word_embeddings", "is_decoder", "is_encoder_decoder", "add_cross_attention", "tokenizer_class", "prefix"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "decoder_start_token_id", "pruned_heads"),
    *("cross_attention_hidden_size", "tie_encoder_decoder", "finetuning_task", "task_specific_params"),
    *("torchscript", "use_bfloat16", "tf_legacy_loss", "experts_implementation", "fusion_config"),
    *("distributed_config", "kernel_config"),
}


class RDEsmConfig(PretrainedConfig):
    r"""
    Describes a chain of backbones (smallest first) and the bases that nest their embeddings.

    Args:
        levels (`list[dict]`):
            One entry per level, smallest first. `name` ("150M"), `backbone` (its `model_type`, "esm" where there is
            none, and the arguments of that type's config), `repo_id` (Hub id or local folder it comes from, or
            `None`) and `revision` (the commit of that repo that was used when the bases were fitted, or `None`).
            A level with `layer` n is its backbone as if that ended after n layers, normed by its final norm.
            Neighbouring levels of one backbone share its weights and one forward pass: all but one of them name in
            `layers_of` the level under whose name the weights lie.
        residual_directions (`list[int]`, *optional*):
            Directions of the residual that each level after the first adds, from 1 to `k_i`. By default
            `k_i - k_(i-1)`, the paper's choice, so that a nested embedding is as wide as its largest backbone; with
            `k_i` at every level nothing of any backbone is lost.
        level (`str`, *optional*):
            The largest level to build; `None` means the whole family. `from_pretrained(..., level="150M")` therefore
            loads a smaller model out of a larger checkpoint.
        bases (`dict`, *optional*):
            A record of how the bases were fitted (regression, sequences, residues, seed, data), for the model card;
            the model never reads it.
        whitening (`dict`, *optional*):
            Where the checkpoint holds statistics to whiten by: `weights`, a number per level that its whitened block is
            multiplied by; a record of both (`of`, `criterion`); `grids`, whether it holds those for numbers of a byte.
        backbones_in_checkpoint (`bool`):
            `True`: the checkpoint holds backbones and bases. `False`: it holds the bases only, and each backbone
            is fetched from its `repo_id` at its `revision`.
        readout (`dict`, *optional*):
            Of a family that was fitted with a one-pass readout: `layers`, those of the largest backbone that it reads
            beside its final state.
        one_pass (`bool`):
            Run the largest backbone alone and read every level out of its layers. Given when loading, as `level` is.
        exact_activation (`bool`):
            `False`: the backbones' layers are computed in fewer passes over memory than transformers takes, which
            rounds otherwise (by some 5e-6 in a final state of order one, float32). `True`: the same bits as
            transformers' own classes. The weights are the same.
        long_input (`str`):
            What becomes of a sequence of more than `max_residues` residues that the model is called with. `"error"`: it
            is refused. `"window"`: it is run in overlapping windows, and their states are merged as rd_hf's `Embedder`
            merges them. `"whole"`: it is run as it is. Given when loading; `forward` takes it too.
        max_residues (`int`):
            Longest sequence that the model sees at once, in residues; by default that of ESM-2's training, 1,022.
        heads (`dict`, *optional*):
            Of a checkpoint with heads (`heads_rd_esm.py`): whether they are `of` "sequences" or "residues", the
            `levels` that have one, the `level` that answers where none is asked for (by default the largest), a
            record of the `bases` that each was made for, and the `wild_type` whose variants they know, if they do.
        rd_hf_version (`str`, *optional*):
            The version that wrote the checkpoint; `None` before 0.2.0.

    `config.json` also holds, for other tools: `nested_dims` (level name to width of its nested embedding),
    `hidden_size` (the widest of them), `num_hidden_layers` (of all backbones), `num_attention_heads` and `vocab_size`
    (of the largest backbone); `is_matryoshka` and `matryoshka_dimensions` (the widths), without which inference servers
    refuse a request for fewer dimensions.

    Fields that this version does not know, from a newer one, are dropped with a warning that names them.

    Raises:
        ValueError: a field is not as above, a backbone is none that this version can build, names repeat or cannot be
            part of a file name, widths do not grow while `residual_directions` is left to its default, vocabularies
            differ, or `level` is unknown.
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
        long_input: str = "error",
        max_residues: int = MAX_RESIDUES,
        heads: dict[str, Any] | None = None,
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
        flags = {
            "backbones_in_checkpoint": backbones_in_checkpoint,
            "exact_activation": exact_activation,
            "one_pass": one_pass,
        }
        for field, value in flags.items():
            if not isinstance(value, bool):
                raise wrong(field, "true or false", value)
        check_number("initializer_range", initializer_range, 0, math.inf)
        expect("rd_hf_version", rd_hf_version, str, "a text")
        levels = whole_entries(levels)
        for index, entry in enumerate(levels or []):
            check_entry(f"levels[{index}]", entry)
            check_tokens(entry["name"], entry)
            given = {name: value for name, value in entry["backbone"].items() if value not in (None, False)}
            if unread := unknown_fields(given, family_of(given).fields):
                logger.warning(
                    f"the backbone of level {entry['name']} has fields in config.json that this version does not know "
                    f"and leaves aside: {', '.join(unread)}; if results depend on them, use a newer rd_hf"
                )
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
        check_long(long_input, max_residues)
        self.long_input = long_input
        self.max_residues = max_residues
        self._check_levels()
        self.residual_directions = self._directions(residual_directions)
        if self.levels:
            kwargs.setdefault("pad_token_id", self.levels[0]["backbone"].get("pad_token_id", 1))
            self.level_index(level)
        check_common(kwargs)
        if readout is not None:
            check_readout(readout, self.levels)
        check_heads(heads, self.level_names)
        self.heads = heads or None
        super().__init__(**kwargs)

    @staticmethod
    def _drop_unknown(fields: dict[str, Any]) -> None:
        """Remove what a newer version of this file may have added, with a warning."""
        unknown = unknown_fields(fields)
        for name in [*unknown, *filter(is_private, list(fields))]:
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
        """Position of a level, `None` being the largest; raises `ValueError` for one that the family does not have."""
        if level is None:
            return len(self.levels) - 1
        if level not in self.level_names:
            raise ValueError(f"unknown level {level!r}: this model has {', '.join(self.level_names)}")
        return self.level_names.index(level)

    @property
    def nested_dims(self) -> dict[str, int]:
        """Width of each level's nested embedding, up to `level`."""
        added = [*self.backbone_widths[:1], *self.residual_directions][: self.level_index(self.level) + 1]
        return dict(zip(self.level_names, itertools.accumulate(added)))

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

        Raises `ValueError` where this release of transformers does not have its family.
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
        groups = self.backbone_groups
        return next((index for index, levels in enumerate(groups) if level <= levels[-1]), len(groups))

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
        """Longest input of `level`, in tokens with cls and eos; `None` where all backbones that run for it have rotary
        positions, and take any."""
        entries = self.levels[-1:] if self.one_pass else self.levels[: self.level_index(level) + 1]
        return min(filter(None, (longest_input(entry["backbone"]) for entry in entries)), default=None)

    @property
    def residues_at_once(self) -> int:
        """Longest sequence that a model sees at once, in residues."""
        longest = self.longest_input()
        return self.max_residues if longest is None else min(self.max_residues, longest - SPECIAL_TOKENS)

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
        if cut.heads:
            cut.heads = heads_among(cut.heads, cut.level_names)
        cut.level = None
        return cut

    def as_loaded(self) -> "RDEsmConfig":
        """A copy that describes what a model of this config holds: the levels up to `level`, or in one pass all.

        Raises:
            ValueError: one pass, for which this family was not fitted; or a `long_input` or `max_residues` that was set
                since and is not as above.
        """
        check_long(self.long_input, self.max_residues)
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
            ValueError: the checkpoint is of another model type, which transformers itself would only warn of, it has
                no levels, its weights are to be quantised, or the file is nested too deeply.
        """
        path = pretrained_model_name_or_path
        try:
            config, unused = super().get_config_dict(path, **kwargs)
        except RecursionError as error:
            raise ValueError(f"{path}: its config.json is nested too deeply to be read: fetch it again") from error
        found = config.get("model_type", cls.model_type)
        if found != cls.model_type:
            raise ValueError(
                f"{path} is a checkpoint of type {found!r}, not {cls.model_type!r}: name a reverse-distilled family "
                f"here"
            )
        levels = config.get("levels")
        if not levels and config:
            raise ValueError(
                f"{path}: levels in its config.json must be a list with an entry for each level, not {levels!r}"
            )
        if config.get("quantization_config"):
            raise ValueError(
                f"{path}: its config.json has a quantization_config, and weights of a reverse-distilled model are "
                f"stored as they are: remove it, and pass quantization_config= when loading"
            )
        return config, unused

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As in transformers, but keywords alone decide what `RUNNERS_FIELDS` names."""
        allowed = {
            name: value for name, value in config_dict.items() if name not in RUNNERS_FIELDS and not is_private(name)
        }
        return super().from_dict(allowed, **kwargs)

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        """As in transformers."""
        self.rd_hf_version = RD_HF_VERSION
        super().save_pretrained(save_directory, *args, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """The fields of `config.json`, derived ones included."""
        output = super().to_dict()
        output["levels"] = stored_entries(output["levels"])
        for name in ("readout", "one_pass", "whitening", "exact_activation", "heads"):
            # Absent where there is none, as in every config.json of before there were any.
            if not output.get(name):
                output.pop(name, None)
        for name, default in (("long_input", "error"), ("max_residues", MAX_RESIDUES)):
            if output.get(name) == default:
                del output[name]
        return output | {name: getattr(self, name) for name in _DERIVED_FIELDS}


def check_whitening(whitening: Any, levels: int) -> None:
    """Raise unless this says how blocks are whitened, or is none."""
    expect("whitening", whitening, dict, "an object with the weights of the levels")
    weights = [] if not whitening else whitening.get("weights")
    numbers = isinstance(weights, list) and all(is_whole(one) or isinstance(one, float) for one in weights)
    if whitening and not (numbers and len(weights) == levels and all(0 <= one < math.inf for one in weights)):
        raise wrong("whitening.weights", f"{levels} finite numbers not below 0, one per level", weights)


def check_heads(heads: Any, names: list[str]) -> None:
    """Raise unless this says which heads there are, of a family with levels of these names, or is none."""
    expect("heads", heads, dict, "an object")
    if not heads:
        return
    if heads.get("of") not in HEADS:
        raise wrong("heads.of", " or ".join(HEADS), heads.get("of"))
    levels, answering = heads.get("levels"), heads.get("level")
    if not isinstance(levels, list) or any(level not in names for level in levels):
        raise wrong("heads.levels", f"a list of levels, of {', '.join(names)}", levels)
    if answering is not None and answering not in levels:
        raise wrong("heads.level", f"one of heads.levels, {', '.join(levels)}", answering)
    expect("heads.bases", heads.get("bases"), dict, "an object")
    wild_type = heads.get("wild_type")
    letters = isinstance(wild_type, str) and wild_type.isascii() and wild_type.isupper() and wild_type.isalpha()
    if wild_type is not None and not (letters and heads["of"] == "sequences"):
        raise wrong("heads.wild_type", "a sequence, where heads are of sequences", wild_type)


def heads_among(heads: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """What is left of `heads` in a family that ends at the last of these levels."""
    kept = {key: value for key, value in heads.items() if key != "level" or value in names}
    kept["levels"] = [level for level in heads["levels"] if level in names]
    if "bases" in heads:
        kept["bases"] = {level: digest for level, digest in heads["bases"].items() if level in names}
    return kept


def is_private(field: str) -> bool:
    """Whether transformers keeps this to itself; the commit is its own note of where a file was found."""
    return field.startswith("_") and field != "_commit_hash"


def unknown_fields(fields: Mapping[str, Any], own: Collection[str] = ()) -> list[str]:
    """Names of fields that are neither among `own` nor in any config of transformers."""
    known = COMMON_FIELDS | set(vars(PretrainedConfig())) | set(own)
    return sorted(name for name in fields if name not in known and not name.startswith("_"))


def check_common(fields: Mapping[str, Any]) -> None:
    """Raise unless the fields that every model of transformers has are what they can be here."""
    for field in ("dtype", "torch_dtype"):
        value = fields.get(field)
        floats = isinstance(value, torch.dtype) and value.is_floating_point
        if value is not None and not floats and value not in _DTYPES:
            raise wrong(field, " or ".join(_DTYPES), value)
    for field in ("output_attentions", "output_hidden_states", "return_dict"):
        expect(field, fields.get(field), bool, "true or false")
    for field in ("id2label", "label2id"):
        expect(field, fields.get(field), dict, "an object")
    labels = fields.get("num_labels")
    if labels is not None and not (is_whole(labels) and 0 <= labels <= _MOST_LABELS):
        raise wrong("num_labels", f"a whole number up to {_MOST_LABELS:,}", labels)
    problem = fields.get("problem_type")
    if problem is not None and problem not in PROBLEMS:
        raise wrong("problem_type", " or ".join(PROBLEMS), problem)
    pad = fields.get("pad_token_id", 1)
    if not is_whole(pad) or pad != 1:
        raise wrong("pad_token_id", "1, that of ESM-2's vocabulary", pad)


def check_long(long_input: Any, max_residues: Any) -> None:
    """Raise unless these say what becomes of a long sequence, and how long it may be."""
    if long_input not in LONG_INPUTS:
        raise wrong("long_input", f"one of {', '.join(LONG_INPUTS)}", long_input)
    if not is_whole(max_residues) or max_residues < 1:
        raise wrong("max_residues", "a whole number above 0", max_residues)


def check_entry(where: str, entry: Any) -> None:
    """Raise unless one of `levels` is what a level is described by."""
    if not isinstance(entry, dict):
        raise wrong(where, "an object with name and backbone", entry)
    absent = {"name", "backbone"} - set(entry)
    if absent:
        raise ValueError(f"{where}: each level needs {sorted(absent)}; got {sorted(entry)}")
    if not isinstance(entry["name"], str):
        raise wrong(f"{where}.name", "a text", entry["name"])
    for field in ("repo_id", "revision"):
        expect(f"{where}.{field}", entry.get(field), str, "a text or null")
    revision = entry.get("revision")
    # It becomes part of a path in the Hub's cache.
    if revision is not None and (".." in revision or not _REVISION.fullmatch(revision)):
        raise wrong(f"{where}.revision", "a commit, branch or tag", revision)
    for field in ("layers_of", "level_of_repo"):
        named = entry.get(field)
        expect(f"{where}.{field}", named, str, "the name of a level")
        if named is not None and not LEVEL_NAME.fullmatch(named):
            raise wrong(f"{where}.{field}", "the name of a level, which can be part of a file name", named)
    backbone = entry["backbone"]
    if not isinstance(backbone, dict):
        raise wrong(f"{where}.backbone", "an object", backbone)
    check_backbone(f"{where}.backbone", entry["name"], backbone)
    layer, layers = entry.get("layer", 1), backbone["num_hidden_layers"]
    if not (is_whole(layer) and 1 <= layer <= layers):
        raise wrong(f"{where}.layer", f"the number of one of its backbone's {layers} layers, from 1", layer)


def check_readout(readout: dict[str, Any], levels: list[dict[str, Any]]) -> None:
    """Raise unless a readout names layers that the last of the levels has below its final state."""
    if len(levels) < 2:
        raise wrong("readout", "null for a family of one level", readout)
    layers, last = readout.get("layers"), levels[-1]
    count = last.get("layer") or last["backbone"]["num_hidden_layers"]
    if not isinstance(layers, list) or not all(is_whole(layer) and 0 <= layer < count for layer in layers):
        raise wrong("readout.layers", f"a list of layers of the largest backbone, from 0 to {count - 1}", layers)
    if sorted(set(layers)) != layers:
        raise wrong("readout.layers", "a list of layers in growing order", layers)
