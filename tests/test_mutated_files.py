"""Whatever is wrong with a file that a command reads: one sentence or success, and nothing outside of its folder.

Each case copies a small working folder, spoils one file of it by a seeded generator (:mod:`tests.mutations`), and runs
a command that reads the file. Beside the folder lies another one with files of the same kinds, whose names the
generator knows: the kernel says whether anybody opened one of them, whatever library it was.

    python -m tests.test_mutated_files 0 3000     looks at other seeds than the suite's, and prints what fails
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import io
import json
import os
import random
import re
import resource
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tests.conftest import random_model
from tests.embedding.conftest import random_fasta
from tests.mutations import spoil

CASES, BLOCKS = 300, 10
SECONDS, BYTES = 60, 4 << 30
MODEL = ("--model", "model")
EMBED = (*MODEL, "--input", "p.fasta", "--part-records", "4")
FIT = ("--config", "model", "--heldout-fraction", "0", "--input")
SEARCH = ("--input", "emb", "emb", "--neighbours", "3", "--whiten", "none", "--output", "hits.tsv")


@dataclass(frozen=True)
class Kind:
    """Files that are spoiled, the commands that read them, and how often."""

    weight: int
    files: tuple[str, ...]
    commands: tuple[tuple[str, ...], ...]


READERS = (
    ("info", "model"),
    ("embed", *EMBED, "--output", "new"),
    ("from_pretrained", "RDEsmModel"),
    ("from_pretrained", "AutoModel"),
    ("push", *MODEL, "--repo-id", "owner/name", "--dry-run"),
)
FOLDERS = (
    ("info", "emb"),
    ("embed", *EMBED, "--output", "emb"),
    ("search", *SEARCH),
    ("map", "emb", "--output", "map.html"),
    ("export", "emb", "--output", "e.h5"),
    ("export", "emb", "--output", "e.h5", "--key", "hash"),
)
EXTEND = ("embed", *MODEL, "--extend", "small", "--output", "new")
LABELS = ("--labels", "labels.tsv")


def _convert(*inputs: str, ids: str | None = None) -> tuple[str, ...]:
    return ("convert", *MODEL, "--input", *inputs, *(("--ids", ids) if ids else ()), "--output", "new")


KINDS = {
    "config": Kind(
        5,
        ("model/config.json",),
        (*READERS, _convert("raw/L0.h5", "raw/L1.h5"), ("fit", *FIT, "p.fasta", "--output", "new")),
    ),
    "weights": Kind(
        3,
        ("model/model.backbone-L0.safetensors", "model/model.projections.safetensors"),
        (*READERS, _convert("raw/L0.h5", "raw/L1.h5")),
    ),
    "index of weights": Kind(2, ("model/model.safetensors.index.backbone-L1.json",), READERS),
    "manifest": Kind(5, ("emb/_manifest.json",), FOLDERS),
    "manifest of a smaller level": Kind(1, ("small/_manifest.json", "small/.job/000000.json"), (EXTEND,)),
    "journal": Kind(3, ("emb/.job/000000.json", "emb/.job/000001.json", "emb/.job/rd_hf.json"), FOLDERS[1:]),
    "parts": Kind(3, ("emb/embeddings-000000.parquet", "emb/embeddings-000001.parquet"), FOLDERS[1:]),
    "h5": Kind(2, ("raw/L0.h5", "raw/L1.h5"), (_convert("raw/L0.h5", "raw/L1.h5"),)),
    "npy": Kind(2, ("raw/L0.npy", "raw/L0.npy", "raw/ids.txt"), (_convert("raw/L0.npy", ids="raw/ids.txt"),)),
    "Parquet": Kind(2, ("raw/raw.parquet",), (_convert("raw/raw.parquet"),)),
    "pt": Kind(1, ("raw/pt/r0.pt", "raw/pt/r1.pt"), (_convert("raw/pt"),)),
    "labels": Kind(2, ("labels.tsv",), (("search", *SEARCH, *LABELS), ("map", "emb", "--output", "m.html", *LABELS))),
    "sequences": Kind(
        3,
        ("p.fasta", "t.csv", "t.jsonl", "t.parquet"),
        (("embed", *MODEL, "--input", "FILE", "--output", "new"),) * 3 + (("fit", *FIT, "FILE", "--output", "new"),),
    ),
    "state of a fit": Kind(
        1,
        ("fit/.fit/settings.json", "fit/.fit/rd_hf.json", "fit/.fit/MOMENTS"),
        (("fit", *FIT, "p.fasta", "--output", "fit"),) * 4,
    ),
    "kept index": Kind(1, ("emb/.search/INDEX",), (("search", *SEARCH, "--index", "ivf", "--shortlist", "5"),)),
}
# Fields whose work it is to name what lies elsewhere: inputs, models.
POINTERS = re.compile(r"\b(inputs|name|repo_id|ids)\b")


def mains() -> dict[str, Callable[[list[str]], int]]:
    from rd_hf.commands import convert, embed, export, fit, info, map, push, search

    commands = {"convert": convert, "embed": embed, "export": export, "fit": fit, "info": info, "map": map}
    return {name: command.main for name, command in {**commands, "push": push, "search": search}.items()}


def run(command: tuple[str, ...]) -> tuple[int, str]:
    """Run a command in this process; its exit code and all that it printed."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = load(command[1]) if command[0] == "from_pretrained" else mains()[command[0]](list(command[1:]))
    return code, said.getvalue()


def load(kind: str) -> int:
    """Load the model as Python code does; 1 where it is refused as transformers refuses."""
    from transformers import AutoModel

    from rd_hf.model.modeling_rd_esm import RDEsmModel

    try:
        if kind == "AutoModel":
            AutoModel.from_pretrained("model", trust_remote_code=True)
        else:
            RDEsmModel.from_pretrained("model")
    except (ValueError, OSError):
        return 1
    except RecursionError as error:
        # AutoModel reads the config before any code of the checkpoint's class runs.
        frame = traceback.extract_tb(error.__traceback__)[2]
        if kind != "AutoModel" or "transformers" not in frame.filename:
            raise
        return 1
    return 0


@contextlib.contextmanager
def within(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def make_base(folder: Path) -> None:
    """A model, embeddings of two levels, raw embeddings in each format, tables, an unfinished fit, a kept index."""
    from rd_hf.fitting.state import FitProgress

    folder.mkdir()
    with within(folder), pytest.MonkeyPatch.context() as patch:
        random_model([32, 48]).save_pretrained("model", max_shard_size="150KB")
        random_fasta(Path("p.fasta"), 12, longest=20)
        words = Path("p.fasta").read_text().replace("MK*T", "MKT").split()
        Path("p.fasta").write_text("\n".join(words) + "\n")
        rows = [{"id": name[1:], "sequence": letters} for name, letters in zip(words[::2], words[1::2], strict=True)]
        ids = [row["id"] for row in rows]
        Path("t.csv").write_text("id,sequence\n" + "".join(f"{row['id']},{row['sequence']}\n" for row in rows))
        Path("t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        pq.write_table(pa.Table.from_pylist(rows), "t.parquet")
        Path("labels.tsv").write_text("id\tfamily\n" + "".join(f"{one}\tf{len(one)};g\n" for one in ids))
        for command in (
            ("embed", *EMBED, "--output", "emb"),
            ("embed", *EMBED, "--output", "small", "--level", "L0"),
            ("search", *SEARCH, "--index", "ivf", "--shortlist", "5"),
        ):
            code, said = run(command)
            assert code == 0, said
        patch.setattr(FitProgress, "merge_earlier", _interrupted)
        assert run(("fit", *FIT, "p.fasta", "--output", "fit"))[0] == 130
        raw = np.random.default_rng(0).normal(size=(len(ids), 48)).astype(np.float32)
        Path("raw/pt").mkdir(parents=True)
        for level, width in (("L0", 32), ("L1", 48)):
            with h5py.File(f"raw/{level}.h5", "w") as file:
                for one, row in zip(ids, raw, strict=True):
                    file[one] = row[:width]
        np.save("raw/L0.npy", raw[:, :32])
        Path("raw/ids.txt").write_text("\n".join(ids) + "\n")
        columns = {"id": ids, "a": raw[:, :32].tolist(), "b": raw.tolist()}
        lists = pa.list_(pa.float32())
        pq.write_table(pa.table(columns, pa.schema({"id": pa.string(), "a": lists, "b": lists})), "raw/raw.parquet")
        for one, row in zip(ids[:3], raw, strict=False):
            torch.save({"mean_representations": {2: torch.from_numpy(row[:32])}}, f"raw/pt/{one}.pt")


def _interrupted(self: object) -> None:
    raise KeyboardInterrupt


class Watch:
    """Which files of a tree were opened or changed, as the kernel tells (inotify)."""

    MASK = 0x0FFF & ~0x1C  # all but closing and attributes: read, changed, opened, moved, made, removed

    def __init__(self, tree: Path) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._descriptor = self._libc.inotify_init1(os.O_NONBLOCK)
        for folder, _, _ in os.walk(tree):
            assert self._libc.inotify_add_watch(self._descriptor, folder.encode(), self.MASK) >= 0

    def seen(self) -> set[str]:
        """Names since the last call, of files alone: listing a folder tells nobody anything."""
        names: set[str] = set()
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self._descriptor, 1 << 16):
                while data:
                    _, mask, _, length = np.frombuffer(data[:16], np.uint32).tolist()
                    name, data = data[16 : 16 + length].rstrip(b"\0").decode(), data[16 + length :]
                    if not mask & 0x40000000:
                        names.add(name)
        return names

    def close(self) -> None:
        os.close(self._descriptor)


class TooLongError(BaseException):
    """Nothing catches it."""


def _too_long(*_: object) -> None:
    raise TooLongError


@dataclass
class Bench:
    """The folders, and what is watched."""

    root: Path
    watch: Watch = field(init=False)

    def __post_init__(self) -> None:
        make_base(self.root / "base")
        canary = self.root / "canary"
        shutil.copytree(self.root / "base", canary)
        self.watch = Watch(canary)
        self.before = digest(canary), digest(self.root / "base")

    def case(self, seed: int) -> str | None:
        """Run one case; what is wrong with how it ended, or None."""
        chance = random.Random(seed)
        kind = KINDS[chance.choices(list(KINDS), [kind.weight for kind in KINDS.values()])[0]]
        folder = self.root / f"case-{seed}"
        shutil.copytree(self.root / "base", folder, copy_function=os.link)
        try:
            path, command = chance.choice(kind.files), chance.choice(kind.commands)
            target = folder / path
            if target.name in ("MOMENTS", "INDEX"):
                target = next(target.parent.glob("*.safetensors" if target.name == "MOMENTS" else "*.faiss"))
            if "FILE" in command:
                command = tuple(path if word == "FILE" else word for word in command)
            elsewhere = self.elsewhere(target, folder)
            what = spoil(target, chance, elsewhere)
            if target.suffix == ".json" and chance.random() < 0.3:
                with contextlib.suppress(ValueError, RecursionError, IndexError):
                    what += f"; {spoil(target, chance, elsewhere)}"
            if target.parent.name == "emb" and target.suffix == ".parquet" and chance.random() < 0.7:
                sign(target)
            fault = self.fault(folder, command, POINTERS.search(what) is not None)
            return fault and f"seed {seed}: {target.relative_to(folder)}: {what}\n  {' '.join(command)}\n  {fault}"
        finally:
            shutil.rmtree(folder)

    def elsewhere(self, target: Path, folder: Path) -> list[str]:
        """Names of the twin of a file, and of its folder, outside of the folder."""
        twin = self.root / "canary" / target.relative_to(folder)
        part = twin.parent / "embeddings-000000.parquet"
        places = [twin, twin.parent, *([part] * 4 if part.exists() else [])]
        places += [twin.parent.parent / part.name] if twin.parent.name == ".job" else []
        return [*map(str, places), *(os.path.relpath(place, target.parent) for place in places)]

    def fault(self, folder: Path, command: tuple[str, ...], pointer: bool) -> str | None:
        """Run a command in the case's folder."""
        self.watch.seen()
        signal.alarm(SECONDS)
        try:
            with within(folder):
                code, said = run(command)
        except TooLongError:
            return f"took more than {SECONDS} s"
        except BaseException:
            return traceback.format_exc()
        finally:
            signal.alarm(0)
        opened = self.watch.seen()
        if opened and not pointer:
            return f"opened {', '.join(sorted(opened))} outside of the folder"
        if code not in (0, 1):
            return f"ended with {code}: {said}"
        sentences = said.count(f"rd-hf {command[0]}: error: ")
        if command[0] != "from_pretrained" and sentences != code:
            return f"ended with {code} and {sentences} sentences: {said}"
        return "a traceback: " + said if "Traceback" in said else None


def sign(part: Path) -> None:
    """Make manifest and journal say that the spoilt part is as it was written."""
    new = {"sha256": hashlib.sha256(part.read_bytes()).hexdigest(), "bytes": part.stat().st_size}
    entry = part.parent / ".job" / f"{part.stem[-6:]}.json"
    manifest = part.parent / "_manifest.json"
    content = json.loads(manifest.read_text())
    content["parts"][int(part.stem[-6:])].update(new)
    for path, fresh in ((manifest, content), (entry, json.loads(entry.read_text()) | new)):
        path.unlink()
        path.write_text(json.dumps(fresh))


def digest(tree: Path) -> str:
    """Of names and contents of all files."""
    whole = hashlib.sha256()
    for path in sorted(tree.rglob("*")):
        whole.update(f"{path}\0".encode() + (hashlib.sha256(path.read_bytes()).digest() if path.is_file() else b""))
    return whole.hexdigest()


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    if not sys.platform.startswith("linux"):
        pytest.skip("what is opened is asked of Linux")
    with limited():
        yield (made := Bench(tmp_path_factory.mktemp("mutated")))
    made.watch.close()


@contextlib.contextmanager
def limited() -> Iterator[None]:
    """No more memory than some gigabytes beyond what is held now, and an alarm that nothing catches."""
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    handler = signal.signal(signal.SIGALRM, _too_long)
    resource.setrlimit(resource.RLIMIT_AS, (held + BYTES, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
        signal.signal(signal.SIGALRM, handler)


@pytest.mark.parametrize("block", range(BLOCKS))
def test_a_spoilt_file_is_a_sentence_and_nothing_else_is_touched(bench: Bench, block: int) -> None:
    seeds = range(block * CASES // BLOCKS, (block + 1) * CASES // BLOCKS)
    faults = [fault for seed in seeds if (fault := bench.case(seed)) is not None]
    assert not faults, "\n\n".join(faults)
    canary = bench.root / "canary"
    bench.watch.seen()
    assert (digest(canary), digest(bench.root / "base")) == bench.before
    bench.watch.seen()
    assert {path.name for path in bench.root.iterdir()} == {"base", "canary"}


def main(first: int, last: int) -> None:
    """Look at other seeds."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder, limited():
        bench = Bench(Path(folder))
        faults = 0
        for seed in range(first, last):
            fault = bench.case(seed)
            if fault is not None:
                faults += 1
                print(fault, end="\n\n", flush=True)
        print(f"{faults} of {last - first} cases")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
