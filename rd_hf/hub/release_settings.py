"""What a publication is asked to do. Imports nothing heavy: the command's arguments are made of it."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, field
from pathlib import Path

from rd_hf.fitting.settings import FitOptions
from rd_hf.hub.options import PushOptions
from rd_hf.options import check_options, option, real, whole

# The stages of a publication, in their order.
STAGES = ("fetch", "fit", "judge", "push", "compare")


@dataclass(frozen=True)
class ReleaseSettings:
    """A publication: which family, fitted on what, judged how, and where it goes.

    Attributes:
        fit: sample and batches of the fit.
        push: of its options ``private``, ``license`` and ``token``.
    """

    repo_id: str = option(MISSING, "owner/name on the Hub; made where it does not exist", required=True)
    level: str | None = option(None, "largest level of ESM-2: 35M, 150M, 650M, 3B or 15B")
    config: str | None = option(None, "folder that describes another family (a config.json as in hub_configs/)")
    plan: bool = option(False, "say what it would need, and do nothing")
    json: bool = option(False, "the plan as JSON, sizes in bytes")
    output: str | Path | None = option(None, "folder of the work and its record (default: release-NAME)", kind=Path)
    skip: tuple[str, ...] = option(
        (), "stages to leave out; without push and compare no login is needed", choices=STAGES
    )
    from_published: bool = option(False, "the first publication's bases, not new ones")
    memory: str | None = option(None, "memory to plan for, for example 24GB (default: what is free here)")
    data: tuple[str, ...] = option((), "sequences (default: the 1,000 proteins of the package)")
    group_tokens: int | None = option(
        None,
        "hold one backbone at a time, loaded anew for every group of batches of N tokens",
        kind=whole(1),
        former=("--window-tokens",),
        metavar="N",
    )
    least_r2: float = option(0.0, "held-out R2 below which nothing is pushed", kind=real())
    fit: FitOptions = field(default_factory=FitOptions)
    push: PushOptions = field(default_factory=PushOptions)

    def __post_init__(self) -> None:
        check_options(self)
        if self.from_published and self.level is None:
            raise ValueError("--from-published needs a --level of ESM-2: the first publication's bases are for it")
        if self.group_tokens is not None and self.group_tokens < self.fit.batch_tokens:
            raise ValueError(
                f"--group-tokens {self.group_tokens:,} must be at least --batch-tokens {self.fit.batch_tokens:,}"
            )

    @property
    def folder(self) -> Path:
        """Folder of the work and its record."""
        return Path(self.output or f"release-{self.repo_id.partition('/')[2]}")
