"""Publishing with one command: what it foresees, what it refuses in time, and the whole road on the local Hub."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import EsmModel

from rd_hf.commands.release import main as release_command
from rd_hf.data.fasta import InputError
from rd_hf.families import ESM2, esm2_config
from rd_hf.hub.plan import Plan, bases_bytes, encoder_parameters, make_plan, readable, stored_bytes
from rd_hf.hub.release import PUBLISHED_RECIPE, PUBLISHED_REPO, Release, check_fits, judge, parse_memory
from rd_hf.model.modeling_rd_esm import RDEsmModel
from tests.conftest import REPOSITORY, environment
from tests.hub.conftest import World
from tests.hub.server import repos_asked
from tests.test_files import leftover

PLAN = Plan(
    download=0, weights=0, disk=10, resident=900, sequential=500, sequences=1, tokens=1, flop=1.0, flops=1.0,
    memory_free=1000, disk_free=100,
)  # fmt: skip


@pytest.mark.parametrize("index", range(len(ESM2)), ids=[member.name for member in ESM2])
def test_parameters_and_file_sizes_are_counted_as_they_are(index: int) -> None:
    config = esm2_config("15B")
    entry = config.levels[index]
    with torch.device("meta"):
        model = EsmModel(config.backbone_config(index), add_pooling_layer=False)
    unread = ("position_embeddings", "contact_head")
    counted = sum(p.numel() for name, p in model.named_parameters() if not any(part in name for part in unread))
    assert encoder_parameters(entry["backbone"]) == counted
    # Of a repo that is not known by name the size is worked out: headers and small buffers aside.
    assert stored_bytes({**entry, "repo_id": "lab/other"}) == pytest.approx(ESM2[index].download, rel=1e-3, abs=1e5)


def test_the_size_of_bases_is_that_of_their_buffers() -> None:
    config = esm2_config("650M")
    model = RDEsmModel(config, build_backbones=False)
    assert bases_bytes(config) == sum(buffer.nbytes for buffer in model.projections.buffers())


def test_a_plan_of_3b_downloads_what_the_repos_hold_and_needs_less_memory_one_at_a_time() -> None:
    plan = make_plan(esm2_config("3B"), [(4, 1024)] * 90, 4096, 32768, base=4 * 10**8, flops=1e11)
    assert plan.weights == sum(member.download for member in ESM2[:5])
    assert plan.tokens == 4 * 1024 * 90
    largest = 4 * encoder_parameters(esm2_config("3B").levels[-1]["backbone"])
    assert largest < plan.sequential < plan.resident
    # 2.84 billion parameters are 5.7 GFLOP a token, the smaller backbones another 1.7.
    assert 7e9 < plan.flop / plan.tokens < 8.5e9
    assert plan.hours == pytest.approx(plan.flop / 1e11 / 3600)


def test_what_cannot_fit_is_refused_with_the_flag_that_makes_it_fit() -> None:
    check_fits(PLAN, window=False)
    with pytest.raises(InputError, match="900 B of memory and 600 B are free: add --window-tokens"):
        check_fits(PLAN, window=False, memory=600)
    check_fits(PLAN, window=True, memory=600)
    for window in (False, True):
        with pytest.raises(InputError, match="even one backbone at a time needs 500 B of memory and 400 B are free"):
            check_fits(PLAN, window, memory=400)
    with pytest.raises(InputError, match="needs 10 B of disk and 9 B are free: set HF_HOME"):
        check_fits(replace(PLAN, disk_free=9), window=True)


def test_sizes() -> None:
    assert [parse_memory(word) for word in ("500MB", "24GB", "24GiB")] == [500_000_000, 24 * 10**9, 24 * 2**30]
    with pytest.raises(InputError, match="--memory much is no size"):
        parse_memory("much")
    assert [readable(size) for size in (7, 1234, 31_384_292, 14_739_239_662)] == [
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
        (["--level", "3B", "--repo-id", "x"], "'x' is no Hub id"),
        (["--level", "3B", "--repo-id", "me/x", "--window-tokens", "9"], "--window-tokens 9 must be at least"),
        (["--level", "35M", "--repo-id", "me/x", "--memory", "600MB"], "even one backbone at a time needs"),
    ],
)
def test_mistakes_are_a_sentence(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
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
def test_without_a_login_it_stops_before_the_hours(world: World, owner: str) -> None:
    before = len(world.hub.log)
    said = world.run(
        "release", f"home-release-{owner}", package=True, logged_in=owner == "others",
        words=["--level", "35M", "--repo-id", f"{owner}/x", "--num-sequences", "20", "--memory", "900GB"],
    )  # fmt: skip
    assert said["code"] == 1
    wanted = "needs a login" if owner == "me" else "me cannot publish to others/x: its owner is none of me"
    assert wanted in said["error"]
    assert repos_asked(world.hub.log[before:]) == set()


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
            *("--level", "35M", "--repo-id", "me/published", "--from-published", "--output", str(output)),
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
        [*command, "--folder", str(tmp_path / "work"), "--window-tokens", "2048", "--report", str(report)],
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
