"""What a publication is asked to do. Imports nothing heavy: the command's arguments are made of it."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, field, replace
from pathlib import Path

from rd_hf.families import ESM2
from rd_hf.fitting.settings import CPU_FIT_TOKENS, FitOptions
from rd_hf.flags import FOLDER, flag
from rd_hf.hub.options import PushOptions
from rd_hf.options import check_options, option, real

# The stages of a publication, in their order.
STAGES = ("fetch", "fit", "judge", "push", "compare")


@dataclass(frozen=True)
class ReleaseSettings:
    """A publication: which family, fitted on what, judged how, and where it goes.

    Of the options ``push`` three count: ``private``, ``license`` and ``token``. ``level`` is another name of
    ``config``.
    """

    repo_id: str = flag("repo_id", MISSING, ", made where it does not exist", required=True)
    level: str | None = option(None, "largest level of ESM-2, as --config rd-esm2-LEVEL", hidden=True)
    config: str | None = flag(
        "config",
        None,
        ": rd-esm2-35M, -150M, -650M, -3B or -15B, rd-esmc-600M or -6B, rd-esm2-650M-esmc-600M, or a folder with a "
        "config.json",
    )
    plan: bool = option(False, "say what it would need, and do nothing")
    json: bool = flag("json", False, " in place of the plan's words, sizes in bytes")
    output: str | Path | None = flag(
        "output", None, f", and its record: {FOLDER} (default: release-NAME)", kind=Path, metavar="DIR"
    )
    skip: tuple[str, ...] = option(
        (), "stages to leave out; without push and compare no login is needed", choices=STAGES
    )
    from_published: bool = option(False, "the first publication's bases, not new ones")
    memory: str | None = option(
        None, "memory to plan for, for example 24GB (default: what is free here)", metavar="SIZE"
    )
    data: tuple[str, ...] = flag(
        "input", (), ", as rd-hf fit takes them (default: the 1,000 of the package)", former=("--data",)
    )
    group_tokens: int | None = flag(
        "group_tokens",
        None,
        ": hold one backbone at a time, loaded anew for every group of batches of N tokens (default: hold all "
        "backbones)",
        former=("--window-tokens",),
    )
    least_r2: float = option(0.0, "held-out R2 below which nothing is pushed", kind=real())
    fit: FitOptions = field(default_factory=FitOptions)
    push: PushOptions = field(default_factory=PushOptions)

    def __post_init__(self) -> None:
        check_options(self)
        # A plan is made for one number, with one backbone in memory at a time.
        tokens = self.fit.batch_tokens or CPU_FIT_TOKENS
        object.__setattr__(self, "fit", replace(self.fit, batch_tokens=tokens))
        level = (self.config or "").removeprefix("rd-esm2-")
        is_named = self.config == f"rd-esm2-{level}" and level in {member.name for member in ESM2}
        # A folder of that name counts where it is a model, as for rd-hf fit.
        if self.level is None and is_named and not (Path(str(self.config)) / "config.json").is_file():
            object.__setattr__(self, "level", level)
            object.__setattr__(self, "config", None)
        if self.from_published and self.level is None:
            raise ValueError("--from-published needs --config rd-esm2-...: the first publication's bases are for ESM-2")
        if self.group_tokens is not None and self.group_tokens < tokens:
            raise ValueError(f"--group-tokens {self.group_tokens:,} must be at least --batch-tokens {tokens:,}")

    @property
    def folder(self) -> Path:
        """Folder of the work and its record."""
        return Path(self.output or f"release-{self.repo_id.partition('/')[2]}")
