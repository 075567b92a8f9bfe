"""Everything between a model in memory and a repo on the Hub: save, load, describe, push, import."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rd_hf.lazy import lazy_names

if TYPE_CHECKING:
    from rd_hf.hub.checkpoint import load_family, save_checkpoint
    from rd_hf.hub.push import push_folder, push_model

__all__ = ["load_family", "push_folder", "push_model", "save_checkpoint"]

_CHECKPOINT, _PUSH = "rd_hf.hub.checkpoint", "rd_hf.hub.push"
__getattr__ = lazy_names(
    __name__, {"load_family": _CHECKPOINT, "save_checkpoint": _CHECKPOINT, "push_folder": _PUSH, "push_model": _PUSH}
)
