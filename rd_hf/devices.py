"""The device of a process, by its rank or as a user names it, and one message for all commands where it is absent."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rd_hf.data.records import InputError

if TYPE_CHECKING:
    import torch

_NAMES = "give cpu, cuda, cuda:1 (the second GPU) or mps"


def parse_device(device: str) -> torch.device:
    """A torch device by its name, whether or not this machine has it: a cluster's workers may.

    An InputError if it is the name of none that a model could run on.
    """
    import torch

    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise InputError(f"{device!r} names no device: {_NAMES}") from error
    if found.type == "meta":
        raise InputError(f"device meta holds no numbers: {_NAMES}")
    return found


def check_device(device: str) -> torch.device:
    """A torch device that this process can use; raises an InputError where it cannot."""
    import torch

    found = parse_device(device)
    if found.type != "cpu":
        try:
            torch.empty(1, device=found)
        # A build without a backend says so by whichever of these.
        except (AssertionError, NotImplementedError, RuntimeError, ImportError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise _absent(device, reason[:200]) from error
    return found


def check_device_is_there(device: str) -> torch.device:
    """As :func:`check_device`, but a GPU is counted and not used: a process that used one must not be forked."""
    import torch

    found = parse_device(device)
    if found.type != "cuda":
        return check_device(device)
    count = torch.cuda.device_count()
    if (found.index or 0) >= count:
        raise _absent(device, "there is no such GPU" if count else "torch sees no GPU")
    return found


def kind_of(device: str | None) -> str:
    """What computes: ``cpu``, ``cuda`` or ``mps``, of a device's name, or of what this machine would take.

    Numbers of two kinds differ in their last digits, and in a narrow dtype in their third.
    """
    return parse_device(device).type if device is not None else pick_device().type


def _absent(device: str, reason: str) -> InputError:
    import torch

    gpus = range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
    return InputError(
        f"device {device} cannot be used here ({reason}): this machine has "
        f"{', '.join(['cpu', *(f'cuda:{index}' for index in gpus)])}; leave the device away for the best of them"
    )


def pick_device(rank: int | None = None) -> torch.device:
    """The device for process ``rank``: a GPU by rank where there are any, else Apple's, else the CPU.

    An InputError if CUDA was used before this process was forked.
    """
    import torch

    if torch.cuda.is_available():
        if torch.cuda._is_in_bad_fork():
            raise InputError(
                "CUDA was already in use when this worker process was forked; call "
                "multiprocess.set_start_method('spawn') at the top of the program, before map(num_proc=...)"
            )
        return torch.device("cuda", (rank or 0) % torch.cuda.device_count())
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
