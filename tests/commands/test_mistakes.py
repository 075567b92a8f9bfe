"""A mistake is answered by one sentence that names the mend: the rows of :mod:`tests.commands.mistakes`."""

from __future__ import annotations

import gzip
import os
import shlex
import shutil
import socket
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from rd_hf.__main__ import main
from rd_hf.network import _Hub
from tests.commands.mistakes import AWKWARD, NAMED, TYPED, UNREACHABLE
from tests.conftest import REPOSITORY, Outcome, environment, run_here

TABLE = [*((line, 2, words) for line, words in TYPED), *((line, 1, words) for line, words in NAMED)]


@pytest.fixture(scope="module")
def laid_out(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Path:
    """The files that the lines name."""
    desk = tmp_path_factory.mktemp("desk")
    (desk / "p.fasta").write_text(">a\nMKTAYIAKQRQISFVKSHFSRQ\n>b\nMKTAYIAKQRQISFVK\n")
    (desk / "none.fasta").write_text("")
    (desk / "digits.fasta").write_text(">a\n12345\n")
    (desk / "table.csv").write_text("name,score\na,1\n")
    (desk / "cut.fasta.gz").write_bytes(gzip.compress(b">a\nMKTAYIAKQR\n" * 500)[:-30])
    with zipfile.ZipFile(desk / "p.zip", "w") as archive:
        archive.writestr("p.fasta", ">a\nMKT\n")
    for name, config in (("damaged", "{"), ("other", '{"model_type": "bert"}')):
        (desk / name).mkdir()
        (desk / name / "config.json").write_text(config)
    (desk / "empty").mkdir()
    (desk / "unfitted").mkdir()
    shutil.copy(REPOSITORY / "hub_configs" / "rd-esm2-35M" / "config.json", desk / "unfitted")
    shutil.copytree(tiny_checkpoint, desk / "model")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(desk)
        assert main(["embed", "--model", "model", "--input", "p.fasta", "--output", "embeddings", "--quiet"]) == 0
    return desk


@pytest.fixture
def desk(laid_out: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder that the lines are typed in; whatever one writes goes away."""
    monkeypatch.chdir(laid_out)
    # What a fit takes is measured elsewhere.
    monkeypatch.setattr("rd_hf.hub.plan.measured_flops", lambda **_: 1e11)
    before = set(laid_out.iterdir())
    yield laid_out
    for path in set(laid_out.iterdir()) - before:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def typed(line: str, capsys: pytest.CaptureFixture[str]) -> Outcome:
    def rd_hf(words: list[str]) -> int:
        try:
            return main(words)
        except SystemExit as end:
            return int(end.code or 0)

    return run_here(rd_hf, capsys, *shlex.split(line))


def check(outcome: Outcome, code: int, words: str) -> None:
    # But for the bar of what was being read.
    said = [line for line in outcome.stderr.splitlines() if line and "records/s]" not in line]
    assert outcome.status == code
    assert words in said[-1]
    assert said[-1].startswith("rd-hf")
    assert ": error: " in said[-1]
    assert "Traceback" not in outcome.stderr
    # Before a misunderstood line's sentence stands what must be given, in one line.
    assert len(said) == code
    assert code == 1 or said[0].startswith("usage: rd-hf")


def test_there_are_enough_of_them() -> None:
    lines = [line for line, *_ in (*TABLE, *AWKWARD, *UNREACHABLE)]
    assert len(set(lines)) == len(lines) >= 70


@pytest.mark.parametrize(("line", "code", "words"), TABLE)
def test_a_mistake_names_its_mend(
    line: str, code: int, words: str, desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    check(typed(line, capsys), code, words)


@pytest.mark.parametrize(("line", "words"), AWKWARD)
def test_an_awkward_file_names_its_mend(
    line: str, words: str, desk: Path, shared_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    check(typed(line.format(shared_data), capsys), 1, words)


@pytest.mark.parametrize(("line", "words"), UNREACHABLE)
def test_without_a_network_the_hub_is_asked_once(
    line: str, words: str, desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One attempt to connect, whatever the command asks for and however often its libraries ask again."""
    asked: list[str] = []
    sent: list[object] = []

    def why_unreachable(_: object, url: str) -> str:
        asked.append(url)
        return "hub: no connection"

    def connect(_: socket.socket, address: object) -> None:
        sent.append(address)
        raise ConnectionRefusedError

    monkeypatch.setattr(_Hub, "_why_unreachable", why_unreachable)
    monkeypatch.setattr("rd_hf.network._hub.reached", False)
    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)
    outcome = typed(line, capsys)
    check(outcome, 1, words)
    assert "the Hub cannot be reached (hub: no connection)" in outcome.stderr
    assert (len(asked), sent) == (1, [])


@pytest.mark.parametrize(("line", "words"), UNREACHABLE)
def test_told_to_be_offline_it_does_not_ask(
    line: str, words: str, desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("asked"))
    outcome = typed(line, capsys)
    check(outcome, 1, "HF_HUB_OFFLINE forbids to ask the Hub: unset it")


@pytest.mark.parametrize(
    ("line", "words"),
    [UNREACHABLE[0], ("fit --config rd-esm2-35M --data p.fasta --output f", "esm2_t6_8M_UR50D is neither here")],
)
def test_a_process_of_its_own_says_one_line(line: str, words: str, desk: Path, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    nowhere = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": f"http://127.0.0.1:{port}", "HF_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "rd_hf", *shlex.split(line)],
        capture_output=True,
        text=True,
        check=False,
        cwd=desk,
        env={**os.environ, **environment(), **nowhere},
    )
    check(Outcome(done.returncode, done.stdout, done.stderr), 1, words)
    assert f"the Hub cannot be reached (127.0.0.1:{port}: " in done.stderr
