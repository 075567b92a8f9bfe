"""Processes that share a job find each other, and part without a trace."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rd_hf import launch
from rd_hf.launch import Processes, processes
from tests.conftest import TWO_PROCESSES, environment

PARTING = """
import os
from pathlib import Path

from rd_hf.launch import leave, processes

group = processes()
import transformers.modeling_utils  # as a job does, which loads its model late

everyone_well = group.all_well(True)
one_is_not = group.all_well(group.rank != 1)
leave(group)
names = [thread.joinpath("comm").read_text().strip() for thread in Path("/proc/self/task").iterdir()]
Path(os.environ["ANSWERS"], str(group.rank)).write_text(
    f"{group.rank} of {group.world}: {everyone_well} {one_is_not} {sum('gloo' in name for name in names)}"
)
"""


def test_a_process_without_a_launcher_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert processes() == Processes(rank=0, world=1, local_rank=0)


LOST = """
import os, sys
from rd_hf.commands._main import run_command
from rd_hf.launch import leave, processes

group = processes()

def body():
    try:
        if group.rank == 0:
            raise ValueError("the record is bad")
        group.all_well(True)
    finally:
        leave(group)

code = run_command("rd-hf", body)
open(os.path.join(os.environ["ANSWERS"], str(group.rank)), "w").write(str(code))
"""


def test_a_process_that_ends_early_costs_the_others_one_sentence(tmp_path: Path) -> None:
    """As with --strict: what the one found is said, and nothing of the sockets between them."""
    script = tmp_path / "lost.py"
    script.write_text(LOST)
    done = subprocess.run(
        [*TWO_PROCESSES, str(script)],
        env=environment() | {"ANSWERS": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    said = [line for line in done.stderr.splitlines() if "rd-hf" in line or "Error" in line]
    assert sorted(said) == [
        "rd-hf: error: stopped, because another process of this job has ended: it says why",
        "rd-hf: error: the record is bad",
    ]
    assert [(tmp_path / rank).read_text() for rank in ("0", "1")] == ["1", "1"]


@pytest.mark.parametrize("asked", [1, 2])
def test_a_launcher_that_starts_one_process_where_several_were_asked_for_is_told_of(
    asked: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As ``accelerate launch --num_processes 2`` does on a machine without a GPU."""
    from argparse import Namespace

    from accelerate.commands.launch import launch_command_parser
    from accelerate.utils.launch import prepare_simple_launcher_cmd_env

    words = ["--num_processes", str(asked), "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    given = launch_command_parser().parse_args([*words, "--num_cpu_threads_per_process", "1", "x.py"])
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    _, environment_of_it = prepare_simple_launcher_cmd_env(Namespace(**{"use_cpu": False} | vars(given)))
    for name, value in environment_of_it.items():
        monkeypatch.setenv(name, value)
    assert processes() == Processes(rank=0, world=1, local_rank=0)
    assert ("torchrun --nproc_per_node N starts N on CPUs" in caplog.text) == (asked == 2)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="threads are counted in /proc")
def test_no_thread_of_the_group_is_left_to_abort_the_process_at_its_end(tmp_path: Path) -> None:
    script = tmp_path / "parting.py"
    script.write_text(PARTING)
    done = subprocess.run(
        [*TWO_PROCESSES, str(script)], env=environment() | {"ANSWERS": str(tmp_path)}, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    for rank in (0, 1):
        assert (tmp_path / str(rank)).read_text() == f"{rank} of 2: True False 0"


@pytest.mark.parametrize(("gpus", "expected"), [(1, {"backend": "gloo"}), (2, {}), (0, {})])
def test_processes_that_share_a_gpu_talk_without_nccl_which_refuses_them(
    monkeypatch: pytest.MonkeyPatch, gpus: int, expected: dict[str, str]
) -> None:
    given: dict[str, object] = {}

    def state(**how: object) -> None:
        given.update(how)

    monkeypatch.setattr("accelerate.PartialState", state)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    launch._state()
    assert {name: how for name, how in given.items() if name == "backend"} == expected
    assert given["cpu"] == (gpus == 0)
