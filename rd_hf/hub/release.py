"""A publication: fetch, fit, judge, push, load back and compare.

Each stage is recorded when it is done, so that a second run continues where the first stopped.
"""

from __future__ import annotations

import gc
import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from accelerate.utils import convert_file_size_to_int
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

from rd_hf.data.records import InputError, Say
from rd_hf.families import esm2_config
from rd_hf.files import byte_size, write_json
from rd_hf.fitting import FitSettings, Sample, draw_sample, run_fit
from rd_hf.fitting.sample import plan_batches
from rd_hf.fitting.settings import CPU_FIT_TOKENS
from rd_hf.hub.checkpoint import REPORT_FILE, by_name, read_config
from rd_hf.hub.options import ImportSettings
from rd_hf.hub.plan import make_plan, memory_in_use, memory_of_imports
from rd_hf.hub.published import Recipe, import_checkpoint
from rd_hf.hub.push import compare_with_hub, push_folder
from rd_hf.hub.release_settings import STAGES, ReleaseSettings
from rd_hf.hub.sources import can_be_fetched, check_hub_id
from rd_hf.model.configuration_rd_esm import RDEsmConfig
from rd_hf.model.files_rd_esm import find_weights
from rd_hf.model.staging_rd_esm import clear_staging
from rd_hf.model_names import check_model_name
from rd_hf.network import asks_hub, hub_asked_once

PUBLISHED_REPO = "singhlab/plm_reverse_distillation"
# The file names of the recipe that the first publication reports, under weights/ of its repo.
PUBLISHED_RECIPE = Recipe("pcr", "incremental", "1k")
# Returns what is recorded of a stage beside its seconds.
Stage = Callable[[], dict[str, Any] | None]


class Release:
    """The record of which stages of a publication are done: ``release.json`` beside the folder of the model.

    ``settings`` must be the same when it is continued: InputError if they are not, or the record is damaged.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.record = folder / "release.json"
        self.model = folder / "model"
        self.stages: dict[str, dict[str, Any]] = {}
        # As they come back from the record.
        self.settings = json.loads(json.dumps(settings))
        if not self.record.exists():
            return
        # A kill just after the last stage was recorded leaves nothing else to write.
        clear_staging(folder)
        try:
            found = json.loads(self.record.read_text(encoding="utf-8"))
            former, self.stages = dict(found["settings"]), {name: dict(done) for name, done in found["stages"].items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"{self.record} is no record of a publication ({error!r}): move it elsewhere, and all stages are done "
                f"anew"
            ) from error
        # What an earlier version did not record cannot be compared.
        changed = sorted(name for name in self.settings if name in former and former[name] != self.settings[name])
        if changed:
            raise InputError(
                f"{folder} holds a publication of other {', '.join(changed)}: repeat the command that began it, "
                f"or choose another --output"
            )

    def run(self, stage: str, skipped: set[str], work: Stage, say: Say, **options: Any) -> None:
        """Do a stage, unless it was done or is to be skipped, and record its seconds, its peak memory and result.

        With other ``options`` than before it is done again, and what follows too, unless it only judges.
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
            result = work() or {}
        done = {"seconds": round(time.perf_counter() - started, 2), "peak_bytes": peak(), "options": options, **result}
        self.stages[stage] = done
        self.record.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.record, {"settings": self.settings, "stages": self.stages})
        say(f"{stage}: done in {done['seconds']:,.0f} s, peak {byte_size(done['peak_bytes'])}")


def run_release(settings: ReleaseSettings) -> None:
    """Publish a family, or print what that needs; stages that an earlier run has done are not done again.

    A ValueError or OSError if it does not fit on this machine, there is no login, or a stage cannot be done.
    """
    check_hub_id(settings.repo_id)
    config = family_of(settings.level, settings.config)
    data = settings.data or (str(files("rd_hf").joinpath("data/examples/proteins_1000.fasta.gz")),)
    settings = replace(settings, data=data)
    memory = None if settings.memory is None else parse_memory(settings.memory)
    sample = None if settings.from_published else draw_sample(settings.data, settings.fit)
    if sample is not None:
        _plan(settings, config, sample, memory)
    elif settings.plan:
        raise ValueError("--from-published fits nothing, so that there is nothing to plan: it fetches some megabytes")
    if settings.plan:
        return
    if not {"push", "compare"} <= set(settings.skip):
        print(f"logged in as {check_login(settings.repo_id, settings.push.token)}")
    release = Release(settings.folder, _content(settings, config, sample))
    if "fit" not in release.stages:
        # What is there stays, and what was found damaged and deleted comes again.
        release.stages.pop("fetch", None)
    work = _stages(settings, config, release)
    options: dict[str, dict[str, Any]] = {
        "judge": {"least_r2": settings.least_r2},
        "push": {"license": settings.push.license or "mit", "private": settings.push.private},
    }
    for stage in STAGES:
        release.run(stage, set(settings.skip), work[stage], print, **options.get(stage, {}))


def _plan(settings: ReleaseSettings, config: RDEsmConfig, sample: Sample, memory: int | None) -> None:
    """Print what the fit needs; raise InputError unless it fits, or only a plan is asked for."""
    base = memory_of_imports()
    lengths = [len(sequence) for sequence in sample.sequences]
    tokens = settings.fit.batch_tokens or CPU_FIT_TOKENS
    shapes = [(len(rows), 2 + max(lengths[row] for row in rows)) for _, rows in plan_batches(sample, tokens)]
    group_tokens = settings.group_tokens or max(32768, tokens)
    plan = make_plan(config, shapes, tokens, group_tokens, base, work=settings.folder)
    trouble = plan.trouble(settings.group_tokens is not None, memory)
    verdict = "fits" if trouble is None else f"does not fit: {trouble}"
    print(json.dumps({**asdict(plan), "verdict": verdict}) if settings.json else f"{plan}\n{verdict}")
    if trouble is not None and not settings.plan:
        raise InputError(trouble)


def _content(settings: ReleaseSettings, config: RDEsmConfig, sample: Sample | None) -> dict[str, Any]:
    """What must be the same when a publication is continued."""
    fit = settings.fit
    content = {
        "levels": [[entry["name"], entry["repo_id"], entry["revision"]] for entry in config.levels],
        "family": [config.levels, config.residual_directions],
        "data": settings.data,
        "from published": settings.from_published,
        "fit": [fit.num_sequences, fit.seed, fit.max_length, fit.batch_tokens],
        "repo": settings.repo_id,
    }
    if sample is not None:
        # The same files may hold other proteins by now.
        content["sequences"] = hashlib.sha256("\n".join(sample.sequences).encode()).hexdigest()
    return content


def _stages(settings: ReleaseSettings, config: RDEsmConfig, release: Release) -> dict[str, Stage]:
    """What each stage does."""
    model, repo, token, level = release.model, settings.repo_id, settings.push.token, settings.level or ""
    hub = {} if token is None else {"token": token}
    published = settings.folder / "published"

    def do_fit() -> None:
        source = settings.folder / "config"
        source.mkdir(parents=True, exist_ok=True)
        config.save_pretrained(source)
        job = FitSettings(
            settings.data, model, str(source), form="bases", group_tokens=settings.group_tokens, options=settings.fit
        )
        print(run_fit(job, on_sample=print))
        # Its model refers to itself, and would still be held in the stages to come.
        gc.collect()

    def do_push() -> dict[str, Any]:
        result = push_folder(model, repo, **vars(replace(settings.push, check=False)))
        print(result.plan)
        return {"url": result.url, "revision": result.revision, "bytes": sum(result.plan.files.values())}

    def do_compare() -> dict[str, Any]:
        revision = release.stages.get("push", {}).get("revision", "main")
        checked = compare_with_hub(model, repo, revision, token=token)
        print(f"loaded back and equal bit for bit: {', '.join(checked)}")
        return {"levels": checked}

    stages: dict[str, Stage] = {
        "fetch": lambda: fetch(config, print, **hub),
        "fit": do_fit,
        "judge": lambda: judge(model, settings.least_r2),
        "push": do_push,
        "compare": do_compare,
    }
    if settings.from_published:
        stages["fetch"] = lambda: fetch_published(published, level, **hub)
        stages["fit"] = lambda: import_checkpoint(ImportSettings(published / "weights", level, model))
    return stages


def family_of(level: str | None, folder: str | None) -> RDEsmConfig:
    """Return the config of ESM-2 up to a level, or of the family that a name or a folder's config.json stands for."""
    if folder is None:
        return esm2_config(level or "")
    check_model_name(folder, fitted=False)
    with hub_asked_once(folder):
        config = by_name(folder) or read_config(folder)
    if config.backbones_in_checkpoint:
        raise InputError(f"{folder} holds its backbones itself: rd-hf push publishes it as it is")
    for entry in config.levels:
        if not can_be_fetched(entry):
            raise InputError(
                f"level {entry['name']} of {folder} takes its backbone from {entry['repo_id']}, which is no Hub id, so "
                f"that nobody could load what is published: put owner/name and commit in its config.json"
            )
    return config


@contextmanager
def peak_memory_of_stage(every: float = 0.05) -> Iterator[Callable[[], int]]:
    """Yield what returns the highest resident memory so far, in bytes, measured twenty times per second."""
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


def check_login(repo_id: str, token: str | bool | None) -> str:
    """Return whose login it is; InputError if there is none or it may not write there, before the hours of a fit."""
    try:
        with hub_asked_once(repo_id, instead=None):
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


@asks_hub
def fetch(config: RDEsmConfig, say: Say, **hub: Any) -> dict[str, Any]:
    """Fetch the weights of every backbone into the cache, smallest first; what is there already stays."""
    size = 0
    for entry in config.levels:
        found = find_weights(entry["repo_id"], entry["revision"], **hub)
        own = sum((Path(found.folder) / name).stat().st_size for name in found.names)
        where = f"{entry['repo_id']} at {entry['revision']}"
        say(f"  {entry['name']}: {len(found.names)} file(s), {byte_size(own)}, {where}")
        size += own
    return {"bytes": size}


@asks_hub
def fetch_published(folder: Path, level: str, **hub: Any) -> dict[str, Any]:
    """Fetch the first publication's bases into ``folder``: one file for each step up to a level."""
    size = 0
    for _, _, name in PUBLISHED_RECIPE.files(level):
        path = hf_hub_download(PUBLISHED_REPO, f"weights/{name}", local_dir=folder, **hub)
        size += Path(path).stat().st_size
    return {"bytes": size}


def judge(folder: Path, floor: float) -> dict[str, Any]:
    """Return R^2 and share of the residual kept by level on held-out residues; none of published bases.

    An InputError if the R^2 of a level is below ``floor``.
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
                f"--least-r2 {floor}: fit on more sequences (--num-sequences, --input), or --skip judge"
            )
    return {"heldout": found}


def parse_memory(word: str) -> int:
    """Return "24GB" or "24GiB" in bytes."""
    try:
        return convert_file_size_to_int(word)
    except ValueError as error:
        raise InputError(f"--memory {word} is no size: write it as 500MB, 24GB or 24GiB") from error
