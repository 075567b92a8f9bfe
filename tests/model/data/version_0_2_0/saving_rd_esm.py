"""Where a model's weights go to: saving in both forms, pushing.

This file travels to the Hub beside ``modeling_rd_esm.py``: it imports public names of torch and transformers only.
"""

import os
import stat
import tempfile
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.utils import cached_file

from .families_rd_esm import FAMILIES
from .layers_rd_esm import stack_of
from .origin_rd_esm import check_names, decide_form
from .weights_rd_esm import former_weights, refuse_foreign, rotary_modules, without_bars, write_index

# What a repo holds beside config, code and weights.
_COMPANIONS = (
    *("README.md", "fit_report.json", "fit_report.png", "modules.json"),
    *("tokenizer.json", "vocab.txt", "tokenizer_config.json", "special_tokens_map.json"),
)


def _file_mode(folder: str) -> int:
    """Permissions that the umask gives a new file: safetensors makes its own readable by their owner alone."""
    path = os.path.join(folder, ".mode")
    with open(path, "xb") as file:
        mode = os.fstat(file.fileno()).st_mode
    os.remove(path)
    return stat.S_IMODE(mode)


def _without_folder(entry: dict[str, Any]) -> dict[str, Any]:
    """A level as others read it, who have no such folder."""
    if not os.path.isdir(entry["repo_id"] or ""):
        return entry
    kept = {key: value for key, value in entry.items() if key != "level_of_repo"}
    return kept | {"repo_id": None, "revision": None}


class RDEsmSaving(PreTrainedModel):
    """What a reverse-distilled model does instead of the library's own saving and pushing."""

    _companions: tuple[str, ...] = _COMPANIONS

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        is_main_process: bool = True,
        state_dict: dict[str, torch.Tensor] | None = None,
        push_to_hub: bool = False,
        max_shard_size: int | str = "5GB",
        backbones: bool | None = None,
        **kwargs: Any,
    ) -> None:
        """Write config, remote code and weights, as safetensors.

        Args:
            save_directory: folder; weights of an earlier save in it are replaced, other files are left alone.
            backbones: `False` writes the bases only (`model.safetensors`), for backbones that are published at
                their `repo_id`; `True` writes the full form too, each backbone in files of its own
                (`model.projections.safetensors`, `model.backbone-150M.safetensors`, ..., and the usual
                `model.safetensors.index.json` over all of them). By default as the config says, and in the full
                form, with a warning, where backbones are no longer those of their repos (trained, an adapter
                merged, ...).
            is_main_process, state_dict, push_to_hub, max_shard_size, kwargs: as in transformers.

        Raises:
            ValueError: bases only, but a level names no `repo_id` or its backbone is no longer that one; or full,
                but the backbones are not there, or hold an adapter; or the folder holds another model's files of the
                same names.
        """
        for ours in ("variant", "safe_serialization", "save_original_format"):
            kwargs.pop(ours, None)
        if getattr(self, "_hf_peft_config_loaded", False):
            super().save_pretrained(save_directory, is_main_process=is_main_process, state_dict=state_dict, **kwargs)
            return
        if not is_main_process:
            return
        state = self.state_dict() if state_dict is None else state_dict
        before, levels = self.config.backbones_in_checkpoint, self.config.levels
        full = decide_form(self, state, backbones, full=before, push=False)
        parts = self._parts(state, full)
        folder = os.fspath(save_directory)
        if os.path.isdir(folder):
            # Said before gigabytes are written. Beside the full form, model.safetensors would be loaded in its place.
            certain = ("config.json", "model.safetensors")
            refuse_foreign(folder, [n for n in os.listdir(folder) if n in certain or n.endswith("_rd_esm.py")])
        os.makedirs(folder, exist_ok=True)
        self.config.backbones_in_checkpoint = full
        if full:
            # A folder of this machine means nothing in another's config.json.
            self.config.levels = [_without_folder(entry) for entry in levels]
        try:
            # Written beside the old files and moved over them: these may be what the model's tensors map.
            with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as staging, without_bars():
                for variant, part in parts.items():
                    super().save_pretrained(
                        staging,
                        state_dict=part,
                        max_shard_size=max_shard_size,
                        variant=variant,
                        # The keys are already those that every release reads.
                        save_original_format=False,
                    )
                if full:
                    write_index(staging)
                fresh = os.listdir(staging)
                refuse_foreign(folder, fresh)
                former = former_weights(folder)
                mode = _file_mode(staging)
                for name in fresh:
                    os.chmod(os.path.join(staging, name), mode)
                    os.replace(os.path.join(staging, name), os.path.join(folder, name))
            for name in former - set(fresh):
                os.remove(os.path.join(folder, name))
        finally:
            self.config.backbones_in_checkpoint, self.config.levels = before, levels
        if push_to_hub:
            self.push_to_hub(kwargs.pop("repo_id", os.path.basename(os.path.abspath(folder))), backbones=full, **kwargs)

    def push_to_hub(self, repo_id: str, *args: Any, backbones: bool | None = None, **kwargs: Any) -> Any:
        """As in transformers: bases only, or with `backbones=True` the backbones too.

        By default bases only where every backbone still is that of its Hub repo, and else, with a warning, all.

        Tokenizer, fit report, figure and card come along from the folder or repo that the model was loaded
        from. `rd-hf push` pushes a folder, makes its card afresh, and checks what arrived.
        """
        backbones = decide_form(self, self.state_dict(), backbones, full=False, push=True)
        before, self.config.backbones_in_checkpoint = self.config.backbones_in_checkpoint, backbones
        # A card that describes the other form stays behind.
        self._companions = _COMPANIONS if before == backbones else _COMPANIONS[1:]
        try:
            return super().push_to_hub(repo_id, *args, **kwargs)
        finally:
            self.config.backbones_in_checkpoint = before

    def _upload_modified_files(self, working_dir: str | os.PathLike, repo_id: str, *args: Any, **kwargs: Any) -> Any:
        # transformers has just written a card of its own; one that came with the model says more.
        source = getattr(self.config, "name_or_path", "") or ""
        for name in self._companions if source else ():
            if os.path.isdir(source):
                found = os.path.join(source, name)
                if os.path.islink(found) or not os.path.isfile(found):
                    continue
            else:
                found = cached_file(source, name, _raise_exceptions_for_missing_entries=False)
                if found is None:
                    continue
            with open(found, "rb") as file:
                content = file.read()
            if name == "README.md":
                for old in (source, f"your-name/{os.path.basename(os.path.abspath(source))}"):
                    content = content.replace(old.encode(), repo_id.encode())
            with open(os.path.join(working_dir, name), "wb") as file:
                file.write(content)
        return super()._upload_modified_files(working_dir, repo_id, *args, **kwargs)

    def _parts(self, state: dict[str, torch.Tensor], full: bool) -> dict[str | None, dict[str, torch.Tensor]]:
        """The tensors of each file (or set of shards), by variant name."""
        if self.config.one_pass:
            raise ValueError(
                "this model was loaded for one pass, without its smaller backbones and their bases: load it without "
                "one_pass=True to save it"
            )
        ours = ("projections.", "readout.", "whitening.")
        projections = {key: value for key, value in state.items() if key.startswith(ours)}
        if not full:
            return {None: projections}
        if len(self.backbones) < len(self.config.backbone_groups) or self.first_backbone:
            raise ValueError(
                "this model holds bases only; fetch its backbones (load_backbones) or save backbones=False"
            )
        parts: dict[str | None, dict[str, torch.Tensor]] = {"projections": projections}
        for index, backbone in enumerate(self.backbones):
            family = FAMILIES[backbone.config.model_type]
            prefix = f"backbones.{index}."
            part = {
                key: value for key, value in state.items() if key.startswith(prefix) and not key.endswith("inv_freq")
            }
            check_names(self, index, part)
            # Under the keys of releases before 5.6 (one a layer) and since (one a model): each finds its own
            # and ignores the other.
            for module in rotary_modules(backbone)[:1] if family.stores_frequencies else ():
                frequencies = module.get_buffer("inv_freq")
                layers = range(len(stack_of(backbone)))
                for place in ["", *(f"{family.layers}.{layer}.attention.self." for layer in layers)]:
                    part[f"{prefix}{place}rotary_embeddings.inv_freq"] = frequencies.detach().clone()
            parts[f"backbone-{self.config.backbone_name(index)}"] = part
        return parts
