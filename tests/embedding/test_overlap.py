"""Reading, writing and making batches ready beside the device: the same bytes, errors at their turn, bounded."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rd_hf.data.records import InputError
from rd_hf.embedding import waiting
from rd_hf.embedding.concurrency import Aside
from rd_hf.embedding.engine import Engine, Request, _Call
from rd_hf.embedding.folder import JobError
from rd_hf.embedding.job import run_job
from rd_hf.embedding.options import EmbeddingOptions
from rd_hf.embedding.settings import JobSettings, JobSummary
from rd_hf.embedding.waiting import DeviceClock
from rd_hf.embedding.worker import Worker
from rd_hf.model.layers_rd_esm import PACKED_ATTENTION
from rd_hf.model.modeling_rd_esm import RDEsmModel
from rd_hf.model.pooling_rd_esm import cut
from tests.conftest import environment
from tests.embedding.conftest import content_hashes, random_fasta
from tests.embedding.test_engine import proteins

PATIENCE = 60


def job(model: Path, output: Path, **more: Any) -> JobSettings:
    fasta = output.parent / "proteins.fasta"
    if not fasta.exists():
        random_fasta(fasta, 60)
    return JobSettings(str(model), (str(fasta),), str(output), device="cpu", part_records=10, **more)


def run(settings: JobSettings) -> JobSummary:
    return run_job(settings, report=lambda _: None, show_progress=False)


@pytest.fixture
def overlapping(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU that jobs treat as another device."""
    monkeypatch.setattr(Worker, "overlaps", True)


def test_a_job_writes_the_same_bytes_beside_the_device(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(job(tiny_checkpoint, tmp_path / "turn"))
    threads: set[str] = set()
    write = Worker._write

    def noted(self: Worker, *arguments: Any) -> None:
        threads.add(threading.current_thread().name)
        write(self, *arguments)

    monkeypatch.setattr(Worker, "_write", noted)
    monkeypatch.setattr(Worker, "overlaps", True)
    summary = run(job(tiny_checkpoint, tmp_path / "beside"))
    assert any(name.startswith("rd_hf-aside") for name in threads)
    assert content_hashes(tmp_path / "turn") == content_hashes(tmp_path / "beside")
    assert summary.parts == 6
    assert summary.waiting is not None
    assert 0 <= summary.waiting < 1
    assert not [one for one in threading.enumerate() if one.name.startswith("rd_hf-aside")], "it has ended"


@pytest.mark.parametrize("when", ["while others are computed", "at the end"])
def test_what_cannot_be_written_ends_the_job_and_the_same_command_ends_it_well(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overlapping: None, when: str
) -> None:
    fails = 2 if when == "while others are computed" else 5
    write = Worker._write

    def full(self: Worker, part: Any, *rest: Any) -> None:
        if part.index == fails:
            raise JobError("the disk is full")
        write(self, part, *rest)

    settings = job(tiny_checkpoint, tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(Worker, "_write", full)
        with pytest.raises(JobError, match="the disk is full"):
            run(settings)
    written = {path.name for path in (tmp_path / "out").glob("*.parquet")}
    assert {f"embeddings-{index:06d}.parquet" for index in range(fails)} == written
    assert run(settings).parts_kept == fails
    run(job(tiny_checkpoint, tmp_path / "whole"))
    assert content_hashes(tmp_path / "out") == content_hashes(tmp_path / "whole")


def test_an_input_that_breaks_off_does_so_at_its_turn(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overlapping: None
) -> None:
    """What was read before it is written, as without a thread."""
    records = Worker.records

    def broken(self: Worker) -> Any:
        for number, record in enumerate(records(self)):
            if number == 35:
                raise InputError("the file ends here")
            yield record

    monkeypatch.setattr(Worker, "records", broken)
    with pytest.raises(InputError, match="the file ends here"):
        run(job(tiny_checkpoint, tmp_path / "out"))
    assert len(list((tmp_path / "out").glob("*.parquet"))) == 3


def test_a_job_that_is_killed_beside_the_device_goes_on_to_the_same_bytes(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    settings = job(tiny_checkpoint, tmp_path / "out")
    script = tmp_path / "run.py"
    script.write_text(
        "import sys\nfrom rd_hf.embedding.worker import Worker\nWorker.overlaps = True\n"
        "from rd_hf.__main__ import main\nsys.exit(main(sys.argv[1:]))\n"
    )
    words = ["embed", "--model", settings.model, "--input", *settings.inputs, "--output", settings.output]
    command = [sys.executable, str(script), *words, "--device", "cpu", "--part-records", "10", "--quiet"]
    victim = subprocess.Popen(command, env=environment(), stderr=subprocess.DEVNULL)
    while not list((tmp_path / "out").glob("*.parquet")):
        assert victim.poll() is None
        time.sleep(0.001)
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    assert subprocess.run(command, env=environment(), check=False).returncode == 0
    run(job(tiny_checkpoint, tmp_path / "whole"))
    assert content_hashes(tmp_path / "out") == content_hashes(tmp_path / "whole")


def test_one_result_at_most_waits_to_be_written() -> None:
    gate, begun = threading.Event(), []
    with Aside() as aside:
        aside.start()
        for number in range(2):
            if number:
                assert begun == []
                threading.Timer(0.05, gate.set).start()
            before = time.monotonic()
            aside.write(lambda: assert_waited(gate))
        assert time.monotonic() - before > 0.04, "the second waits until the first is written"


def assert_waited(gate: threading.Event) -> None:
    assert gate.wait(PATIENCE)


def test_without_a_thread_what_is_read_is_read_when_it_is_asked_for() -> None:
    said: list[str] = []
    with Aside() as aside:
        soon = aside.soon(lambda: said.append("read"))
        aside.write(lambda: said.append("written"))
        assert said == ["written"]
        soon()
    assert said == ["written", "read"]


def test_an_error_waits_for_what_is_written_and_not_for_what_is_read() -> None:
    gate, never, said = threading.Event(), threading.Event(), []

    def slow() -> None:
        assert gate.wait(PATIENCE)
        said.append("written")

    def stopped() -> None:
        with Aside() as aside:
            aside.start()
            aside.soon(lambda: never.wait(PATIENCE))
            aside.write(slow)
            threading.Timer(0.05, gate.set).start()
            raise KeyboardInterrupt

    before = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert said == ["written"]
    assert time.monotonic() - before < PATIENCE / 2
    never.set()


@pytest.mark.parametrize("attention", [None, PACKED_ATTENTION], ids=["padded", "packed"])
@pytest.mark.parametrize("settings", [{}, {"pooling": "residue"}, {"pooling": "cls"}, {"max_length": 40, "overlap": 9}])
def test_two_batches_in_hand_give_the_bits_of_one(
    tiny_model: RDEsmModel, monkeypatch: pytest.MonkeyPatch, attention: str | None, settings: dict[str, Any]
) -> None:
    if attention is not None:
        tiny_model.set_attn_implementation(attention)
    options = EmbeddingOptions(batch_tokens=150, **settings)
    requests = [Request(sequence) for sequence in proteins(40, 90)]
    expected = Engine(tiny_model, "L2", options).embed(requests)
    monkeypatch.setattr(Engine, "_lanes", lambda self, batches: 2)
    engine, running, most = Engine(tiny_model, "L2", options), [0], [0]
    engine.turn = threading.Lock()
    forward = tiny_model.forward_window

    def counted(*arguments: Any) -> Any:
        running[0] += 1
        most[0] = max(most[0], running[0])
        time.sleep(0.001)
        try:
            return forward(*arguments)
        finally:
            running[0] -= 1

    monkeypatch.setattr(tiny_model, "forward_window", counted)
    for ours, theirs in zip(engine.embed(requests), expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert most == [1], "one batch at a time is ordered"


def test_a_gpu_has_two_batches_in_hand(tiny_model: RDEsmModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RDEsmModel, "device", torch.device("mps"))
    assert Engine(tiny_model, "L2", EmbeddingOptions(batch_tokens=100))._lanes(100) == 1
    monkeypatch.setattr(RDEsmModel, "device", torch.device("cuda"))
    engine = Engine(tiny_model, "L2", EmbeddingOptions(batch_tokens=100))
    assert [engine._lanes(batches) for batches in (1, 2, 100)] == [1, 2, 2]
    assert isinstance(engine.turn, type(threading.Lock()))
    assert Engine(tiny_model, "L2", EmbeddingOptions(batch_tokens=9), group_tokens=1000)._lanes(100) == 1
    # Where memory is short a batch is halved, and the next is in hand as before.
    requests, said = [Request("M" * 40), Request("M" * 30), Request("M" * 20)], []
    engine.report = said.append
    pieces = [piece for owner, own in enumerate(requests) for piece in cut(owner, len(own.sequence), 1022, 256)]
    engine._shrink(_Call(requests, ["", "", ""]), [pieces], 2)
    assert said == ["out of memory with 126 tokens in a batch: going on with 42 per batch"]
    assert (engine.tokens, engine._lanes(100)) == (42, 2)


# --- the clock ------------------------------------------------------------------------------------------------


def test_waiting_is_the_time_that_no_batch_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(waiting.time, "perf_counter", lambda: now[0])
    clock = DeviceClock(torch.device("cpu"))
    assert clock.share is None
    assert str(clock) == "no batch was computed"
    now[0] = 7.0  # what lies before the first batch is no waiting
    with clock.computing():
        now[0] = 8.0
        with clock.computing():
            now[0] = 9.0
        now[0] = 10.0
    now[0] = 11.0
    with clock.computing():
        now[0] = 12.0
    assert (clock.computing_seconds, clock.waiting_seconds) == (4.0, 1.0)
    assert clock.share == pytest.approx(0.2)
    assert str(clock) == "20.0 % of 5.0 s between batches"


def test_on_a_gpu_events_say_when(monkeypatch: pytest.MonkeyPatch) -> None:
    """The device is behind: what it has not come to is not waited for, and counted later; nothing is kept for ever."""
    device_time = [0.0]
    waited: list[float] = []

    class Event:
        def __init__(self, **_: Any) -> None:
            self.at = -1.0

        def record(self, stream: object) -> None:
            self.at = stamps.pop(0)

        def query(self) -> bool:
            return self.at <= device_time[0]

        def synchronize(self) -> None:
            waited.append(self.at)
            device_time[0] = max(device_time[0], self.at)

        def elapsed_time(self, other: Any) -> float:
            return 1e3 * float(other.at - self.at)

    stamps = [0.0, 2.0, 2.0, 4.0, 5.0, 7.0]
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    clock = DeviceClock(torch.device("cuda"))
    for done in (0.0, 3.0, 3.0):
        device_time[0] = done
        with clock.computing():
            pass
    assert len(clock._events) == 2
    assert waited == [2.0]
    assert clock.share == pytest.approx(1 / 7)
    assert (clock.computing_seconds, clock.waiting_seconds, len(clock._events)) == (6.0, 1.0, 0)


def test_a_command_says_how_long_its_device_waited(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from rd_hf.__main__ import main

    settings = job(tiny_checkpoint, tmp_path / "out")
    words = ["embed", "--model", settings.model, "--input", *settings.inputs, "--device", "cpu", "--verbose"]
    assert main([*words, "--output", settings.output]) == 0
    assert "rd-hf: cpu waited for the host " in capsys.readouterr().err
    fit = ["fit", "--config", settings.model, "--input", *settings.inputs, "--output", str(tmp_path / "fit")]
    assert main([*fit, "--verbose"]) == 0
    said = capsys.readouterr().err
    assert "rd-hf: cpu waited for the host " in said
    assert "rd-hf: moments took " in said
