"""What lies elsewhere, at ``hf://``, ``https://`` or ``s3://``: the one place that opens it, by fsspec.

A file is read from its beginning, and taken up again where a connection broke. Of a folder of embeddings only ranges
are read, and kept in the cache under the version that was read: a commit of the Hub, or the digest of a manifest.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from rd_hf.data.records import InputError
from rd_hf.files import FolderError, Seekable, error_text, write_bytes
from rd_hf.network import hub_asked_once

MANIFEST, REJECTS = "_manifest.json", "_rejects.tsv"
# What reads each kind of address, beside fsspec.
_PACKAGES = {"hf": "huggingface_hub", "https": "fsspec[http]", "http": "fsspec[http]", "s3": "s3fs"}
_PINNED = re.compile(r"hf://.*@[0-9a-f]{40}(/.*)?")
# What tells one content of an address from another, as file systems call it.
_VERSIONS = ("ETag", "etag", "Last-Modified", "LastModified")
# Seconds before each further try, where the library has given up; that of the Hub has tried for long by then.
_PAUSES = (1.0, 4.0)
_BUFFER = 1 << 20

Result = TypeVar("Result")


def is_remote(source: str | os.PathLike) -> bool:
    """Whether the name of an input or a folder is an address that is read from where it is."""
    scheme, mark, _ = str(source).partition("://")
    return bool(mark) and scheme in _PACKAGES


def pinned(url: str) -> str:
    """Return an address of the Hub at the commit that its revision stands for now, any other as it is."""
    if not url.startswith("hf://") or _PINNED.fullmatch(url):
        return url
    with _explained(url):
        from huggingface_hub import HfApi, constants

        place = _system(url)[0].resolve_path(url)
        if not hasattr(place, "repo_id"):  # a bucket, which has no commits
            return url
        commit = HfApi().repo_info(place.repo_id, repo_type=place.repo_type, revision=place.revision).sha
        prefix = constants.REPO_TYPES_URL_PREFIXES.get(place.repo_type, "")
        return f"hf://{prefix}{place.repo_id}@{commit}/{place.path_in_repo}".rstrip("/")


def facts_of(url: str) -> dict[str, Any]:
    """Return what a manifest notes of a file: its address, its size, and what changes with its content.

    An InputError if it is not there, a folder, or cannot be reached.
    """
    with _explained(url):
        system, path = _system(url)
        info = system.info(path)
        if info["type"] == "directory":
            names = sorted(Path(one["name"]).name for one in system.ls(path) if one["type"] == "file")
            shown = next((name for name in names if not name.startswith((".", "_", "README"))), "proteins.fasta.gz")
            raise InputError(f"{url} is a folder: give the files in it, for example {url.rstrip('/')}/{shown}")
    version = next((str(info[name]) for name in _VERSIONS if info.get(name)), None)
    return {"path": url, "bytes": info.get("size")} | ({} if version is None else {"version": version})


def is_folder(url: str) -> bool:
    """Whether an address names a folder of the Hub or of a store; a server of the web has none."""
    if url.startswith("http"):
        return False
    with _explained(url):
        system, path = _system(url)
        return bool(system.isdir(path))


def open_remote(url: str) -> io.BufferedReader:
    """Open a file as a stream of bytes, which can be sought in where its size is known; raises InputError."""
    return io.BufferedReader(_Stream(url), _BUFFER)


def _system(url: str) -> tuple[Any, str]:
    """The file system of an address, and what the address is called there."""
    from fsspec.core import url_to_fs

    how: dict[str, Any] = {}
    if url.startswith("http"):
        import aiohttp

        # Proxies as everywhere else. A stream may take hours, but may not stand still.
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=60)
        how = {"client_kwargs": {"trust_env": True, "timeout": timeout}}
    # What an earlier one knows of a repo may be out of date.
    return url_to_fs(url, skip_instance_cache=True, **how)


@contextmanager
def _explained(url: str) -> Iterator[None]:
    """Turn whatever a file system raises into one sentence."""
    try:
        with (
            hub_asked_once(url, instead="give what lies on this machine") if url.startswith("hf://") else nullcontext()
        ):
            yield
    except InputError:
        raise
    except Exception as error:
        raise _error(url, error) from error


def _error(url: str, error: Exception) -> InputError:
    scheme = url.partition("://")[0]
    # A file system may take any trouble for a file that is not there.
    root = error.__cause__ if isinstance(error, FileNotFoundError) and error.__cause__ else error
    status = getattr(getattr(root, "response", None), "status_code", None) or getattr(root, "status", None)
    kind = type(root).__name__
    if isinstance(error, ImportError):
        return InputError(f"{url}: {scheme}:// is read by {_PACKAGES[scheme]}: pip install '{_PACKAGES[scheme]}'")
    hidden = kind in ("RepositoryNotFoundError", "GatedRepoError", "NoCredentialsError")
    if hidden or isinstance(root, PermissionError) or status in (401, 403):
        login = {"hf": "log in (hf auth login, or HF_TOKEN)", "s3": "set the credentials (AWS_PROFILE)"}
        mend = login.get(scheme, "fetch it with your login, and give the file")
        return InputError(f"{url} is not there, or not for everybody: check the name, or {mend}")
    if isinstance(root, FileNotFoundError) or status == 404:
        return InputError(f"{url}: no such file there ({str(error)[:200]}); check the address")
    text = " ".join(str(root).split())[:200] or kind
    return InputError(f"{url} cannot be read ({text}): check address and connection, and give the same command again")


def _again(url: str, read: Callable[[], Result]) -> Result:
    """Call a function again where it fails, a few times; an InputError then."""
    for pause in (*(_PAUSES[:1] if url.startswith("hf://") else _PAUSES), None):
        try:
            return read()
        except InputError:
            raise
        except Exception as error:
            if pause is None or isinstance(error, (FileNotFoundError, PermissionError)):
                raise _error(url, error) from error
            time.sleep(pause)
    raise AssertionError


class _Stream(Seekable):
    """A remote file, read on where a connection broke; it never ends before its size."""

    def __init__(self, url: str) -> None:
        self._url = url
        with _explained(url):
            self._system, self._path = _system(url)
            self._file = self._system.open(self._path, "rb")
        self.size = self._file.size

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if self.size is None:
            raise InputError(f"{self._url} comes from a server that tells no size: fetch it, and give the file")
        return super().seek(offset, whence)

    def readinto(self, buffer: Any) -> int:
        if self.size is not None and self.at >= self.size:
            return 0
        data = _again(self._url, lambda: self._read(len(buffer)))
        buffer[: len(data)] = data
        self.at += len(data)
        return len(data)

    def _read(self, count: int) -> bytes:
        try:
            if self._file is None:
                self._file = self._system.open(self._path, "rb")
            if self._file.tell() != self.at:
                self._file.seek(self.at)
            data = self._file.read(count)
            if not data and self.size is not None:
                raise EOFError(f"it ended after {self.at:,} of {self.size:,} bytes")
            return data
        except Exception:
            self._file = None
            raise

    def close(self) -> None:
        if not self.closed and self._file is not None:
            with suppress(Exception):
                self._file.close()
        super().close()


class RemoteFolder:
    """A folder of embeddings elsewhere: its manifest, and ranges of its files, each read once.

    Of the version at ``url``, a commit, the folder ``place`` has what was read: manifest and rejects as they are, of
    other files ranges. An InputError if it is not there, holds no manifest, or cannot be reached.
    """

    def __init__(self, url: str) -> None:
        from huggingface_hub import constants

        self.url = pinned(url.rstrip("/"))
        self._files: dict[str, Any] = {}
        self._held: dict[str, list[tuple[int, int]]] = {}
        self._lock = threading.Lock()
        version = ""
        if not _PINNED.fullmatch(self.url):
            version = f"@{hashlib.sha256(self._manifest()).hexdigest()[:40]}"
        name = re.sub(r"[^\w.@/-]|\.\.", "_", self.url.replace("://", "/")) + version
        self.place = Path(constants.HF_HOME) / "rd_hf" / name
        if not (self.place / MANIFEST).is_file():
            manifest = self._manifest()
            with _keeping(self.place):
                self.place.mkdir(parents=True, exist_ok=True)
                with suppress(FileNotFoundError):
                    write_bytes(self.place / REJECTS, self._whole(REJECTS))
                # The last: what is there is complete.
                write_bytes(self.place / MANIFEST, manifest)

    def open(self, name: str, size: int) -> io.RawIOBase:
        """Open a file that has this size as one that can be sought in; reads raise InputError."""
        return _Ranged(self, name, size)

    def damaged(self, name: str) -> InputError:
        """Forget what was read of a file, which is not as it was written; the error that says so."""
        self._held.pop(name, None)
        for path in self._kept_at(name):
            path.unlink(missing_ok=True)
        return InputError(
            f"{self.url}/{name} is not as it was written, or was damaged on the way: give the same command again, "
            "which fetches it anew; where that changes nothing, push the folder again"
        )

    def read(self, name: str, size: int, start: int, stop: int) -> bytes:
        """Return the bytes of a range, out of the cache where they were read before."""
        content, noted = self._kept_at(name)
        with self._lock:
            if name not in self._held:
                self._held[name] = _ranges(noted)
            if any(first <= start and stop <= last for first, last in self._held[name]):
                with suppress(OSError), open(content, "rb") as file:
                    file.seek(start)
                    if len(data := file.read(stop - start)) == stop - start:
                        return data
            data = _again(f"{self.url}/{name}", lambda: self._fetch(name, size, start, stop))
            with _keeping(self.place):
                descriptor = os.open(content, os.O_WRONLY | os.O_CREAT, 0o666)
                with os.fdopen(descriptor, "wb") as file:
                    file.seek(start)
                    file.write(data)
                # After what it tells of.
                with open(noted, "a", encoding="ascii") as file:
                    file.write(f"{start} {stop}\n")
            self._held[name].append((start, stop))
            return data

    def _kept_at(self, name: str) -> tuple[Path, Path]:
        return self.place / f"{name}.part", self.place / f"{name}.ranges"

    @cached_property
    def _system(self) -> tuple[Any, str]:
        with _explained(self.url):
            return _system(self.url)

    def _manifest(self) -> bytes:
        try:
            return self._whole(MANIFEST)
        except FileNotFoundError as error:
            raise InputError(
                f"{self.url} is no folder of embeddings (it holds no {MANIFEST}): rd-hf push publishes one"
            ) from error

    def _whole(self, name: str) -> bytes:
        """The content of a small file; a FileNotFoundError where there is none."""
        system, root = self._system
        try:
            return _again(f"{self.url}/{name}", lambda: bytes(system.cat_file(f"{root}/{name}")))
        except InputError as error:
            raise error.__cause__ if isinstance(error.__cause__, FileNotFoundError) else error from None

    def _fetch(self, name: str, size: int, start: int, stop: int) -> bytes:
        system, root = self._system
        if name not in self._files:
            # Ranges as they are asked for: nothing is read ahead.
            self._files[name] = system.open(f"{root}/{name}", "rb", cache_type="none")
        file = self._files[name]
        if file.size != size:
            raise InputError(
                f"{self.url}/{name} has {file.size or 0:,} bytes, and its manifest says {size:,}: it was cut short or "
                "replaced, so push the folder again"
            )
        file.seek(start)
        data: bytes = file.read(stop - start)
        if len(data) != stop - start:
            raise EOFError(f"{len(data):,} bytes came of {stop - start:,}")
        return data


class _Ranged(Seekable):
    """A file of a remote folder; what is read is read exactly."""

    def __init__(self, folder: RemoteFolder, name: str, size: int) -> None:
        self._folder, self._name, self.size = folder, name, size

    def readinto(self, buffer: Any) -> int:
        stop = min(self.at + len(buffer), self.size or 0)
        if stop <= self.at:
            return 0
        data = self._folder.read(self._name, self.size or 0, self.at, stop)
        buffer[: len(data)] = data
        self.at = stop
        return len(data)


def _ranges(noted: Path) -> list[tuple[int, int]]:
    """The ranges that were noted; one whose line a kill cut short names no byte that was not written."""
    try:
        lines = noted.read_text(encoding="ascii").splitlines()
    except (OSError, ValueError):
        return []
    found = (re.fullmatch(r"(\d+) (\d+)", line) for line in lines)
    return [(int(one[1]), int(one[2])) for one in found if one]


@contextmanager
def _keeping(place: Path) -> Iterator[None]:
    try:
        yield
    except (FolderError, OSError) as error:
        raise InputError(
            f"{place} cannot be written to ({error_text(error)}): name another cache with HF_HOME"
        ) from error
