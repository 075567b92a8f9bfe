"""The script for a GPU runs through where there is none, says what it skipped, and keeps what it reached."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import REPOSITORY, environment

sys.path.insert(0, str(REPOSITORY / "scripts"))

from benchmarks import gpu_check, gpu_jobs

ON_CUDA_ONLY = {
    *("equal: packed, bfloat16", "equal: packed, float16", "equal: levels on streams"),
    *("rate: levels on streams", "equal: fit and embed commands", "equal: compiled layers, float32"),
    *("equal: compiled layers, made by two processes", "tests: those that may count on no GPU"),
    *("rate: 650M, flash attention", "job: two workers of Ray on one device"),
}


FULL = os.environ.get("RD_HF_FULL") == "1"


def test_it_runs_through_on_a_cpu_and_names_what_needs_a_gpu(tmp_path: Path) -> None:
    command = ["bash", str(REPOSITORY / "scripts" / "gpu_check.sh"), "--device", "cpu", "--small"]
    command += ["--json", str(tmp_path / "out.json")]
    # Most of what is left out compiles, a minute in all.
    command += [] if FULL else ["--only", "what runs,equal,forward,streams,flash,tests:,embed and fit,job"]
    done = subprocess.run(
        command, env={**environment(), "PYTHON": sys.executable}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    steps = json.loads((tmp_path / "out.json").read_text())["steps"]
    outcomes = {name: step["outcome"] for name, step in steps.items()}
    assert {name for name, outcome in outcomes.items() if outcome == "skipped"} == ON_CUDA_ONLY
    assert {outcome for name, outcome in outcomes.items() if name not in ON_CUDA_ONLY} == {"ok"}
    assert 0 < steps["equal: padded, bfloat16"]["error"] < 0.06
    assert steps["rate: embed and fit at 650M, float32"]["embed: residues/s"] > 0
    jobs = [ratio for name in ("embed at", "fit up to") for ratio in steps[f"job: {name} 650M"]["ratios"]]
    assert sorted(ratio["target"] for ratio in jobs) == [0.03, 0.05, 0.05, 0.9, 0.9]
    assert steps["job: two processes on one device"]["error of bases"] < 1e-6


@pytest.fixture
def outcome(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs it with other steps; gives its exit status and outcomes."""

    def run(steps: dict[str, Any], *more: str) -> tuple[int, dict[str, Any]]:
        monkeypatch.setattr(gpu_check, "steps", lambda: steps)
        path = tmp_path / "out.json"
        status = gpu_check.main(["--device", "cpu", "--small", "--json", str(path), *more])
        return status, json.loads(path.read_text())["steps"]

    return run


def test_what_fails_is_told_and_the_rest_is_done(outcome: Any) -> None:
    def wrong(bench: gpu_check.Bench) -> dict[str, Any]:
        return bench.error(bench.reference * 1.5, "float32")

    status, steps = outcome({"wrong": wrong, "right": lambda bench: bench.error(bench.reference, "float32")})
    assert status == 1
    assert steps["wrong"]["outcome"] == "failed"
    assert "0.5 of the reference's norm" in steps["wrong"]["why"]
    assert steps["right"]["outcome"] == "ok"


def test_a_run_that_is_cut_off_leaves_what_it_had(outcome: Any, tmp_path: Path) -> None:
    def killed(bench: gpu_check.Bench) -> dict[str, Any]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        outcome({"first": lambda _: {"found": 1}, "second": killed, "third": lambda _: {}})
    steps = json.loads((tmp_path / "out.json").read_text())["steps"]
    assert [step["outcome"] for step in steps.values()] == ["ok", "not reached", "not reached"]
    assert steps["first"]["found"] == 1
    _, steps = outcome({"late": lambda _: {}}, "--seconds", "-1")
    assert steps["late"]["outcome"] == "not reached"


def test_a_level_that_is_not_nested_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = gpu_check.Bench("cpu", True, tmp_path)
    forward = gpu_check.RDEsmModel.forward

    def off(self: Any, *args: Any, level: str | None = None, **kwargs: Any) -> Any:
        output = forward(self, *args, level=level, **kwargs)
        if level == "8M":
            output.last_hidden_state = torch.nextafter(output.last_hidden_state, torch.tensor(9.0))
        return output

    monkeypatch.setattr(gpu_check.RDEsmModel, "forward", off)
    with pytest.raises(AssertionError, match="8M is not nested"):
        gpu_check.padded(bench, "float32")


def test_files_of_two_processes_that_differ_are_found(tmp_path: Path) -> None:
    for name, content in (("one", b"a"), ("same", b"a"), ("other", b"b")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "embeddings-000000.parquet").write_bytes(content)
    gpu_jobs._assert_same_files(tmp_path / "one", tmp_path / "same")
    with pytest.raises(AssertionError, match="one and other hold other bytes"):
        gpu_jobs._assert_same_files(tmp_path / "one", tmp_path / "other")


def test_compiled_layers_that_compute_something_else_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(model: Any) -> None:
        for weight in model.parameters():
            weight.data.mul_(1.2)

    monkeypatch.setattr(gpu_check.RDEsmModel, "compile_layers", wrong)
    with pytest.raises(AssertionError, match=r"compiled, padded: .* of the norm off"):
        gpu_check.compiled_layers(gpu_check.Bench("cpu", True, tmp_path), "bfloat16")
