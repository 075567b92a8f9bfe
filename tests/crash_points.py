"""Crash points of a command: killed before its n-th file operation, the same command ends it, to the same bytes.

    python -m tests.crash_points FOLDER [--only COMMAND[:N] ...]

A process of its own: it starts a Hub on the loopback, imports and warms up once, and forks a child for each point.
Operations counted are rename, replace, link, symlink, mkdir, unlink, rmdir, chmod, fsync, opening to write (a kill
before and one after), and safetensors' own writer (likewise), in the command's output. A push writes nothing there:
those in the cache of the Hub's client count, where it fetches what it compares. It prints a JSON object: for each
command what was counted, which points were tried, and which went wrong and how.
"""

from __future__ import annotations

import argparse
import builtins
import contextlib
import hashlib
import importlib
import io
import json
import os
import random
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tests.hub.server import FakeHub, Repo

# A child that hangs is killed.
SECONDS = 120
# What is random in each folder: the tokens of its records, locks, and what a stage took.
BY_DESIGN = {"rd_hf.json", "lock"}
OPERATIONS = ("replace", "rename", "link", "symlink", "mkdir", "unlink", "remove", "rmdir", "chmod")
WIDTHS = {"L0": 16, "L1": 24}


@dataclass(frozen=True)
class Command:
    """A command to be killed.

    Attributes:
        words: its arguments; {out} is the folder that it writes to.
        prepare: makes what must be there before each run.
        counted: folder whose file operations count, its output by default.
    """

    words: list[str]
    prepare: Callable[[], None] = lambda: None
    counted: Path | None = None


@dataclass
class Found:
    """What came of a command's crash points."""

    operations: list[str]
    tried: list[int] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


def arm(limit: int, root: str, note: Callable[[str], None]) -> None:
    """Tell of each file operation under ``root``, and die before number ``limit`` (0: never)."""
    count = 0

    def tick(kind: str) -> None:
        nonlocal count
        count += 1
        if count == limit:
            os.kill(os.getpid(), signal.SIGKILL)
        note(kind)

    def inside(words: tuple[Any, ...], named: dict[str, Any]) -> bool:
        paths = [os.fspath(word) for word in words if isinstance(word, str | os.PathLike)]
        # shutil.rmtree names files by their folder's descriptor.
        return any(str(path).startswith(root) for path in paths) or named.get("dir_fd") is not None

    def wrap(name: str, counts: Callable[[tuple[Any, ...], dict[str, Any]], bool]) -> None:
        original = getattr(os, name)

        def counted(*args: Any, **named: Any) -> Any:
            if counts(args, named):
                tick(name)
            return original(*args, **named)

        setattr(os, name, counted)

    for name in OPERATIONS:
        wrap(name, inside)
    wrap("fsync", lambda args, named: True)
    writing = os.O_CREAT | os.O_WRONLY | os.O_RDWR
    wrap("open", lambda args, named: inside(args[:1], {}) and bool(args[1] & writing))
    plain = io.open

    def opened(*args: Any, **named: Any) -> Any:
        mode = args[1] if len(args) > 1 else named.get("mode", "r")
        writes = inside(args[:1], {}) and any(letter in mode for letter in "wxa+")
        if not writes:
            return plain(*args, **named)
        tick("before open")
        file = plain(*args, **named)
        tick("after open")
        return file

    io.open = builtins.open = opened  # type: ignore[assignment]
    import safetensors.torch

    save = safetensors.torch.save_file

    def save_file(*args: Any, **named: Any) -> None:
        tick("before safetensors")
        save(*args, **named)
        tick("after safetensors")

    for module in list(sys.modules.values()):
        if getattr(module, "save_file", None) is save:
            module.save_file = save_file  # type: ignore[attr-defined]


def run(words: list[str], limit: int, root: Path, counted: Path | None = None) -> tuple[int, list[str], str]:
    """One command in a child: its exit code (negative: a signal), its file operations, and what it said."""
    said, noted = root.with_suffix(".said"), root.with_suffix(".noted")
    child = os.fork()
    if child == 0:
        code = 99
        with contextlib.suppress(BaseException):
            signal.alarm(SECONDS)
            os.dup2(os.open(said, os.O_CREAT | os.O_WRONLY | os.O_TRUNC), 1)
            os.dup2(1, 2)
            notes = os.open(noted, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
            arm(limit, str(counted or root), lambda kind: os.write(notes, f"{kind}\n".encode()) and None)
            code = _call(words)
        os._exit(code)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return status, noted.read_text().splitlines(), said.read_text(errors="replace").strip()


def _call(words: list[str]) -> int:
    from rd_hf.__main__ import main

    try:
        return main(words)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(bool(end.code))
    except BaseException:
        import traceback

        traceback.print_exc()
        return 98


def content(out: Path, hub: FakeHub) -> dict[str, str]:
    """Hash of every file that a command wrote, and of what lies on the Hub."""
    found = {}
    for path in sorted(out.rglob("*")):
        name = str(path.relative_to(out))
        if path.is_dir():
            found[name] = "a folder"
        elif path.name not in BY_DESIGN:
            data = path.read_bytes()
            if path.name == "release.json":
                record = json.loads(data)
                for stage in record["stages"].values():
                    for key in ("seconds", "peak_bytes", "url", "revision"):
                        stage.pop(key, None)
                data = json.dumps(record).encode()
            found[name] = hashlib.sha256(data).hexdigest()
    for repo_id, repo in hub.repos.items():
        for name, data in repo.commits[repo.refs["main"]].items():
            found[f"{repo_id}: {name}"] = hashlib.sha256(data).hexdigest()
    return found


def try_points(name: str, command: Command, root: Path, hub: FakeHub, most: int) -> Found:
    """Run a command undisturbed, then kill it at each point, or at ``most``, the first of each kind among them."""
    out = root / "out"
    words = [word.replace("{out}", str(out)) for word in command.words]
    published = dict(hub.repos)

    def fresh() -> None:
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir(parents=True)
        hub.repos = {repo_id: Repo(**vars(repo)) for repo_id, repo in published.items()}
        command.prepare()

    fresh()
    status, operations, said = run(words, 0, out, command.counted)
    assert status == 0, f"{name}: {said}"
    wanted = content(out, hub)
    found = Found(operations)
    total = len(operations)
    firsts = [operations.index(kind) + 1 for kind in dict.fromkeys(operations)]
    lasts = [total - operations[::-1].index(kind) for kind in dict.fromkeys(operations)]
    others = random.Random(total).sample(range(1, total + 1), total)
    points = sorted(list(dict.fromkeys([*firsts, *lasts, *others]))[: most or total])
    for point in points:
        fresh()
        status, _, said = run(words, point, out, command.counted)
        if status != -signal.SIGKILL:
            # Threads of the Hub's client do a little more or less from run to run.
            continue
        found.tried.append(point)
        where = f"{point} (before {operations[point - 1]})"
        status, _, said = run(words, 0, out)
        if status:
            found.wrong.append(f"{where}: {said[-300:]}")
            continue
        now = content(out, hub)
        if now != wanted:
            other = sorted(key for key in {*now, *wanted} if now.get(key) != wanted.get(key))
            found.wrong.append(f"{where}: other content in {', '.join(other[:4])}")
    hub.repos = published
    return found


def sequences() -> Iterator[tuple[str, str]]:
    """Ids and sequences that all commands read; the last is refused."""
    draw = random.Random(3)
    for number in range(23):
        yield f"p{number}", "".join(draw.choices("LAGVSERTIDPKQNFYMHWC", k=draw.randint(20, 60)))
    yield "bad", "MK*T"


def commands(work: Path, root: Path, hub: FakeHub) -> dict[str, Command]:
    """The eight commands, and what they read, made in ``work``; warms up on the way."""
    import numpy as np
    from transformers import EsmConfig, EsmModel

    import rd_hf.bases.figure
    import rd_hf.hub.plan
    import rd_hf.training.figures
    from rd_hf.__main__ import COMMANDS
    from rd_hf.hub import save_checkpoint
    from rd_hf.model.configuration_rd_esm import RDEsmConfig
    from tests.conftest import backbone_settings, random_model

    for module, _ in COMMANDS.values():
        importlib.import_module(module)
    fasta = work / "p.fasta"
    fasta.write_text("".join(f">{name}\n{letters}\n" for name, letters in sequences()))
    levels = []
    for name, width in WIDTHS.items():
        folder = work / "published" / name
        EsmModel(EsmConfig(**backbone_settings(width, 1)), add_pooling_layer=False).save_pretrained(folder)
        commit = hub.add(f"lab/esm-{name}", folder)
        entry = {"name": name, "backbone": backbone_settings(width, 1), "repo_id": f"lab/esm-{name}"}
        levels.append({**entry, "revision": commit})
    family = work / "family"
    RDEsmConfig(levels=levels, backbones_in_checkpoint=False).save_pretrained(family)
    model = work / "model"
    save_checkpoint(random_model(list(WIDTHS.values()), layers=1), model, backbones=True)
    draw = np.random.default_rng(1)
    for name, width in WIDTHS.items():
        np.save(work / f"{name}.npy", draw.standard_normal((24, width), dtype=np.float32))
    rows = [f"{letters},{draw.standard_normal()}" for _, letters in sequences()]
    (work / "labelled.csv").write_text("\n".join(["sequence,score", *rows]) + "\n")
    (work / "ids.txt").write_text("".join(f"{name}\n" for name, _ in sequences()))
    # Each takes a second: a figure of its own bytes, and a rate of this machine, which is only said.
    figure: Any = SimpleNamespace(savefig=lambda path, **_: Path(path).write_bytes(b"a figure"))
    rd_hf.bases.figure.draw_fit = lambda *_: figure
    for name in ("levels_figure", "predictions_figure", "curve_figure"):
        setattr(rd_hf.training.figures, name, lambda *_: figure)
    rd_hf.hub.plan.measured_flops = lambda *_, **__: 1e12

    embed = ["embed", "--model", str(model), "--input", str(fasta), "--part-records", "8", "--quiet"]
    small = work / "small"
    assert _call([*embed, "--level", "L0", "--dtype", "float32", "--output", str(small)]) == 0
    stored = work / "stored"
    assert _call([*embed, "--output", str(stored)]) == 0
    fit = ["fit", "--input", str(fasta), "--batch-tokens", "500", "--checkpoint-seconds", "0", "--quiet"]
    fitted = work / "fitted"
    assert _call([*fit, "--config", str(family), "--output", str(fitted)]) == 0
    train = ["train", "--model", str(model), "--input", str(work / "labelled.csv"), "--target", "score"]
    train += ["--cv-folds", "2", "--inner-folds", "2", "--device", "cpu", "--quiet"]
    head = work / "head"
    assert _call([*train, "--level", "L0", "--output", str(head)]) == 0
    raw = [str(work / f"{name}.npy") for name in WIDTHS]
    cache = Path(os.environ["HF_HOME"]) / "hub" / "models--me--pushed"
    return {
        "embed": Command([*embed, "--output", "{out}"]),
        "extend": Command(["embed", "--extend", str(small), "--level", "L1", "--quiet", "--output", "{out}"]),
        "convert": Command(
            [
                *("convert", "--model", str(model), "--ids", str(work / "ids.txt"), "--part-records", "8", "--quiet"),
                *("--input", *raw, "--output", "{out}"),
            ]
        ),
        "convert --layout": Command(
            ["convert", "--input", str(stored), "--layout", "blocks", "--quiet", "--output", "{out}"]
        ),
        "fit": Command([*fit, "--config", str(model), "--output", "{out}"]),
        "train": Command([*train, "--output", "{out}"]),
        "predict": Command(
            [
                *("predict", "--model", str(head), "--input", str(fasta), "--part-records", "8", "--device", "cpu"),
                *("--quiet", "--output", "{out}"),
            ]
        ),
        "push": Command(
            ["push", "--model", "{out}", "--repo-id", "me/pushed", "--quiet"],
            prepare=lambda: shutil.copytree(fitted, root / "out") and shutil.rmtree(cache, ignore_errors=True),
            counted=cache,
        ),
        "release": Command(
            [
                *("release", "--config", str(family), "--repo-id", "me/released", "--input", str(fasta)),
                *("--batch-tokens", "2000", "--least-r2=-9", "--output", "{out}", "--quiet"),
            ]
        ),
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="+", default=[], metavar="COMMAND[:N]", help="the first N points of a draw")
    args = parser.parse_args(argv)
    root = args.folder.resolve() / "point"
    with FakeHub() as hub:
        # Before anything reads them.
        os.environ |= {
            **{"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": hub.token, "HF_HOME": str(args.folder.resolve() / "home")},
            **dict.fromkeys(("HF_HUB_DISABLE_XET", "HF_HUB_DISABLE_TELEMETRY", "OMP_NUM_THREADS"), "1"),
            **{
                "HF_HUB_OFFLINE": "0",
                "NO_PROXY": "127.0.0.1",
                "MPLBACKEND": "agg",
                "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            },
        }
        args.folder.mkdir(parents=True, exist_ok=True)
        found = {}
        most = {name: int(limit or 0) for name, _, limit in (word.partition(":") for word in args.only)}
        for name, command in commands(args.folder.resolve(), root, hub).items():
            if name in most or not most:
                done = try_points(name, command, root, hub, most.get(name, 0))
                found[name] = vars(done)
                counts = f"{len(done.operations)} operations, {len(done.tried)} tried, {len(done.wrong)} wrong"
                print(f"{name}: {counts}", file=sys.stderr, flush=True)
    print(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
