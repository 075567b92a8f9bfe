"""Resident memory of processes, from the kernel's own books. Imports nothing, so that it adds nothing to them."""

from __future__ import annotations

from pathlib import Path


def resident_mb(field: str, process: int | str = "self") -> float:
    """``VmRSS`` (now) or ``VmHWM`` (the highest since its start or :func:`reset_peak`) in MB; 0 of one that is gone.

    Unlike ``ru_maxrss`` the peak is without what the parent had when the process was forked.
    """
    try:
        status = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
    except FileNotFoundError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith(f"{field}:")), 0.0)


def reset_peak() -> None:
    """Make ``VmHWM`` of this process start again from what is resident now."""
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
