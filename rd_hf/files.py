"""Files in folders of a user's: written whole or not at all, known from others', and open to one job at a time.

A hidden folder of this project's own (:class:`Workspace`) carries a record with a random token and the hashes of what
was written; half-written files lie in it under that token. What is not in the record, or has changed since, is
somebody's work: it is neither replaced nor removed. Half-written files beside a user's own lie in a hidden folder whose
name carries its own checksum (:func:`rd_hf.model.staging_rd_esm.staging`): the next write there clears away what a kill
left.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import logging
import os
import re
import secrets
import stat
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from rd_hf.model.staging_rd_esm import clear_staging, is_staging, staging

logger = logging.getLogger(__name__)

_TOKEN = re.compile("[0-9a-f]{32}")
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_DENIED = {errno.EACCES, errno.EPERM}
# What file systems of clusters, containers and phones answer to locks and fsync that they do not have.
_ABSENT = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL}


class FolderError(ValueError):
    """A folder cannot be used; the message is one sentence that names the cause and the mend."""


def error_text(error: BaseException) -> str:
    """The message of an exception, for a user: of the system's own errors no number, and the file."""
    if not isinstance(error, OSError) or error.errno is None or error.strerror is None:
        return str(error) or type(error).__name__
    name = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes | os.PathLike) else ""
    return f"{name}{error.strerror}"


def _cause(error: Exception) -> OSError | None:
    """The system's error that this one is or stands for: safetensors has its own class, with the number as text."""
    if isinstance(error, OSError):
        return error
    found = re.search(r"\(os error (\d+)\)|Os \{ code: (\d+)", str(error))
    if type(error).__name__ != "SafetensorError" or found is None:
        return None
    code = int(found[1] or found[2])
    return OSError(code, os.strerror(code))


@contextmanager
def explain_errors(path: Path, kind: type[FolderError] = FolderError) -> Iterator[None]:
    """Turn the file system's errors into one sentence with a mend."""
    try:
        yield
    except Exception as error:
        cause = _cause(error)
        if cause is None:
            raise
        message = cause.strerror or str(cause)
        if cause.errno in _FULL:
            raise kind(
                f"{path} is full ({message}): free some space and give the same command again; what is finished is kept"
            ) from error
        mend = "choose another --output"
        if cause.errno in _DENIED:
            mend = f"check its owner and permissions, or {mend}"
        elif cause.errno in _ABSENT:
            mend = "its file system does not offer what is needed, so choose an --output on another disk"
        raise kind(f"{path} cannot be written to ({message}): {mend}") from error


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file's content, in hexadecimal digits."""
    with open(path, "rb") as handle:
        return stream_sha256(handle)


def stream_sha256(handle: IO[bytes]) -> str:
    """SHA-256 of what is left of an open file, in hexadecimal digits."""
    digest = hashlib.sha256()
    while content := handle.read(1 << 22):
        digest.update(content)
    return digest.hexdigest()


@contextmanager
def replacing(path: str | Path, temporary: Path | None = None, kind: type[FolderError] = FolderError) -> Iterator[Path]:
    """Write a file so that it appears whole or not at all, even if the power fails, with the umask's permissions.

    Yields the path to write to: ``temporary``, on the same file system, or one in a hidden folder beside the file,
    whose own folder is there. Raises the ``kind`` of error where the disk is full or the folder cannot be written to.
    """
    path = Path(path)
    # Hidden folders are this project's own: what a user knows is the one around.
    known = path.parent.parent if path.parent.name.startswith(".") else path.parent
    with explain_errors(known, kind), ExitStack() as stack:
        if temporary is None:
            temporary = Path(stack.enter_context(staging(path.parent)), path.name)
        try:
            with temporary.open("xb") as handle:
                mode = stat.S_IMODE(os.fstat(handle.fileno()).st_mode)
            yield temporary
            # safetensors' own file, put in place of this one, is readable by its owner alone.
            if stat.S_IMODE(temporary.stat().st_mode) != mode:
                temporary.chmod(mode)
            with temporary.open("rb+") as handle:
                _sync(handle.fileno())
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise
        # Makes the rename last; not every system lets a folder be opened.
        with suppress(PermissionError):
            descriptor = os.open(path.parent, os.O_RDONLY)
            try:
                _sync(descriptor)
            finally:
                os.close(descriptor)


def _sync(descriptor: int) -> None:
    """Flush to the disk, where the file system can."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _ABSENT:
            raise


def write_bytes(path: str | Path, content: bytes) -> None:
    """Replace a file; see :func:`replacing`."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: str | Path, text: str) -> None:
    """Replace a text file, in UTF-8 with plain line ends; see :func:`replacing`."""
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_json(path: str | Path, content: Any, indent: int = 1) -> None:
    """Replace a JSON file; see :func:`replacing`."""
    write_text(path, json.dumps(content, indent=indent) + "\n")


def _is_valid(name: str, hashes: Any) -> bool:
    """Whether an entry of a record is one that this project writes: the file lies in the output folder."""
    path = Path(name)
    return not path.is_absolute() and ".." not in path.parts and isinstance(hashes, list)


class Workspace:
    """A hidden folder of this project's own, in an output folder: the record, a lock, half-written files.

    Its methods raise the ``kind`` of error where the folder is another's or cannot be written to.

    Args:
        path: the hidden folder; made by :meth:`claim`.
        command: what works there, in words.
    """

    def __init__(self, path: str | os.PathLike, command: str, kind: type[FolderError] = FolderError) -> None:
        self.path = Path(path)
        self.output = self.path.parent
        self.command = command
        self.kind = kind
        self._record_path = self.path / "rd_hf.json"
        self._held = ExitStack()

    def record(self) -> dict[str, Any] | None:
        """The record, None if there is none that this project wrote."""
        try:
            content = json.loads(self._record_path.read_bytes())
            valid = _TOKEN.fullmatch(content["token"]) and all(_is_valid(*one) for one in content["written"].items())
            return content if valid else None
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return None

    def refuse(self, *names: str) -> None:
        """Raise before anything changes; see :meth:`refuse_others` and, for files to be written, the other."""
        self.refuse_others()
        self.refuse_changed(*names)

    def refuse_others(self, own: Iterable[str] = ()) -> None:
        """Raise if the output folder holds anything, beside these names, and no sign that it is this project's."""
        if not os.path.lexists(self.output):
            return
        if not self.output.is_dir():
            raise self.kind(f"{self.output} is no folder: choose another --output")
        with explain_errors(self.output, self.kind):
            names = {entry.name for entry in self.output.iterdir()}
            if self.path.name in names and (self.record() is not None or self._is_unrecorded()):
                return
        # What a killed save left is no file of a user's, and goes with the next one.
        others = sorted(name for name in names - set(own) if not is_staging(name))
        if others:
            raise self.kind(
                f"{self.output} holds other files ({', '.join(others[:3])}{', ...' if len(others) > 3 else ''}) and "
                f"nothing that says they are {self.command}'s: choose an empty --output"
            )

    def _is_unrecorded(self) -> bool:
        """Whether a run was killed (or is about) between making the folder and writing the record."""
        if self.path.is_symlink():
            return False
        beside = [entry for entry in self.output.iterdir() if entry != self.path and not is_staging(entry.name)]
        inside = [entry for entry in self.path.iterdir() if not is_staging(entry.name)]
        return not beside and all(entry.name == "lock" and entry.stat().st_size == 0 for entry in inside)

    def claim(self) -> None:
        """Make the folder, keep others out of it until :meth:`leave` or the end of this process, and clear up."""
        from filelock import FileLock, Timeout

        with explain_errors(self.output, self.kind):
            self.path.mkdir(parents=True, exist_ok=True)
            if self._has_locks():
                try:
                    self._held.enter_context(FileLock(self.path / "lock").acquire(timeout=0))
                except Timeout as error:
                    raise self.kind(
                        f"{self.output} is in use by another run of {self.command}: wait for it, or choose another "
                        "--output"
                    ) from error
            if self.record() is None:
                write_json(self._record_path, {"command": self.command, "token": secrets.token_hex(16), "written": {}})
            else:
                self._clear()

    def _clear(self) -> None:
        """Remove half-written files of runs that were killed."""
        clear_staging(self.path)
        if record := self.record():
            for stale in self.path.glob(f"{record['token']}-*.tmp"):
                stale.unlink()

    def _has_locks(self) -> bool:
        """Whether the file system has locks; asked first, since filelock takes any no for a rival."""
        try:
            import fcntl
        except ImportError:  # Windows, whose file systems do
            return True
        with (self.path / "lock").open("ab") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in _ABSENT:
                    logger.warning(
                        "%s lies on a file system without locks (%s): see to it that no other run works there",
                        self.output,
                        error.strerror,
                    )
                    return False
        return True

    def leave(self) -> None:
        """Let others in."""
        self._held.close()

    def temporary(self) -> Path:
        """A new path for a half-written file, which the next :meth:`claim` clears away if this process dies."""
        record = self.record()
        if record is None:
            raise self.kind(f"{self._record_path} is missing or damaged: give the same command again")
        return self.path / f"{record['token']}-{secrets.token_hex(4)}.tmp"

    @contextmanager
    def replacing(self, path: str | Path) -> Iterator[Path]:
        """As :func:`replacing`, by way of this folder."""
        with replacing(path, self.temporary(), self.kind) as temporary:
            yield temporary

    def refuse_changed(self, *names: str) -> None:
        """Raise if a file of the output folder that is to be replaced is not as this project wrote it."""
        written = (self.record() or {}).get("written", {})
        for name in {*names, *written}:
            path = self.output / name
            if os.path.lexists(path) and not (path.is_file() and file_sha256(path) in written.get(name, ())):
                raise self.kind(
                    f"{path} is not as {self.command} wrote it: move it elsewhere, or choose another --output"
                )

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """Replace a file of the output folder that is as it was written, and note its hash; see :meth:`replacing`."""
        self.refuse_changed(name)
        with self.replacing(self.output / name) as temporary:
            yield temporary
            record = self.record() or {}
            # Noted before the rename: a kill between the two leaves either file known.
            record["written"][name] = [*record["written"].get(name, [])[-1:], file_sha256(temporary)]
            write_json(self._record_path, record)

    def remove(self, *patterns: str) -> None:
        """Remove the folder: the files of these patterns, in turn, the lock, the record; anything else stays.

        A kill on the way leaves a folder that can be claimed, and removed, again.
        """
        for pattern in patterns:
            for path in self.path.glob(pattern):
                path.unlink()
        self._clear()
        self.leave()
        for path in (self.path / "lock", self._record_path):
            path.unlink(missing_ok=True)
        with suppress(OSError):
            self.path.rmdir()


class Seekable(io.RawIOBase):
    """A file that can be read from anywhere, of a size in bytes that may not be known; ``at`` is the place in it."""

    at = 0
    size: int | None = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self.size is not None

    def tell(self) -> int:
        return self.at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.at = offset + (0, self.at, self.size or 0)[whence]
        return self.at


def byte_size(size: float) -> str:
    """Bytes in decimal units, as disks and downloads are sold."""
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"
