"""What is this? Levels and costs of a model, or how a folder of embeddings was made.

    rd-hf info rd-esm2-mini
    rd-hf info my-name/rd-esm2-650M          (of a Hub model, config.json and fit_report.json are fetched)
    rd-hf info rd-esm2-3B                    (a named family, before anything is fitted)
    rd-hf info embeddings                    (what rd-hf embed wrote)
    rd-hf info hf://datasets/my-name/proteome-650M    (what rd-hf push published of such a folder)
    rd-hf info embeddings --verify           (every file is read, and must have the checksum that was noted)
    rd-hf info my-model --json               (for a program)

Of each level: the width of its embedding, the backbone that it adds with its commit, and the parameters, the memory of
their weights, and the FLOP a residue of all backbones that it runs; attention comes on top and grows with the length.
Held-out R2 is the share of the backbone's variance that the level below explains on sequences the fit never saw.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import MISSING, asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rd_hf.carried import model_place
from rd_hf.commands._arguments import command, command_parser
from rd_hf.data.remote import MANIFEST, RemoteFolder, is_remote
from rd_hf.embedding.folder import OutputFolder, is_folder_of_embeddings
from rd_hf.files import byte_size
from rd_hf.flags import flag
from rd_hf.options import option

if TYPE_CHECKING:
    from rd_hf.hub.describe import ModelFacts


@dataclass(frozen=True)
class InfoSettings:
    """What is looked at, and how it is told."""

    what: str = option(
        MISSING,
        "what is looked at: a folder of embeddings, folder or Hub id of a model, rd-esm2-mini, or name of a family",
        flags=("what",),
        metavar="EMBEDDINGS_OR_MODEL",
    )
    revision: str | None = flag("revision", None)
    json: bool = flag("json", False, " in place of words, with everything that is known")
    verify: bool = option(False, "read every file of a finished folder and compare it with its checksum")


def build_parser() -> argparse.ArgumentParser:
    return command_parser("info", __doc__, InfoSettings)


def run(args: argparse.Namespace) -> None:
    # A page of the web is no folder.
    is_away = is_remote(args.what) and not args.what.startswith("http")
    folder = RemoteFolder(args.what).place if is_away else Path(args.what)
    if is_folder_of_embeddings(folder):
        content = OutputFolder(folder).manifest() or {}
        if args.verify:
            verify(args.what, show_progress=not args.quiet)
        print(json.dumps(content, indent=1) if args.json else embeddings_text(args.what, content))
        return
    place = Path(model_place(args.what))
    if place.is_dir() and not (place / "config.json").is_file():
        raise ValueError(f"{args.what} holds neither a model (config.json) nor embeddings ({MANIFEST})")
    from rd_hf.hub.describe import describe_model

    facts = describe_model(args.what, args.revision)
    print(json.dumps(asdict(facts), indent=1) if args.json else model_text(facts))


def verify(folder: str, show_progress: bool) -> None:
    """Read every file of a finished folder of embeddings; raises an InputError where one is not as it was written."""
    from tqdm import tqdm

    from rd_hf.embedding.reader import EmbeddingFolder

    stored = EmbeddingFolder(folder)
    total = sum(part["bytes"] for part in stored.parts)
    with tqdm(total=total, unit="B", unit_scale=True, leave=False, disable=None if show_progress else True) as bar:
        stored.verify(bar.update)


def model_text(facts: ModelFacts) -> str:
    """A model in words and one table."""
    head = f"{facts.name}{f' @ {facts.revision[:12]}' if facts.revision else ''}: {facts.form}, {facts.dtype}"
    if facts.file_bytes is not None:
        head += f", {byte_size(facts.file_bytes)} of weights"
    if facts.rd_hf_version:
        head += f", written by rd_hf {facts.rd_hf_version}"
    rows: list[tuple[str, ...]] = [
        ("level", "width", "parameters", "memory", "FLOP/residue", "R2 held-out", "backbone")
    ]
    for level in facts.levels:
        commit = f" @ {level.revision[:12]}" if level.revision else ""
        rows.append(
            (
                level.level,
                f"{level.width:,}",
                f"{level.parameters / 1e6:,.1f} M",
                byte_size(level.memory_bytes),
                f"{level.flop_per_residue:.2g}",
                "-" if level.heldout_r2 is None else f"{level.heldout_r2:.4f}",
                f"{level.backbone}{commit}" if level.backbone else "in this checkpoint",
            )
        )
    lines = [head, _table(rows)]
    if len(facts.levels) > 1:
        last = facts.levels[-1]
        lines.append(f"one backbone at a time (--group-tokens), {last.level} needs {byte_size(last.largest_bytes)}")
    if facts.lossless:
        lines.append(
            f"lossless: all directions of every backbone are kept, and any number of dimensions up to "
            f"{facts.levels[-1].width:,} can be asked for (--width N)"
        )
    if facts.whitening is not None:
        weights = ", ".join(f"{weight:.3g}" for weight in facts.whitening["weights"])
        grids = "; grids of one byte (--output-dtype int8)" if facts.whitening.get("grids") else ""
        lines.append(
            f"whitening (--whiten): by {facts.whitening.get('of', 'statistics')}, blocks weighed {weights}{grids}"
        )
    if facts.one_pass is not None:
        layers = ", ".join(map(str, facts.one_pass["layers"]))
        own = "; R2 held-out " + ", ".join(f"{level} {r2:.4f}" for level, r2 in facts.one_pass["r2"].items())
        lines.append(
            f"one pass (--one-pass): every level out of {facts.levels[-1].level}'s backbone alone, its last state and "
            f"layers {layers}{own if facts.one_pass['r2'] else ''}"
        )
    if facts.heads is not None:
        labels = facts.heads["labels"]
        shown = ", ".join(map(str, labels[:10])) + (", ..." if len(labels) > 10 else "")
        lines.append(
            f"heads of {facts.heads['of']}: levels {', '.join(facts.heads['levels'])}, {facts.heads['level']} answers; "
            f"{(facts.heads['problem_type'] or 'labels').replace('_', ' ')} ({len(labels)}): {shown}"
        )
    if "num_sequences" in facts.bases:
        data = ", ".join(map(str, facts.bases.get("data", [])))
        lines.append(f"fitted on {facts.bases['num_sequences']:,} sequences{f' of {data}' if data else ''}")
    return "\n".join(lines)


def embeddings_text(folder: str, manifest: dict[str, Any]) -> str:
    """The manifest of an embedding job in words."""
    model, job, counts = (manifest.get(name) or {} for name in ("model", "job", "counts"))
    revision = f" @ {model['revision'][:12]}" if model.get("revision") else ""
    one_pass = ", in one pass" if model.get("one_pass") else ""
    held = manifest.get("columns", {})
    columns = [f"{name}: {one.get('level')}, {one.get('width', 0):,} wide" for name, one in held.items()]
    # Of a folder elsewhere the manifest alone is here.
    size = sum(file.stat().st_size for file in Path(folder).glob("*.parquet"))
    size = size or sum(part.get("bytes", 0) for part in manifest.get("parts") or [])
    options = (
        "pooling",
        "dtype",
        "compile",
        "output_dtype",
        "normalize",
        "long",
        "max_length",
        "width",
        "whiten",
        "layout",
    )
    lines = [
        f"{folder}: {manifest.get('status')}, {byte_size(size)} of Parquet",
        f"model: {model.get('name')}{revision}{one_pass}, fingerprint {str(model.get('fingerprint'))[:19]}",
        f"levels in it: {', '.join(f'{level} {width:,}' for level, width in model.get('nested_dims', {}).items())}",
        f"columns: {'; '.join(columns)}",
        f"options: {', '.join(f'{name} {job[name]}' for name in options if name in job)}",
        f"inputs: {', '.join(job.get('inputs', []))}",
    ]
    if counts:
        lines.append("counts: " + ", ".join(f"{value:,} {name}" for name, value in counts.items()))
    versions = {name: value for name, value in (manifest.get("versions") or {}).items() if value}
    return "\n".join([*lines, "written by " + ", ".join(f"{name} {value}" for name, value in versions.items())])


def _table(rows: list[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    # Numbers to the right, the backbone's name as it comes.
    cells = [[*map(str.rjust, row[:-1], widths), row[-1]] for row in rows]
    return "\n".join(map("  ".join, cells))


main = command(build_parser, run, prints_result=lambda args: True)
