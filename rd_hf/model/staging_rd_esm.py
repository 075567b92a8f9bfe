"""Half-written files: in a hidden folder beside their place, which the next save clears away after a kill.

This file travels to the Hub beside ``modeling_rd_esm.py``. It imports the standard library only.
"""

import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO

_SUFFIX = ".rd_hf-tmp"
_LOCK = "lock"


def _seal(nonce: str) -> str:
    return hashlib.sha256(f"rd_hf {nonce}".encode()).hexdigest()[:16]


def is_staging(name: str) -> bool:
    """Whether a name is one that :func:`staging` gives: it carries its own checksum, so nobody else's file has it."""
    nonce, _, seal = name.removeprefix(".").removesuffix(_SUFFIX).partition("-")
    return name == f".{nonce}-{seal}{_SUFFIX}" and seal == _seal(nonce)


@contextmanager
def staging(folder: str | os.PathLike[str]) -> Iterator[str]:
    """An empty hidden folder in `folder`, on its file system; it and what is left in it are gone at the end.

    What a killed process left there is cleared away first. A folder in use is known by its lock, so that processes
    that save into one folder at a time leave each other alone.

    Raises:
        OSError: the folder cannot be written to.
    """
    clear_staging(folder)
    lock = None
    while lock is None:
        nonce = secrets.token_hex(8)
        path = os.path.join(os.fspath(folder), f".{nonce}-{_seal(nonce)}{_SUFFIX}")
        os.mkdir(path)
        lock = _hold(os.path.join(path, _LOCK), new=True)
    try:
        inner = os.path.join(path, "files")
        os.mkdir(inner)
        yield inner
    finally:
        _remove(path, lock)


def clear_staging(folder: str | os.PathLike[str]) -> None:
    """Remove the staging folders that killed processes left in `folder`."""
    with suppress(OSError), os.scandir(os.fspath(folder)) as entries:
        for path in [entry.path for entry in entries if is_staging(entry.name) and entry.is_dir(follow_symlinks=False)]:
            with suppress(OSError):
                lock = _hold(os.path.join(path, _LOCK), new=False)
                if lock is not None:
                    _remove(path, lock)


def _hold(path: str, new: bool) -> BinaryIO | None:
    """The file, opened and locked; None where another process has it.

    Where the file system knows no locks, a new file is taken to be held and an old one to be another's.
    """
    try:
        # Open as long as it is held.
        file = open(path, "xb") if new else open(path, "ab")  # noqa: SIM115
    except (FileExistsError, FileNotFoundError):
        # Another process took this folder for one that was left, or has just removed it.
        return None
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:
        # Windows removes no file that is open elsewhere: _remove stops there.
        return file
    except OSError as error:
        if new and not isinstance(error, BlockingIOError):
            return file
        file.close()
        return None
    return file


def _remove(path: str, lock: BinaryIO) -> None:
    """Take a staging folder away; what a kill leaves of it on the way can be cleared like the whole."""
    with suppress(OSError):
        if os.name == "nt":
            lock.close()
        # First: where another process holds it without a lock, as on Windows, this is refused.
        os.remove(os.path.join(path, _LOCK))
        shutil.rmtree(os.path.join(path, "files"), ignore_errors=True)
        os.rmdir(path)
    lock.close()
