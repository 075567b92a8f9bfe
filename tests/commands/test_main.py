"""What surrounds a command's process costs no result, and the exit code tells of the job."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rd_hf.commands._main import run_command
from tests.conftest import environment

# A command that works, says more than a pipe holds, and leaves a result: quick, for it imports no torch.
COMMAND = r"""
import sys
from pathlib import Path
from rd_hf.commands._main import run_command

def body():
    if "ask" in sys.argv:
        return 0 if sys.stdin is None else 3
    print("a \u2013 \u03b1 \udcc3 " * 100_000)
    handle = open(sys.argv[1], "w", encoding="utf-8")
    number = handle.fileno()
    handle.write("whole")
    handle.close()
    print("done", number > 2, file=sys.stderr)
    if "fail" in sys.argv:
        raise ValueError("the cause \u2013 and the mend")
    return None

sys.exit(run_command("tool", body, prints_result=lambda: "prints" in sys.argv))
"""


def shell(line: str, result: Path, **variables: str) -> tuple[int, str]:
    """Run a line of bash in which TOOL is the command: the line's exit code, and what was said on standard error."""
    tool = f"{shlex.quote(sys.executable)} -c {shlex.quote(COMMAND)} {shlex.quote(str(result))}"
    script = line.replace("TOOL", tool)
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, env={**environment(), **variables}, timeout=60, check=False
    )
    return done.returncode, done.stderr.decode("utf-8")


@pytest.mark.parametrize(
    "line",
    [
        "TOOL | true; exit ${PIPESTATUS[0]}",
        "TOOL | head -c 10 >&2; exit ${PIPESTATUS[0]}",
        "TOOL >&-",
        "TOOL > /dev/full",
        "TOOL > /dev/null 2> /dev/full",
        "TOOL 2>&1 > /dev/null | true; exit ${PIPESTATUS[0]}",
        "TOOL > /dev/null 2>&-",
        "TOOL <&- >&- 2>&-",
    ],
)
def test_a_reader_that_goes_away_costs_no_result_and_no_exit_code(line: str, tmp_path: Path) -> None:
    code, said = shell(line, tmp_path / "result")
    assert (tmp_path / "result").read_text(encoding="utf-8") == "whole"
    assert code == 0
    assert "Traceback" not in said
    assert "Exception ignored" not in said
    assert "done False" not in said, "a result must not take a standard stream's number"
    assert ("No space left" in said) == ("> /dev/full" in line and "2> /dev/full" not in line)


@pytest.mark.parametrize("line", ["TOOL fail | true; exit ${PIPESTATUS[0]}", "TOOL fail >&-", "TOOL fail > /dev/full"])
def test_a_job_that_failed_says_so_whoever_reads(line: str, tmp_path: Path) -> None:
    code, said = shell(line, tmp_path / "result")
    assert code == 1
    assert "tool: error: the cause – and the mend\n" in said


def test_what_is_itself_the_result_must_be_written(tmp_path: Path) -> None:
    assert shell("TOOL prints > /dev/full", tmp_path / "result")[0] == 1
    assert shell("TOOL prints | true; exit ${PIPESTATUS[0]}", tmp_path / "result")[0] == 0


def test_a_closed_standard_input_is_none_for_those_who_ask(tmp_path: Path) -> None:
    assert shell("TOOL ask <&-", tmp_path / "result")[0] == 0
    assert shell("TOOL ask < /dev/null", tmp_path / "result")[0] == 3


@pytest.mark.parametrize(
    "locale",
    [
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"LC_ALL": "C"},
        {"PYTHONIOENCODING": "latin-1"},
        {"PYTHONIOENCODING": "ascii:strict"},
    ],
    ids=str,
)
def test_any_text_can_be_said_in_any_locale(locale: dict[str, str], tmp_path: Path) -> None:
    code, said = shell("TOOL fail | tail -c 20; exit ${PIPESTATUS[0]}", tmp_path / "result", **locale)
    assert code == 1
    assert "the cause" in said
    assert "Traceback" not in said


def test_a_keyboard_interrupt_says_how_to_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    def body() -> None:
        raise KeyboardInterrupt

    assert run_command("tool", body, go_on="add --resume to the same command") == 130
    assert capsys.readouterr().err == "tool: interrupted; add --resume to the same command to go on\n"


# A command that waits in the middle of its work, with a child of its own as a pool has, and says what became of both.
WAITING = r"""
import os, sys, time
from rd_hf.commands._main import run_command

def wait():
    # In short sleeps: Python begins one in spite of a signal that came just before it.
    for _ in range(600):
        time.sleep(0.1)

def body():
    begun, begins = os.pipe()
    child = os.fork()
    if child == 0:
        # A signal that comes before Python has set up a forked process is lost to it.
        os.write(begins, b".")
        wait()
        os._exit(0)
    os.read(begun, 1)
    try:
        print("ready", child, flush=True)
        wait()
    finally:
        os.kill(child, 15)
        print("child", os.waitpid(child, 0)[1], flush=True)

sys.exit(run_command("tool", body, go_on="add --resume to the same command"))
"""


@pytest.mark.parametrize("rank", [None, "0", "1"])
def test_sigterm_has_the_words_of_an_interruption(rank: str | None) -> None:
    """Schedulers send it, and their launchers send it on; of processes that share a job the first speaks."""
    variables = {} if rank is None else {"RANK": rank}
    process = subprocess.Popen(
        [sys.executable, "-c", WAITING],
        env={**environment(), **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline().startswith("ready")
    process.terminate()
    process.terminate()
    out, err = process.communicate(timeout=30)
    assert process.returncode == 143
    assert out == f"child {int(signal.SIGTERM)}\n", "a forked worker ends as by default, without words"
    assert err == ("" if rank == "1" else "tool: terminated; add --resume to the same command to go on\n")


def test_a_signal_that_is_sent_on_late_changes_no_exit_code() -> None:
    """The process takes a while to end: a launcher's second signal may come when the words have been said."""
    program = WAITING.replace("sys.exit(", "code = (") + "print('said', flush=True); time.sleep(1); sys.exit(code)"
    process = subprocess.Popen(
        [sys.executable, "-c", program], env=environment(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline().startswith("ready")
    process.terminate()
    assert process.stdout.readline().startswith("child")
    assert process.stdout.readline() == "said\n"
    process.terminate()
    assert process.wait(timeout=30) == 143
    process.stdout.close()


def test_a_handler_of_the_callers_own_is_left_alone() -> None:
    before = signal.signal(signal.SIGTERM, handler := lambda *_: None)
    try:
        assert run_command("tool", lambda: int(signal.getsignal(signal.SIGTERM) is not handler)) == 0
        # A command of another test that was ended leaves it ignored.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        assert run_command("tool", lambda: int(signal.getsignal(signal.SIGTERM) is signal.SIG_DFL)) == 0
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_fault_of_the_program_keeps_its_traceback() -> None:
    def body() -> None:
        raise KeyError("a bug")

    before = sys.stdout
    with pytest.raises(KeyError):
        run_command("tool", body)
    assert sys.stdout is before


def test_errors_of_the_system_are_told_without_their_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    missing = os.path.join("no", "such", "file")
    assert run_command("tool", lambda: open(missing).close()) == 1
    assert capsys.readouterr().err == f"tool: error: {missing}: No such file or directory\n"
