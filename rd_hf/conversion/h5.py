"""h5 files: others' are read without following them to other files, ours are written so that a full disk is an error.

The h5 library writes what it holds back when a file is closed, and what then fails cannot be told to anyone: it leaves
a broken file behind and takes the process along. Here it writes through :class:`_Patient`, which never fails.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from rd_hf.conversion.checks import id_of, reading, refuse_dtype, refuse_more_than_is_there
from rd_hf.data.fasta import InputError
from rd_hf.data.records import readable


class H5File:
    """A dataset a protein, at the root or in groups. See :class:`rd_hf.conversion.raw.Raw`."""

    def __init__(self, path: Path) -> None:
        import h5py

        self.path = str(path)
        self.ids: list[str] = []
        self._names: list[str] = []
        with reading(path, "readable h5 file"):
            self._file = h5py.File(path, "r")
            # Links, not objects: a dataset under two names is two proteins. All are judged before one is followed: a
            # soft link may lead through another that leaves the file.
            links: list[tuple[str, Any]] = []
            self._file.visititems_links(lambda name, link: links.append((name, link)))
            for name, link in links:
                self._refuse_link(name, link)
            for name, _ in links:
                self._note(name)
            if not self._names:
                raise InputError(
                    f"{path} holds no dataset: a protein's embedding is a dataset of its own, named by its id"
                )
            first = self._file[self._names[0]]
        self.width = int(first.shape[-1]) if first.shape else 0

    def take(self, places: Sequence[int]) -> list[np.ndarray]:
        with reading(self.path, "readable h5 file"):
            return [np.asarray(self._file[self._names[place]]) for place in places]

    def _refuse_link(self, name: str, link: Any) -> None:
        import h5py

        if not isinstance(link, h5py.HardLink | h5py.SoftLink):
            raise InputError(
                f"{self.path}: {readable(name)} is a link to another file, which is not followed: copy the datasets "
                f"into one file"
            )

    def _note(self, name: str) -> None:
        import h5py

        what, item = f"{self.path}: {readable(name)}", self._file.get(name)
        if item is None:
            raise InputError(f"{what} is a link to nothing: take it out of the file")
        if isinstance(item, h5py.Dataset):
            _refuse(what, item)
            self._names.append(name)
            self.ids.append(self._id(name, item))

    def _id(self, name: str, item: Any) -> str:
        import h5py

        value = item.attrs.get("original_id", name)
        if isinstance(value, np.ndarray) and value.size == 1:
            value = value.item()
        return id_of(None if isinstance(value, h5py.Empty) else value, len(self._names), self.path)


def _refuse(what: str, item: Any) -> None:
    """Stop at a dataset whose numbers are not all in its own file, or are none.

    Raises:
        InputError: they are not.
    """
    from h5py import h5d

    if item.is_virtual or item.external:
        raise InputError(f"{what} keeps its numbers in another file, which is not read: write them into this one")
    if item.dtype.kind != "f":
        refuse_dtype(what, item.dtype)
    if not item.shape or not item.size:
        raise InputError(f"{what} is of shape {item.shape or ()}: one or more rows of numbers are wanted")
    # What was never written reads as the fill value, for ever if the shape says so.
    if item.id.get_space_status() != h5d.SPACE_STATUS_ALLOCATED:
        raise InputError(f"{what} is of shape {item.shape}, and not all of it was written: make the file anew")
    refuse_more_than_is_there(what, item.nbytes, item.id.get_storage_size())


class _Patient(io.RawIOBase):
    """A file that takes every write: from the first that fails on, what is written is kept in memory.

    Attributes:
        failure: what the system said then.
    """

    def __init__(self, path: Path) -> None:
        self._raw = open(path, "r+b", buffering=0)  # noqa: SIM115
        self._kept: list[tuple[int, bytes]] = []
        self._place = self._end = 0
        self.failure: OSError | None = None

    def seek(self, place: int, whence: int = io.SEEK_SET) -> int:
        self._place = place + {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._end}[whence]
        return self._place

    def tell(self) -> int:
        return self._place

    def write(self, data: Any) -> int:
        block = bytes(data)
        if self.failure is None:
            self._attempt(lambda: self._write(block))
        if self.failure is not None:
            self._kept.append((self._place, block))
        self._place += len(block)
        self._end = max(self._end, self._place)
        return len(block)

    def _write(self, block: bytes) -> None:
        self._raw.seek(self._place)
        rest = memoryview(block)
        while rest:
            rest = rest[self._raw.write(rest) :]

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        self._raw.seek(self._place)
        found = self._raw.read(len(view)) or b""
        view[:] = found.ljust(len(view), b"\0")
        for place, block in self._kept:
            start, stop = max(place, self._place), min(place + len(block), self._place + len(view))
            if start < stop:
                view[start - self._place : stop - self._place] = block[start - place : stop - place]
        self._place += len(view)
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        self._end = self._place if size is None else size
        if self.failure is None:
            self._attempt(lambda: self._raw.truncate(self._end))
        return self._end

    def _attempt(self, work: Callable[[], object]) -> None:
        try:
            work()
        except OSError as error:
            self.failure = error

    def readable(self) -> bool:
        return True

    writable = seekable = readable

    def close(self) -> None:
        self._raw.close()
        super().close()


@contextmanager
def writing(path: Path) -> Iterator[tuple[Any, Callable[[], None]]]:
    """Write an h5 file over one that is there and empty.

    Yields:
        The open ``h5py.File``, and a function that raises the OSError of a write that failed, to be called now and
        then: until it is, the rest is kept in memory.

    Raises:
        OSError: a write failed.
    """
    import h5py

    def check() -> None:
        if under.failure is not None:
            raise under.failure

    with _Patient(path) as under:
        with h5py.File(under, "w") as file:
            yield file, check
        check()
