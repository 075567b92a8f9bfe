"""File work: whole or not at all, with the umask's permissions, on file systems that lack this or that."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import resource
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rd_hf.bases.moments import save_tensors
from rd_hf.files import FolderError, Workspace, replacing, write_text
from rd_hf.model.staging_rd_esm import clear_staging, is_staging, staging

UNSUPPORTED = (errno.ENOLCK, errno.ENOTSUP, errno.EINVAL, errno.ENOSYS)


@pytest.fixture(params=[0o022, 0o002, 0o077, 0o027], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_files_are_readable_by_whom_the_umask_says(tmp_path: Path, umask: int) -> None:
    write_text(tmp_path / "text", "é")
    save_tensors(tmp_path / "weights.safetensors", {"a": torch.zeros(3)})
    assert {mode(path) for path in tmp_path.iterdir()} == {0o666 & ~umask}


def test_what_cannot_be_filled_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")

    def half() -> None:
        with replacing(tmp_path / "a") as fresh:
            fresh.write_text("half")
            raise KeyError

    with pytest.raises(KeyError):
        half()
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_text() == "old"


@contextmanager
def small_files() -> Iterator[None]:
    """No file may be longer than a thousand bytes: what a quota or a full disk says, without one.

    Within the test alone: pytest may be writing to a longer file itself.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_fills_is_the_same_sentence_whoever_writes(tmp_path: Path) -> None:
    full = r"is full.*: free some space and give the same command again"
    with small_files(), pytest.raises(FolderError, match=full):
        save_tensors(tmp_path / "weights.safetensors", {"a": torch.zeros(1000)})
    with small_files(), pytest.raises(FolderError, match=full):
        write_text(tmp_path / "text", "x" * 2000)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", UNSUPPORTED, ids=errno.errorcode.get)
def test_a_file_system_without_fsync_or_locks_is_worked_on_without(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    monkeypatch.setattr(fcntl, "flock", refuse)
    workspace = Workspace(tmp_path / "out" / ".job", "a test")
    workspace.claim()
    with workspace.writing("a") as path:
        path.write_text("whole")
    assert (tmp_path / "out" / "a").read_text() == "whole"
    assert "file system without locks" in caplog.text
    assert "owner" not in caplog.text


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "is full"),
        (errno.EDQUOT, "is full"),
        (errno.EIO, "choose another --output"),
        (errno.EACCES, "check its owner and permissions"),
        (errno.ENOTSUP, "its file system does not offer what is needed"),
    ],
    ids=str,
)
def test_each_refusal_has_its_own_mend(
    number: int, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(FolderError, match=words) as caught:
        write_text(tmp_path / "a", "text")
    assert ("owner" in str(caught.value)) == (number == errno.EACCES)
    assert not list(tmp_path.iterdir())


def leftover(folder: Path, lock: bool = True) -> Path:
    """What a process leaves in a folder that is killed while it writes there."""
    with staging(folder) as inner:
        Path(inner, "half").write_text("half a file")
        kept = Path(inner).parent
        if not lock:
            (kept / "lock").unlink()
        kept.rename(folder / "aside")
    (folder / "aside").rename(kept)
    return kept


@pytest.mark.parametrize("lock", [True, False], ids=["in its work", "before its lock"])
def test_what_a_kill_left_beside_a_file_goes_with_the_next_write(lock: bool, tmp_path: Path) -> None:
    kept = leftover(tmp_path, lock)
    assert is_staging(kept.name)
    for own in (".notes.tmp", "0123456789abcdef.tmp", ".0123456789abcdef-0123456789abcdef.rd_hf-tmp"):
        (tmp_path / own).mkdir()
    write_text(tmp_path / "text", "whole")
    assert not kept.exists()
    assert len(list(tmp_path.iterdir())) == 4, "a name without its checksum is somebody else's"


def test_what_another_process_writes_is_left_to_it(tmp_path: Path) -> None:
    with replacing(tmp_path / "a") as theirs:
        theirs.write_text("theirs")
        write_text(tmp_path / "b", "ours")
        clear_staging(tmp_path)
    assert (tmp_path / "a").read_text() == "theirs"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_where_there_are_no_locks_nothing_is_taken_for_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = leftover(tmp_path)

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    monkeypatch.setattr(fcntl, "flock", refuse)
    write_text(tmp_path / "text", "whole")
    assert kept.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([kept.name, "text"])


def test_a_link_by_such_a_name_is_not_followed(tmp_path: Path) -> None:
    kept = leftover(tmp_path)
    (tmp_path / "theirs").mkdir()
    kept.rename(tmp_path / "theirs" / "moved")
    kept.symlink_to(tmp_path / "theirs" / "moved")
    write_text(tmp_path / "text", "whole")
    assert (tmp_path / "theirs" / "moved" / "files" / "half").exists()


def test_only_one_at_a_time(tmp_path: Path) -> None:
    first, second = (Workspace(tmp_path / "out" / ".job", "a test") for _ in range(2))
    first.claim()
    with pytest.raises(FolderError, match=r"out is in use by another run of a test"):
        second.claim()
    first.leave()
    second.claim()
    second.leave()


def test_a_half_written_file_is_cleared_away_and_nobody_elses(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "out" / ".job", "a test")
    workspace.claim()
    workspace.temporary().write_text("half")
    for own in ("notes.tmp", ".notes.tmp", "0123456789abcdef-1234.tmp"):
        (workspace.path / own).write_text("a user's own")
    workspace.leave()
    workspace.claim()
    assert sorted(path.name for path in workspace.path.glob("*.tmp")) == [
        ".notes.tmp",
        "0123456789abcdef-1234.tmp",
        "notes.tmp",
    ]
    workspace.remove()
    assert len(list(workspace.path.iterdir())) == 3


@pytest.mark.parametrize("what", ["changed", "put there", "a folder", "a link"])
def test_a_file_that_is_not_as_it_was_written_is_not_replaced(what: str, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "out" / ".job", "a test")
    workspace.claim()
    path = workspace.output / "report.md"
    if what == "changed":
        for text in ("first", "second"):
            with workspace.writing("report.md") as fresh:
                fresh.write_text(text)
        assert path.read_text() == "second", "what was written is replaced without a word"
        path.write_text("annotated")
    elif what == "put there":
        path.write_text("somebody's")
    elif what == "a folder":
        path.mkdir()
    else:
        path.symlink_to(tmp_path / "absent")
    with pytest.raises(FolderError, match=r"report.md is not as a test wrote it: move it elsewhere"):
        workspace.refuse_changed("report.md")
    with pytest.raises(FolderError, match="not as a test wrote it"), workspace.writing("report.md") as fresh:
        fresh.write_text("new")
    assert what != "changed" or path.read_text() == "annotated"


def test_killed_between_note_and_rename_either_file_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = Workspace(tmp_path / "out" / ".job", "a test")
    workspace.claim()
    with workspace.writing("report.md") as fresh:
        fresh.write_text("first")
    replace = os.replace

    def killed(source: Path, target: Path) -> None:
        if Path(target).name == "report.md":
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt), workspace.writing("report.md") as fresh:
        fresh.write_text("second")
    monkeypatch.undo()
    workspace.refuse_changed("report.md")
    (workspace.output / "report.md").write_text("second")
    workspace.refuse_changed("report.md")


TOKEN = "0" * 32


@pytest.mark.parametrize(
    "content",
    [
        *("", "{}", "[]", '{"token": 3, "written": {}}', "\x00", '{"token": "a"}', "[" * 100_000),
        # What is cleared away is what begins with the token, and what is hashed is what was written.
        '{"token": "../../*", "written": {}}',
        *(
            f'{{"token": "{TOKEN}", "written": {written}}}'
            for written in ("[]", '{"../other": []}', '{"/etc/hosts": []}')
        ),
        f'{{"token": "{TOKEN}", "written": {{"report.md": 3}}}}',
    ],
)
def test_a_record_of_somebody_elses_is_none(content: str, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "out" / ".job", "a test")
    workspace.path.mkdir(parents=True)
    (workspace.path / "rd_hf.json").write_text(content)
    assert workspace.record() is None
    with pytest.raises(FolderError, match=r"holds other files \(.job\)"):
        workspace.refuse_others()


def test_a_claim_that_was_killed_at_once_is_taken_up(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "out" / ".job", "a test")
    workspace.path.mkdir(parents=True)
    workspace.refuse_others()
    (workspace.path / "lock").touch()
    workspace.refuse_others()
    # While the record is written.
    leftover(workspace.path)
    workspace.refuse_others()
    # And a save beside it.
    leftover(workspace.output)
    workspace.refuse_others()
    workspace.claim()
    assert json.loads((workspace.path / "rd_hf.json").read_text())["command"] == "a test"


def test_weights_written_are_weights_read(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(6.0).reshape(2, 3).T, "b": torch.zeros(0)}
    save_tensors(tmp_path / "w.safetensors", tensors)
    assert all(torch.equal(load_file(tmp_path / "w.safetensors")[name], value) for name, value in tensors.items())
