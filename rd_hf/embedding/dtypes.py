"""Which dtype a device is faster in: asked of the hardware, then measured."""

from __future__ import annotations

import time
from pathlib import Path

# Below this width products are no longer what a forward pass spends its time on.
_NARROWEST = 320
# A narrower dtype costs precision, so that it must gain more than a measurement is wrong by.
_WORTH_IT = 1.3
# Slower by less than this may be chance.
_CERTAIN = 1.1
_ROWS = 256
_ROUNDS = 5
# Beyond this one round is enough: emulated bfloat16 is twenty times slower, and nobody waits to hear that exactly.
_SECONDS = 0.2


def choose_dtype(device: str, width: int) -> tuple[str, str | None]:
    """What ``dtype="auto"`` means on a device.

    bfloat16 (or float16, on GPUs before it) where the device computes in it and a product of the model's shape says
    that it is faster; else float32.

    Args:
        device: name of a torch device.
        width: of the widest level that is to run.

    Returns:
        Name of the dtype, and a sentence for the user where it is not float32.
    """
    narrow = hardware_dtype(device)
    if narrow is None or width < _NARROWEST:
        return "float32", None
    gain = 1 / slowdown(narrow, device, width)
    if gain < _WORTH_IT:
        return "float32", None
    return narrow, (
        f"computing in {narrow}, which is {gain:.1f} times as fast as float32 on this device; appended columns differ "
        "by a few per cent, see the README; --dtype float32 is exact"
    )


def warn_of(dtype: str, device: str, width: int) -> str | None:
    """A sentence where a dtype that was asked for is slower than float32 on a device, with how much."""
    if dtype not in ("bfloat16", "float16"):
        return None
    factor = slowdown(dtype, device, max(width, _NARROWEST))
    if factor < _CERTAIN:
        return None
    return (
        f"{dtype} takes {factor:.1f} times as long as float32 on this device ({device}): --dtype float32 is exact too"
    )


def hardware_dtype(device: str) -> str | None:
    """The narrow dtype that a device has instructions for, None where there is none (or it would be emulated)."""
    import torch

    kind = torch.device(device)
    if kind.type == "cuda":
        major, _ = torch.cuda.get_device_capability(kind)
        return "bfloat16" if major >= 8 else "float16" if major >= 7 else None
    if kind.type != "cpu":
        return None
    return "bfloat16" if {"amx_bf16", "avx512_bf16"} & _cpu_flags() else None


def _cpu_flags() -> set[str]:
    """What this processor can do, as far as it says."""
    import torch

    ask = getattr(torch.cpu, "get_capabilities", None)
    if ask is not None:
        return {name for name, has in ask().items() if has is True}
    cpuinfo = Path("/proc/cpuinfo")
    return set(cpuinfo.read_text(encoding="utf-8").split()) if cpuinfo.exists() else set()


def slowdown(dtype: str, device: str, width: int) -> float:
    """Time of the widest product of a layer of ``width`` in a dtype over that in float32: the best of some turns."""
    import torch

    place = torch.device(device)
    kinds = (getattr(torch, dtype), torch.float32)
    shapes = ((_ROWS, width), (4 * width, width))
    operands = [[torch.ones(shape, dtype=kind, device=place) for shape in shapes] for kind in kinds]
    best, started = [float("inf"), float("inf")], time.perf_counter()
    with torch.inference_mode():
        for number in range(_ROUNDS + 1):
            for which, (states, weight) in enumerate(operands):
                begun = time.perf_counter()
                torch.nn.functional.linear(states, weight)
                if place.type == "cuda":
                    torch.cuda.synchronize(place)
                # The first also loads what it needs.
                if number:
                    best[which] = min(best[which], time.perf_counter() - begun)
            if number and time.perf_counter() - started > _SECONDS:
                break
    return best[0] / best[1]
