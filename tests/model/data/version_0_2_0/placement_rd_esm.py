"""Where backbones and projections go under a ``device_map``.

This file travels to the Hub beside ``modeling_rd_esm.py``: it imports public names of torch and transformers only.
"""

import re
from collections.abc import Sequence
from typing import Any

from torch import nn


class Placement:
    """Where backbones and projections go under a `device_map`.

    Args:
        device_map, max_memory: as in transformers.
        groups: for each backbone, the positions of the levels that it serves.
    """

    def __init__(self, device_map: Any, max_memory: dict[Any, Any] | None, groups: Sequence[Sequence[int]]) -> None:
        self.device_map = device_map
        self.serving = {level: index for index, levels in enumerate(groups) for level in levels}
        self.left = {device: _bytes(size) for device, size in (max_memory or {}).items()}
        self.maps: dict[int, dict[str, Any]] = {}

    def arguments(self, index: int) -> dict[str, Any]:
        """`device_map` (and `max_memory`) of one backbone."""
        if isinstance(self.device_map, str) and self.device_map in ("auto", "balanced", "balanced_low_0", "sequential"):
            return {"device_map": self.device_map, "max_memory": dict(self.left) or None}
        if not isinstance(self.device_map, dict):
            return {"device_map": {"": self.device_map}}
        prefix = f"backbones.{index}"
        inside = {key[len(prefix) + 1 :]: to for key, to in self.device_map.items() if key.startswith(f"{prefix}.")}
        for whole in ("", "backbones", prefix):
            if whole in self.device_map and not inside.keys() - {""}:
                inside[""] = self.device_map[whole]
        if not inside:
            raise ValueError(
                f"device_map has no entry for {prefix}; its keys are {', '.join(map(repr, self.device_map))}"
            )
        return {"device_map": inside}

    def add(self, index: int, backbone: nn.Module) -> None:
        """Note where a backbone went, and what it takes there."""
        given = getattr(backbone, "hf_device_map", None)
        if given is None:
            given = {"": next(backbone.parameters()).device}
        self.maps[index] = dict(given)
        for name, to in given.items():
            size = sum(
                parameter.nbytes
                for key, parameter in backbone.named_parameters()
                if not name or key == name or key.startswith(f"{name}.")
            )
            if to in self.left:
                self.left[to] = max(0, self.left[to] - size)

    def holds(self, level: int) -> bool:
        """Whether the backbone of the level at this position was placed."""
        return self.serving[level] in self.maps

    def device(self, level: int) -> Any:
        """Where a level's backbone ends: layers that are kept in memory or on disk compute on an accelerator."""
        if isinstance(self.device_map, dict) and f"projections.{level - 1}" in self.device_map:
            return self.device_map[f"projections.{level - 1}"]
        accelerators = [to for to in self.maps[self.serving[level]].values() if str(to) not in ("cpu", "disk")]
        return accelerators[-1] if accelerators else "cpu"

    def merged(self) -> dict[str, Any]:
        """One map over the whole model."""
        merged = {
            f"backbones.{index}{'.' if name else ''}{name}": to
            for index, names in self.maps.items()
            for name, to in names.items()
        }
        levels = [level for level in self.serving if level and self.holds(level)]
        return merged | {f"projections.{level - 1}": self.device(level) for level in levels}


def _bytes(size: int | str) -> int:
    """ "8GB", "500MiB" or a number, in bytes."""
    if isinstance(size, int):
        return size
    match = re.fullmatch(r"\s*([0-9.]+)\s*([KMGT]?)(i?)B?\s*", size, flags=re.IGNORECASE)
    if match is None:
        raise ValueError(f"max_memory {size!r} is no size: write it as 500MB, 8GiB or a number of bytes")
    unit = 1024 if match[3] else 1000
    return int(float(match[1]) * unit ** " KMGT".index(match[2].upper() or " "))
