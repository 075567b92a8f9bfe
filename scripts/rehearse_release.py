"""Rehearse a publication: ESM-2 with random weights, true to size and layout, on a local Hub; then rd-hf release.

    python scripts/rehearse_release.py --level 650M --folder /tmp/rehearsal --report scripts/rehearse_release.md
    python scripts/rehearse_release.py --level 3B --group-tokens 4096 --folder /tmp/rehearsal --report ...

Nothing leaves this machine. The repos have the names, commits, files, keys and shard cuts of those on the Hub: 8M to
650M as safetensors, 3B and 15B as `.bin` shards. The release runs in a process of its own against them, on a few
sequences: it fetches, fits, judges, pushes, loads back and compares. Then fresh processes load what was pushed, as a
user does: a smaller level, and the whole. --report gets a section with seconds and peak memory of each stage and the
bytes moved, beside what was planned. The folder is removed at the end unless --keep is given; 3B needs 45 GB.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
LOAD = """
import json, sys, time, torch
sys.path.insert(0, "scripts")
from benchmarks.resident import resident_mb
from transformers import AutoModel
started = time.perf_counter()
model = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True, **json.loads(sys.argv[2]))
loaded = time.perf_counter() - started
ids = torch.tensor([[0, 20, 15, 11, 5, 19, 12, 5, 15, 2]])
with torch.inference_mode():
    output = model(ids)
total = time.perf_counter() - started
width, peak = output.last_hidden_state.shape[-1], resident_mb("VmHWM") * 2**20
print("RESULT", json.dumps({"load": loaded, "seconds": total, "peak_bytes": peak, "width": width}))
"""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--level", required=True, help="35M, 150M, 650M, 3B or 15B")
    parser.add_argument("--folder", required=True, type=Path, help="for repos, cache and work; must not exist yet")
    parser.add_argument("--group-tokens", type=int, help="one backbone at a time, as in rd-hf release")
    parser.add_argument("--batch-tokens", type=int, default=1024, help="tokens per batch (default 1024)")
    parser.add_argument("--sequences", type=int, default=16, help="proteins to fit on, of 150 residues (default 16)")
    parser.add_argument("--shrink", type=int, default=1, help="divide all widths by this, for a trial (default 1)")
    parser.add_argument("--report", type=Path, help="Markdown file to add a section to (default: print it)")
    parser.add_argument("--keep", action="store_true", help="leave the folder, weights and all")
    return parser


def make_draw(folder: Path, large: int) -> Any:
    """Random values; tensors of ``large`` numbers or more in files that are mapped, so that a shard of them needs no
    memory to be written."""
    import torch

    from tests.hub.layouts import random_tensor

    pool = torch.randn(large, generator=torch.Generator().manual_seed(0))
    count = 0

    def draw(name: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
        nonlocal count
        size = 1
        for side in shape:
            size *= side
        if size < len(pool):
            return random_tensor(name, shape, generator)
        count += 1
        tensor = torch.from_file(str(folder / f"{count}.raw"), shared=True, size=size, dtype=torch.float32)
        for start in range(0, size, len(pool)):
            piece = tensor[start : start + len(pool)]
            piece.copy_(pool[: len(piece)]).mul_(shape[-1] ** -0.5)
            # Each piece in another order, or attention would see the same rows again and again.
            pool.copy_(pool.roll(int(torch.randint(1, len(pool), (1,), generator=generator))))
        return tensor.view(shape)

    return draw


def publish(folder: Path, level: str, shrink: int, hub: Any) -> Path:
    """Write and publish the repos of every backbone up to a level; returns a folder with the family's config."""
    from rd_hf.families import ESM2, Member, esm2_backbone
    from rd_hf.model.configuration_rd_esm import RDEsmConfig
    from tests.hub.layouts import ESM2_SAFETENSORS, ESM2_SHARDS, Size, write_repo

    levels = []
    names = [member.name for member in ESM2]
    for seed, member in enumerate(ESM2[: names.index(level) + 1]):
        layers, heads = (member.layers, member.heads) if shrink == 1 else (2, 2)
        size = Size(member.width // shrink, layers, heads)
        started = time.perf_counter()
        scratch = folder / "scratch"
        scratch.mkdir()
        layout = ESM2_SHARDS if member.name in ("3B", "15B") else ESM2_SAFETENSORS
        repo = write_repo(
            folder / "repos" / member.name, layout, size, seed, make_draw(scratch, (1 << 20) // shrink**2)
        )
        shutil.rmtree(scratch)
        hub.add(member.repo_id, repo, commit=member.commit)
        written = sum(path.stat().st_size for path in repo.iterdir())
        print(f"{member.repo_id}: {written:,} bytes written in {time.perf_counter() - started:.0f} s", flush=True)
        settings = esm2_backbone(Member("", "", size.width, size.layers, size.heads))
        entry = {"name": member.name, "repo_id": member.repo_id, "revision": member.commit, "backbone": settings}
        levels.append(entry)
    RDEsmConfig(levels=levels, backbones_in_checkpoint=False).save_pretrained(folder / "config")
    return folder / "config"


def write_sequences(path: Path, count: int) -> None:
    """The first 150 residues of proteins that the package carries."""
    from rd_hf.data.sources import read_records

    carried = ROOT / "rd_hf" / "data" / "examples" / "proteins_1000.fasta.gz"
    long = [record.sequence for record in read_records(str(carried)) if len(record.sequence) >= 150][:count]
    path.write_text("".join(f">{number}\n{sequence[:150]}\n" for number, sequence in enumerate(long)), encoding="utf-8")


def run(command: list[str], environment: dict[str, str]) -> str:
    """Run to the end and return what it prints, which is shown as it comes; fails if it fails."""
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    printed = []
    for line in process.stdout:
        printed.append(line)
        print(line, end="", flush=True)
    if process.wait() != 0:
        raise RuntimeError(f"{' '.join(command[:4])} ... failed: {''.join(printed[-20:])}")
    return "".join(printed)


def rehearse(args: argparse.Namespace) -> str:
    """All of it; returns the section of the report."""
    import torch

    from tests.hub.server import FakeHub, repos_asked, weights_sent

    args.folder.mkdir(parents=True)
    with FakeHub() as hub:
        config = publish(args.folder, args.level, args.shrink, hub)
        sequences = args.folder / "sequences.fasta"
        write_sequences(sequences, args.sequences)
        environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")} | {
            "HF_ENDPOINT": hub.endpoint,
            "HF_HOME": str(args.folder / "home"),
            "HF_TOKEN": hub.token,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "127.0.0.1",
            "PYTHONPATH": str(ROOT),
        }
        repo = f"me/rd-esm2-{args.level}"
        command = [sys.executable, "-m", "rd_hf", "release", "--repo-id", repo, "--input", str(sequences)]
        command += ["--config", f"rd-esm2-{args.level}"] if args.shrink == 1 else ["--config", str(config)]
        command += ["--batch-tokens", str(args.batch_tokens), "--output", str(args.folder / "work"), "--least-r2", "-9"]
        if args.group_tokens is not None:
            command += ["--group-tokens", str(args.group_tokens)]
        # The plan comes first.
        printed = run([*command, "--json"], environment)
        plan = json.loads(next(line for line in printed.splitlines() if line.startswith("{")))
        moved = weights_sent(hub.log)
        loads = {}
        names = list(json.loads((config / "config.json").read_text(encoding="utf-8"))["nested_dims"])
        smaller = "650M" if args.level == "3B" else "35M"
        assert smaller in names
        for what, settings in {
            f'level="{smaller}"': {"level": smaller},
            "whole, sequential=True": {"sequential": True},
        }.items():
            found = run([sys.executable, "-c", LOAD, repo, json.dumps(settings)], environment)
            loads[what] = json.loads(re.search(r"RESULT (.*)", found)[1])  # type: ignore[index]
        asked = sorted(repos_asked(hub.log))
    stages = json.loads((args.folder / "work" / "release.json").read_text(encoding="utf-8"))["stages"]
    return section(args, plan, stages, loads, moved, asked, torch.get_num_threads())


def section(
    args: argparse.Namespace,
    plan: dict[str, Any],
    stages: dict[str, Any],
    loads: dict[str, Any],
    moved: int,
    asked: list[str],
    threads: int,
) -> str:
    """Markdown: what was planned, what happened."""
    from rd_hf.files import byte_size

    how = "all backbones held" if args.group_tokens is None else f"one at a time, groups of {args.group_tokens} tokens"
    planned = plan["resident" if args.group_tokens is None else "sequential"]
    peak = max(stages[name]["peak_bytes"] for name in ("fetch", "fit"))
    lines = [
        f"## {args.level}{'' if args.shrink == 1 else f' (widths divided by {args.shrink})'}: {how}",
        "",
        f"{plan['sequences']} sequences, {plan['tokens']:,} tokens, {threads} thread(s).",
        "",
        "| stage | seconds | peak memory | |",
        "|---|---|---|---|",
    ]
    for name, stage in stages.items():
        notes = {"fetch": f"{stage.get('bytes', 0):,} bytes", "push": f"{stage.get('bytes', 0):,} bytes"}.get(name, "")
        lines.append(f"| {name} | {stage['seconds']:,.1f} | {byte_size(stage['peak_bytes'])} | {notes} |")
    for what, found in loads.items():
        lines.append(
            f"| fresh process, {what} | {found['seconds']:,.1f} | {byte_size(found['peak_bytes'])} | "
            f"{found['width']} wide, loaded in {found['load']:.1f} s |"
        )
    lines += [
        "",
        "| | planned | measured | planned / measured |",
        "|---|---|---|---|",
        f"| peak memory of the fit | {byte_size(planned)} | {byte_size(peak)} | {planned / peak:.3f} |",
        f"| bytes of weights fetched | {plan['download']:,} | {stages['fetch']['bytes']:,} | "
        f"{plan['download'] / stages['fetch']['bytes']:.4f} |",
        f"| seconds of the fit | {plan['flop'] / plan['flops']:,.0f} | {stages['fit']['seconds']:,.0f} | "
        f"{plan['flop'] / plan['flops'] / stages['fit']['seconds']:.2f} |",
        "",
        f"Bytes of weights that the Hub sent in all, loads included: {moved:,}. Repos asked: {', '.join(asked)}.",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    args = build_parser().parse_args()
    try:
        report = rehearse(args)
    finally:
        if not args.keep:
            shutil.rmtree(args.folder, ignore_errors=True)
    print(report)
    if args.report is not None:
        before = (
            args.report.read_text(encoding="utf-8") if args.report.exists() else "# Rehearsals of a publication\n\n"
        )
        args.report.write_text(before + report + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
