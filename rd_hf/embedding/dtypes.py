"""Which dtypes a device computes in by its hardware: for notes to the user alone.

Jobs compute in :data:`rd_hf.embedding.options.DTYPE` on every device, unless a narrower type is asked for by name.
"""

from __future__ import annotations

from pathlib import Path

from rd_hf.embedding.options import DTYPE

# Below this width products are no longer what a forward pass spends its time on: a narrow dtype gains nothing.
_NARROWEST = 320
_NARROW = ("bfloat16", "float16")
# First generation of GPUs that computes in it.
_GPUS = {"bfloat16": 8, "float16": 7}
# What processors call it: x86, then ARM.
_FLAGS = {
    "bfloat16": {"amx_bf16", "avx512_bf16", "bf16", "svebf16"},
    "float16": {"amx_fp16", "avx512_fp16", "fphp", "asimdhp"},
}


def hardware_dtype(device: str) -> str | None:
    """Return the narrow dtype that a device has instructions for, None where it has none."""
    return next((dtype for dtype in _NARROW if _has(dtype, device)), None)


def hint_of(dtype: str, device: str, width: int) -> str | None:
    """Return a sentence where a job computes in the default dtype and a narrow one would be faster at this width."""
    narrow = hardware_dtype(device)
    if dtype != DTYPE or narrow is None or width < _NARROWEST:
        return None
    return (
        f"computing in {DTYPE}, the default everywhere: --dtype {narrow} is faster on this device, at the price of "
        "appended columns off by a few per cent; what is compared with a folder, or extends it, needs its dtype"
    )


def warn_of(dtype: str, device: str) -> str | None:
    """Return a sentence where a dtype that was asked for is emulated on a device, and so slower than float32."""
    if dtype not in _NARROW or _has(dtype, device) is not False:
        return None
    return (
        f"this device ({device}) has no instructions for {dtype} and emulates it, which takes 5 to 20 times as long as "
        "float32: --dtype float32 is exact too"
    )


def _has(dtype: str, device: str) -> bool | None:
    """Whether a device has instructions for a narrow dtype; None where that is not known."""
    import torch

    kind = torch.device(device)
    if kind.type == "cuda":
        return torch.cuda.get_device_capability(kind)[0] >= _GPUS[dtype]
    return bool(_FLAGS[dtype] & _cpu_flags()) if kind.type == "cpu" else None


def _cpu_flags() -> set[str]:
    """What this processor can do, as far as it says."""
    import torch

    ask = getattr(torch.cpu, "get_capabilities", None)
    found = {name for name, has in ask().items() if has is True} if ask is not None else set()
    cpuinfo = Path("/proc/cpuinfo")
    return found | (set(cpuinfo.read_text(encoding="utf-8").split()) if cpuinfo.exists() else set())
