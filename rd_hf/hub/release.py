"""The stages of a publication, each recorded when it is done, so that a second run goes on where the first stopped."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

from rd_hf.data.fasta import InputError
from rd_hf.families import ESM2, esm2_config
from rd_hf.files import write_json
from rd_hf.hub.card import is_hub_id
from rd_hf.hub.checkpoint import REPORT_FILE, read_config
from rd_hf.hub.plan import Plan, memory_in_use, readable
from rd_hf.hub.published import Recipe
from rd_hf.model.configuration_rd_esm import RDEsmConfig
from rd_hf.model.files_rd_esm import find_weights
from rd_hf.model.staging_rd_esm import clear_staging

STAGES = ("fetch", "fit", "judge", "push", "compare")
PUBLISHED_REPO = "singhlab/plm_reverse_distillation"
# The file names of the recipe that the first publication reports, under weights/ of its repo.
PUBLISHED_RECIPE = Recipe("pcr", "incremental", "1k")


class Release:
    """Which stages of a publication are done: ``release.json`` beside the model.

    Args:
        folder: of the publication; the model lies in its ``model``.
        settings: what must be the same when it is continued.

    Raises:
        InputError: the folder holds a publication of other settings, or its record is damaged.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.record = folder / "release.json"
        self.model = folder / "model"
        self.stages: dict[str, dict[str, Any]] = {}
        # As they come back from the record.
        self.settings = json.loads(json.dumps(settings))
        if not self.record.exists():
            return
        # A kill just after the last stage was noted leaves nothing else to write.
        clear_staging(folder)
        try:
            found = json.loads(self.record.read_text(encoding="utf-8"))
            former, self.stages = dict(found["settings"]), {name: dict(done) for name, done in found["stages"].items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"{self.record} is no record of a publication ({error!r}): move it elsewhere, and all stages are done "
                f"anew"
            ) from error
        # What an earlier version did not note cannot be compared.
        changed = sorted(name for name in self.settings if name in former and former[name] != self.settings[name])
        if changed:
            raise InputError(
                f"{folder} holds a publication of other {', '.join(changed)}: repeat the command that began it, "
                f"or choose another --output"
            )

    def run(
        self,
        stage: str,
        skipped: set[str],
        work: Callable[[], dict[str, Any]],
        say: Callable[[str], None],
        **options: Any,
    ) -> None:
        """Do a stage, unless it was done or is to be skipped, and record its seconds, its peak memory and result.

        Args:
            options: what decides its result beside the settings: with others it is done again, and what follows too,
                unless it only judges.
        """
        if stage in skipped:
            say(f"{stage}: skipped")
            return
        if stage in self.stages:
            former = self.stages[stage].get("options", {})
            changed = sorted(name for name in options if name not in former or former[name] != options[name])
            if not changed:
                say(f"{stage}: done before")
                return
            say(f"{stage}: again, with {', '.join(f'{name} {options[name]}' for name in changed)}")
            if stage != "judge":
                # What followed was of the former result.
                for name in STAGES[STAGES.index(stage) :]:
                    self.stages.pop(name, None)
        say(f"{stage} ...")
        started = time.perf_counter()
        with peak_memory_of_stage() as peak:
            result = work()
        done = {"seconds": round(time.perf_counter() - started, 2), "peak_bytes": peak(), "options": options, **result}
        self.stages[stage] = done
        self.record.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.record, {"settings": self.settings, "stages": self.stages})
        say(f"{stage}: done in {done['seconds']:,.0f} s, peak {readable(done['peak_bytes'])}")


def family_of(level: str | None, folder: str | None) -> RDEsmConfig:
    """ESM-2 up to a level, or the family that a folder's config.json describes.

    Raises:
        InputError: the folder is a whole checkpoint, or does not say where a backbone comes from.
        ValueError, OSError: no such level; no such folder.
    """
    if folder is None:
        return esm2_config(level or "")
    config = read_config(folder)
    if config.backbones_in_checkpoint:
        raise InputError(f"{folder} holds its backbones itself: rd-hf push publishes it as it is")
    for entry in config.levels:
        if not is_hub_id(entry["repo_id"]) or Path(entry["repo_id"]).is_dir():
            raise InputError(
                f"level {entry['name']} of {folder} takes its backbone from {entry['repo_id']}, which is no Hub id, so "
                f"that nobody could load what is published: put owner/name and commit in its config.json"
            )
    return config


@contextmanager
def peak_memory_of_stage(every: float = 0.05) -> Iterator[Callable[[], int]]:
    """The highest resident memory meanwhile, in bytes, looked at twenty times a second."""
    highest = [memory_in_use()]
    over = threading.Event()

    def watch() -> None:
        while not over.wait(every):
            highest[0] = max(highest[0], memory_in_use())

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield lambda: highest[0]
    finally:
        over.set()
        thread.join()


def check_fits(plan: Plan, window: bool, memory: int | None = None) -> None:
    """Raise unless a fit fits into memory and onto the disk, naming the flag that makes it.

    Raises:
        InputError: it does not.
    """
    if (why := plan.trouble(window, memory)) is not None:
        raise InputError(why)


def check_login(repo_id: str, token: str | None) -> str:
    """Whose login it is; raise where it cannot publish to ``repo_id``, before the hours and not after.

    Raises:
        InputError: no login, one that the Hub does not know, or one that may not write there.
    """
    try:
        who = HfApi(token=token).whoami()
    except (LocalTokenNotFoundError, HfHubHTTPError) as error:
        raise InputError(
            f"publishing to {repo_id} needs a login ({str(error).splitlines()[0]}): run 'hf auth login' or give "
            f"--token; --skip push compare prepares everything without one"
        ) from error
    owner = repo_id.partition("/")[0]
    names = [who["name"], *(org["name"] for org in who.get("orgs", []))]
    if owner not in names:
        raise InputError(f"{who['name']} cannot publish to {repo_id}: its owner is none of {', '.join(names)}")
    return str(who["name"])


def fetch(config: RDEsmConfig, say: Callable[[str], None], **hub: Any) -> dict[str, Any]:
    """Bring the weights of every backbone into the cache, smallest first; what is there already stays."""
    size = 0
    for entry in config.levels:
        files = find_weights(entry["repo_id"], entry["revision"], **hub)
        own = sum((Path(files.folder) / name).stat().st_size for name in files.names)
        say(
            f"  {entry['name']}: {len(files.names)} file(s), {readable(own)}, {entry['repo_id']} at {entry['revision']}"
        )
        size += own
    return {"bytes": size}


def fetch_published(folder: Path, level: str, **hub: Any) -> dict[str, Any]:
    """Bring the first publication's bases into ``folder``: one file for each step up to a level."""
    names = [member.name for member in ESM2]
    if level not in names[1:]:
        raise InputError(f"the first publication has no bases for {level}: choose {', '.join(names[1:])}")
    size = 0
    for small, large in pairwise(names[: names.index(level) + 1]):
        name = f"weights/{PUBLISHED_RECIPE.file(small, large)}"
        size += Path(hf_hub_download(PUBLISHED_REPO, name, local_dir=folder, **hub)).stat().st_size
    return {"bytes": size}


def judge(folder: Path, floor: float) -> dict[str, Any]:
    """What the held-out residues say of a fit.

    Args:
        floor: the least share of a level's variance that its basis must explain on residues kept out of the fit.

    Returns:
        Held-out R^2 and share of the residual kept by level; empty where none were measured (published bases).

    Raises:
        InputError: a level is below ``floor``.
    """
    report = json.loads((folder / REPORT_FILE).read_text(encoding="utf-8"))
    found = {
        row["level"]: {"r2": row["heldout"]["r2"], "residual_variance_kept": row["heldout"]["residual_variance_kept"]}
        for row in report
        if row.get("heldout")
    }
    for level, figures in found.items():
        if not figures["r2"] >= floor:
            raise InputError(
                f"level {level} explains {figures['r2']:.4f} of the variance of residues kept out of the fit, below "
                f"--least-r2 {floor}: fit on more sequences (--num-sequences, --data), or --skip judge"
            )
    return {"heldout": found}


def parse_memory(word: str) -> int:
    """ "24GB" or "24GiB", in bytes.

    Raises:
        InputError: it is no size.
    """
    match = re.fullmatch(r"([0-9.]+)\s*([MG])(i?)B", word)
    if match is None:
        raise InputError(f"--memory {word} is no size: write it as 500MB, 24GB or 24GiB")
    return int(float(match[1]) * (1024 if match[3] else 1000) ** {"M": 2, "G": 3}[match[2]])
