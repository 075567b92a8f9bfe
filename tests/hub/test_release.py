"""Publishing with one command: what it foresees, what it refuses in time, and the whole road on the local Hub."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import weakref
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import HfApi, constants
from transformers import EsmModel

from rd_hf.commands.release import main as release_command
from rd_hf.data.records import InputError
from rd_hf.families import ESM2, esm2_config
from rd_hf.files import byte_size
from rd_hf.hub.describe import describe_model
from rd_hf.hub.plan import Plan, bases_bytes, free_memory, make_plan, stored_bytes
from rd_hf.hub.push import PushPlan
from rd_hf.hub.release import PUBLISHED_RECIPE, PUBLISHED_REPO, Release, judge, parse_memory
from rd_hf.model.modeling_rd_esm import RDEsmModel
from tests.conftest import REPOSITORY, environment, random_model
from tests.hub.conftest import World
from tests.hub.server import FakeHub, repos_asked
from tests.test_files import leftover

PLAN = Plan(
    download=0, weights=0, disk=10, resident=900, sequential=500, sequences=1, tokens=1, flop=1.0, flops=1.0,
    memory_free=1000, disk_free=100,
)  # fmt: skip
PUSH_PLAN = PushPlan("me/x", {"config.json": 3}, [], "# card")


@pytest.mark.parametrize("index", range(len(ESM2)), ids=[member.name for member in ESM2])
def test_parameters_and_file_sizes_are_counted_as_they_are(index: int) -> None:
    config = esm2_config("15B")
    with torch.device("meta"):
        model = EsmModel(config.backbone_config(index), add_pooling_layer=False)
    counts = [0, *(level.parameters for level in describe_model("rd-esm2-15B").levels)]
    assert counts[index + 1] - counts[index] == sum(parameter.numel() for parameter in model.parameters())
    # Of a repo that is not known by name the size is worked out: headers and small buffers aside.
    assert stored_bytes({**config.levels[index], "repo_id": "lab/other"}) == pytest.approx(
        ESM2[index].download, rel=1e-3, abs=1e5
    )


def test_the_size_of_bases_is_that_of_their_buffers() -> None:
    config = esm2_config("650M")
    model = RDEsmModel(config, build_backbones=False)
    assert bases_bytes(config) == sum(buffer.nbytes for buffer in model.projections.buffers())


def test_a_plan_of_3b_downloads_what_the_repos_hold_and_needs_less_memory_one_at_a_time() -> None:
    plan = make_plan(esm2_config("3B"), [(4, 1024)] * 90, 4096, 32768, base=4 * 10**8, flops=1e11)
    assert plan.weights == sum(member.download for member in ESM2[:5])
    assert plan.tokens == 4 * 1024 * 90
    # 2.83 billion parameters of four bytes.
    assert 11.3e9 < plan.sequential < plan.resident
    # 2.84 billion parameters are 5.7 GFLOP a token, the smaller backbones another 1.7.
    assert 7e9 < plan.flop / plan.tokens < 8.5e9
    assert f"time       {plan.flop / 1e11 / 3600:.1f} hours at the 100 GFLOP/s measured here" in str(plan)


def test_what_cannot_fit_is_refused_with_the_flag_that_makes_it_fit() -> None:
    assert PLAN.trouble(sequential=False) is None
    assert "900 B of memory and 600 B are free: add --group-tokens" in str(PLAN.trouble(False, memory=600))
    assert PLAN.trouble(sequential=True, memory=600) is None
    for sequential in (False, True):
        why = str(PLAN.trouble(sequential, memory=400))
        assert "even one backbone at a time needs 500 B of memory and 400 B are free" in why
    assert "needs 10 B of disk and 9 B are free: set HF_HOME" in str(replace(PLAN, disk_free=9).trouble(True))
    # A work folder on another disk: each disk takes its own part.
    assert replace(PLAN, disk_free=9, work=4, work_free=4).trouble(sequential=True) is None
    why = str(replace(PLAN, work=4, work_free=3).trouble(sequential=True))
    assert "needs 4 B of disk for its work and 3 B are free: choose an --output" in why


def test_sizes() -> None:
    assert [parse_memory(word) for word in ("500MB", "24GB", "24GiB")] == [500_000_000, 24 * 10**9, 24 * 2**30]
    with pytest.raises(InputError, match="--memory much is no size"):
        parse_memory("much")
    assert [byte_size(size) for size in (7, 1234, 31_384_292, 14_739_239_662)] == [
        "7 B",
        "1.23 kB",
        "31.4 MB",
        "14.7 GB",
    ]


def test_stages_that_are_done_are_not_done_again_and_a_broken_one_is(tmp_path: Path) -> None:
    did: list[str] = []

    def work(name: str) -> Any:
        return lambda: did.append(name) or {"bytes": 3}

    def broken() -> dict[str, Any]:
        raise OSError("the line is down")

    first = Release(tmp_path, {"data": ["a"]})
    first.run("fetch", set(), work("fetch"), did.append)
    with pytest.raises(OSError, match="down"):
        first.run("fit", set(), broken, did.append)
    did.clear()
    second = Release(tmp_path, {"data": ["a"]})
    for stage in ("fetch", "fit", "push"):
        second.run(stage, {"push"}, work(stage), did.append)
    assert did[:3] == ["fetch: done before", "fit ...", "fit"]
    assert did[-1] == "push: skipped"
    assert set(Release(tmp_path, {"data": ["a"]}).stages) == {"fetch", "fit"}
    assert second.stages["fit"]["bytes"] == 3
    assert second.stages["fit"]["peak_bytes"] > 10**7
    kept = leftover(tmp_path)
    Release(tmp_path, {"data": ["a"]})
    assert not kept.exists(), "what a kill left after the last stage was noted"
    with pytest.raises(InputError, match="holds a publication of other data: repeat the command that began it"):
        Release(tmp_path, {"data": ["b"]})


def test_a_stage_is_done_again_with_other_options_and_what_follows_it_too(tmp_path: Path) -> None:
    did: list[str] = []

    def work(stage: str) -> dict[str, Any]:
        did.append(stage)
        return {}

    def run(license: str, least_r2: float) -> list[str]:
        did.clear()
        release = Release(tmp_path, {"data": ["a"]})
        options: dict[str, dict[str, Any]] = {"judge": {"least_r2": least_r2}, "push": {"license": license}}
        for stage in ("fetch", "judge", "push", "compare"):
            release.run(stage, set(), partial(work, stage), lambda _: None, **options.get(stage, {}))
        return list(did)

    assert run("mit", 0.5) == ["fetch", "judge", "push", "compare"]
    assert run("mit", 0.5) == []
    assert run("mit", 0.6) == ["judge"]
    assert run("apache-2.0", 0.6) == ["push", "compare"]
    # Of an earlier version's record it is not known.
    record = json.loads((tmp_path / "release.json").read_text())
    for stage in record["stages"].values():
        stage.pop("options", None)
    (tmp_path / "release.json").write_text(json.dumps(record))
    assert run("apache-2.0", 0.6) == ["judge", "push", "compare"]


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"settings": 3, "stages": {}}', '{"settings": {}, "stages": {"a": 1}}']
)
def test_a_damaged_record_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "release.json").write_text(content)
    with pytest.raises(InputError, match=r"release.json is no record of a publication .*: move it elsewhere"):
        Release(tmp_path, {"data": ["a"]})


@pytest.fixture
def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[list[str], list[str]]:
    """Words of a release whose stages only say that they ran, and what ran."""
    did: list[str] = []
    backbones: list[weakref.ref[torch.nn.Module]] = []

    def compared(*_: Any, **__: Any) -> list[str]:
        # The model of the fit is gone: what refers to itself goes when the collector runs, here when it is told to.
        assert [one() for one in backbones] in ([], [None])
        did.append("compare")
        return []

    def fitted(*_: Any, **__: Any) -> None:
        did.append("fit")
        backbone: Any = random_model([32]).backbones[0]
        backbone.hooks_of_its_own = [backbone]
        backbones.append(weakref.ref(backbone))
        figures = {"r2": 0.888, "residual_variance_kept": 0.7}
        (tmp_path / "work" / "model").mkdir(parents=True, exist_ok=True)
        (tmp_path / "work" / "model" / "fit_report.json").write_text(json.dumps([{"level": "L1", "heldout": figures}]))

    class Pushed:
        url, revision, plan = "there", "main", PUSH_PLAN

    monkeypatch.setattr("rd_hf.hub.plan.measured_flops", lambda **_: 1e9)
    monkeypatch.setattr("rd_hf.hub.release.check_login", lambda *_: "me")
    monkeypatch.setattr("rd_hf.hub.release.fetch", lambda *_, **__: did.append("fetch") or {})
    monkeypatch.setattr("rd_hf.hub.release.run_fit", fitted)
    monkeypatch.setattr("rd_hf.hub.release.push_folder", lambda *_, **__: did.append("push") or Pushed)
    monkeypatch.setattr("rd_hf.hub.release.compare_with_hub", compared)
    config = random_model([32, 48], backbones_in_checkpoint=False).config
    for entry in config.levels:
        entry.update(repo_id=f"lab/{entry['name']}", revision="0" * 40)
    config.save_pretrained(tmp_path / "config")
    (tmp_path / "p.fasta").write_text(">a\nMKTAYIAKQR\n>b\nACDEFGHIKLMNP\n>c\nMMMKKK\n")
    words = ["--config", str(tmp_path / "config"), "--repo-id", "me/x", "--input", str(tmp_path / "p.fasta")]
    words += ["--output", str(tmp_path / "work"), "--memory", "900GB"]
    gc.disable()
    try:
        assert release_command(words) == 0
    finally:
        gc.enable()
    assert did == ["fetch", "fit", "push", "compare"]
    did.clear()
    return words, did


def test_a_release_that_is_taken_up_heeds_its_threshold_and_its_licence(
    started: tuple[list[str], list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    words, did = started
    assert release_command([*words, "--least-r2", "0.999"]) == 1
    assert "level L1 explains 0.8880 of the variance of residues kept out of the fit, below" in capsys.readouterr().err
    assert did == []
    assert release_command([*words, "--least-r2", "0.5", "--license", "apache-2.0"]) == 0
    assert did == ["push", "compare"]


@pytest.mark.parametrize("change", ["sequences", "directions"])
def test_a_release_of_which_the_content_would_be_another_is_refused(
    started: tuple[list[str], list[str]], tmp_path: Path, change: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same words, but the file of sequences or the family's config.json is not what it was."""
    words, did = started
    if change == "sequences":
        (tmp_path / "p.fasta").write_text(">a\nMKTAYIAKQR\n>b\nACDEFGHIKLMNP\n>c\nWWWKKK\n")
    else:
        path = tmp_path / "config" / "config.json"
        fields = json.loads(path.read_text())
        path.write_text(json.dumps(fields | {"residual_directions": [8]}))
    assert release_command(words) == 1
    what = "sequences" if change == "sequences" else "family"
    assert f"holds a publication of other {what}: repeat the command that began it" in capsys.readouterr().err
    assert did == []


@pytest.mark.parametrize(("memory", "verdict"), [("900GB", "fits"), ("300MB", "does not fit: even one backbone")])
def test_a_plan_says_whether_it_fits(
    started: tuple[list[str], list[str]], memory: str, verdict: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words, did = started
    capsys.readouterr()
    assert release_command([*words, "--memory", memory, "--plan"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith(verdict)
    assert release_command([*words, "--memory", memory, "--plan", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["verdict"].startswith(verdict)
    assert did == []


def test_free_memory_is_that_of_the_container_and_of_the_batch_job(tmp_path: Path) -> None:
    """Control groups of either version, as a container and as Slurm make them."""

    def write(path: str, text: str) -> None:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)

    write("proc/meminfo", "MemTotal: 64000000 kB\nMemAvailable: 32000000 kB\n")
    assert free_memory(tmp_path) == 32_768_000_000
    write("proc/self/cgroup", "0::/job/step\n")
    write("sys/fs/cgroup/job/step/memory.max", "max\n")
    assert free_memory(tmp_path) == 32_768_000_000
    for name, text in (("max", "8000000000"), ("current", "3000000000"), ("stat", "anon 7\ninactive_file 500000000\n")):
        write(f"sys/fs/cgroup/job/memory.{name}", text)
    assert free_memory(tmp_path) == 5_500_000_000
    write("proc/self/cgroup", "4:cpu,memory:/docker/1a2b\n1:pids:/docker/1a2b\n")
    for name, text in (("limit_in_bytes", "2000000000"), ("usage_in_bytes", "500000000")):
        write(f"sys/fs/cgroup/memory/memory.{name}", text)
    write("sys/fs/cgroup/memory/memory.stat", "cache 1\n")
    assert free_memory(tmp_path) == 1_500_000_000
    assert 0 < free_memory() < 10**13


@pytest.mark.parametrize(("r2", "refused"), [(0.3, False), (0.19, True), (float("nan"), True)])
def test_a_fit_that_says_little_of_a_level_is_not_published(tmp_path: Path, r2: float, refused: bool) -> None:
    figures = {"r2": r2, "residual_variance_kept": 0.7}
    rows = [{"level": "8M", "heldout": None}, {"level": "35M", "heldout": figures}]
    (tmp_path / "fit_report.json").write_text(json.dumps(rows))
    if refused:
        with pytest.raises(InputError, match=r"level 35M explains .* below --least-r2 0\.2: fit on more"):
            judge(tmp_path, 0.2)
    else:
        assert judge(tmp_path, 0.2) == {"heldout": {"35M": figures}}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--level", "9B", "--repo-id", "me/x"], "no reverse-distilled ESM-2 9B: choose 35M"),
        (["--config", "rd-esm2-3B", "--repo-id", "x"], "'x' is no Hub id"),
        (["--config", "rd-esm2-3B", "--repo-id", "me/x", "--window-tokens", "9"], "--group-tokens 9 must be at least"),
        (["--config", "rd-esm2-35M", "--repo-id", "me/x", "--memory", "600MB"], "even one backbone at a time needs"),
        (["--config", "hub_configs/rd-esm2-mini", "--repo-id", "me/x"], "holds its backbones itself: rd-hf push"),
        (["--config", "HOMELESS", "--repo-id", "me/x"], "level L0 of HOMELESS takes its backbone from None, which is"),
    ],
)
def test_mistakes_are_a_sentence(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if "HOMELESS" in words:
        random_model([32, 48], backbones_in_checkpoint=False).config.save_pretrained(tmp_path)
    words = [word.replace("HOMELESS", str(tmp_path)) for word in words]
    said = said.replace("HOMELESS", str(tmp_path))
    assert release_command(words) == 1
    complaint = capsys.readouterr().err
    assert complaint.startswith("rd-hf release: error: ")
    assert said in complaint
    assert complaint.count("\n") == 1


def test_a_plan_needs_no_network(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "def watch(event, arguments):\n"
        "    if event.startswith('socket.'):\n"
        "        raise RuntimeError(event)\n"
        "sys.addaudithook(watch)\n"
        "from rd_hf.commands.release import main\n"
        "sys.exit(main(['--level', '3B', '--repo-id', 'me/x', '--plan', '--json', '--num-sequences', '20']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment() | {"HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout.splitlines()[-1])
    assert plan["download"] == plan["weights"] == sum(member.download for member in ESM2[:5])
    assert plan["flops"] > 0
    assert [path.name for path in tmp_path.iterdir() if path.name != "home"] == []


@pytest.mark.parametrize("owner", ["me", "others"])
def test_without_a_login_it_stops_before_the_hours(
    owner: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("rd_hf.hub.plan.measured_flops", lambda **_: 1e9)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    words = ["--config", "rd-esm2-35M", "--repo-id", f"{owner}/x", "--num-sequences", "20", "--memory", "900GB"]
    with FakeHub() as hub:
        login = hub.token if owner == "others" else None
        monkeypatch.setattr("rd_hf.hub.release.HfApi", lambda token: HfApi(endpoint=hub.endpoint, token=token or login))
        assert release_command([*words, "--output", str(tmp_path / "work")]) == 1
        assert repos_asked(hub.log) == set()
    wanted = "needs a login" if owner == "me" else "me cannot publish to others/x: its owner is none of me"
    assert wanted in capsys.readouterr().err


def test_published_bases_go_the_same_road(world: World, tmp_path: Path) -> None:
    """From their repo to a checkpoint that pins the backbones; without a push no login is asked for."""
    draw = np.random.default_rng(0)
    p, k = 320, 480
    arrays = {
        "regressor__coef_": draw.normal(size=(k, 7)),
        "regressor__intercept_": np.zeros(k),
        "regressor__input_mean_": draw.normal(size=p),
        "regressor__output_mean_": draw.normal(size=k),
        "regressor__input_components_": draw.normal(size=(p, p)),
        "regressor__input_eigenvalues_": np.arange(p, 0.0, -1.0),
        "regressor__n_significant_pcs_": np.array(7),
        "pca__mean_": np.zeros(k),
        "pca__components_": np.linalg.qr(draw.normal(size=(k, k)))[0][: k - p],
    }
    (tmp_path / "weights").mkdir()
    np.savez(tmp_path / "weights" / PUBLISHED_RECIPE.file("8M", "35M"), **arrays)
    world.hub.add(PUBLISHED_REPO, tmp_path)
    output = world.work / "published-release"
    said = world.run(
        "release", "home-release-published", package=True, logged_in=False,
        words=[
            *("--config", "rd-esm2-35M", "--repo-id", "me/published", "--from-published", "--output", str(output)),
            *("--skip", "push", "compare"),
        ],
    )  # fmt: skip
    assert (said["code"], said["error"]) == (0, "")
    config = json.loads((output / "model" / "config.json").read_text())
    assert [entry["revision"] for entry in config["levels"]] == [member.commit for member in ESM2[:2]]
    assert set(json.loads((output / "release.json").read_text())["stages"]) == {"fetch", "fit", "judge"}


def test_the_rehearsal_runs_end_to_end(tmp_path: Path) -> None:
    """At a twentieth of the widths, which takes the same road as true size."""
    report = tmp_path / "report.md"
    command = [sys.executable, "scripts/rehearse_release.py", "--level", "150M", "--shrink", "20"]
    done = subprocess.run(
        [*command, "--folder", str(tmp_path / "work"), "--group-tokens", "2048", "--report", str(report)],
        cwd=REPOSITORY,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "loaded back and equal bit for bit: 8M, 35M, 150M" in done.stdout
    text = report.read_text()
    stages = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("|")]
    assert stages[2:9] == [
        *("fetch", "fit", "judge", "push", "compare"),
        *('fresh process, level="35M"', "fresh process, whole, sequential=True"),
    ]
    ratio = next(line for line in text.splitlines() if line.startswith("| bytes of weights fetched")).split("|")[4]
    assert float(ratio) == pytest.approx(1, abs=0.15)
    # Weights are never left behind.
    assert not (tmp_path / "work").exists()
