"""How long one waits before anything happens: imports, ``--help``, loading a small model.

The floor. ``import torch, transformers`` takes seconds and every user of a transformer pays it; what an ESM model
needs of transformers comes on top, since it imports its modules on first use. This package's own modules are some
thirty files of Python, read and compiled once: 10 ms. ``--help`` needs argparse and the options' names, 50 ms with
the interpreter. Loading ``rd-esm2-mini`` reads 17 MB and builds 4.2 million parameters, about 10 ms; the rest is
what transformers does around it.

Each figure is the median over fresh processes that take turns. Imports and loads are timed inside their process,
after ``import torch, transformers`` and what of transformers every ESM model needs, so that no difference of two
noisy numbers is formed (loading is also given without the latter, as a user's first model of a process sees it);
``--help`` is the whole process, from start to exit, and so is the first embedding. Beside it stands, in turns with
it, a process that imports torch and transformers' ESM the plain way and ends. The command does more than that in less:
it does not look for garbage while modules are imported (0.75 s of CPU) nor through what they left as the process ends
(0.65 s), and reads no pandas (0.3 s), which ``pyarrow.array`` does wherever that is installed. What is left is reading
torch and transformers, which in turn read scipy, sympy, torch._dynamo and torch.distributed.tensor. Loading torch's
libraries in a thread meanwhile gains nothing.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from benchmarks.common import REPOSITORY, Ratio, carried_proteins, errors_of, medians, output_of

# In this order: a later one finds what an earlier one has imported.
MODULES = ("rd_hf", "rd_hf.model.modeling_rd_esm", "rd_hf.embedding", "rd_hf.hub")
# What modeling_rd_esm cannot do without, and anyone who uses an ESM model has imported.
ESM = "from transformers import EsmConfig, EsmModel, PretrainedConfig, PreTrainedModel"
MINI = REPOSITORY / "hub_configs" / "rd-esm2-mini"
LOAD = (
    "from transformers import AutoModel",
    f"AutoModel.from_pretrained({str(MINI)!r}, trust_remote_code=True)",
)


def run(rounds: int) -> list[Ratio]:
    """See the module's docstring."""
    imports: list[list[float]] = []
    loads: list[float] = []
    first_loads: list[float] = []
    scripts = sorted((REPOSITORY / "scripts").glob("*.py"))
    helps: dict[str, list[float]] = {path.name: [] for path in scripts}
    # Once for the caches of the file system and of compiled Python, not counted.
    for path in scripts:
        seconds_of_help(path)
    for _ in range(rounds):
        imports.append(seconds_inside(ESM, *(f"import {module}" for module in MODULES)))
        loads.append(seconds_inside(ESM, *LOAD)[-1])
        first_loads.append(sum(seconds_inside(*LOAD)))
        for path in scripts:
            helps[path.name].append(seconds_of_help(path))
    esm, *own = (statistics.median(values) for values in zip(*imports, strict=True))
    each = ", ".join(f"{module} {seconds:.3f}" for module, seconds in zip(MODULES, own, strict=True))
    waits = medians(helps)
    slowest = max(waits, key=lambda name: waits[name])
    shown = ", ".join(f"{name} {seconds:.2f}" for name, seconds in waits.items())
    first = f"{statistics.median(first_loads):.2f} s as the first model of a process, transformers' own imports in it"
    return [
        Ratio(
            "import all of rd_hf, seconds", sum(own), 0.3, at_least=False,
            detail=f"one after the other {each}; what they need of transformers took {esm:.2f} s before",
        ),
        Ratio(
            "load rd-esm2-mini (AutoModel, remote code, offline), seconds", statistics.median(loads), 1.0,
            at_least=False, detail=first,
        ),
        Ratio("slowest --help, seconds", waits[slowest], 1.5, at_least=False, detail=f"{slowest}; all: {shown}"),
        first_embedding(rounds),
    ]  # fmt: skip


def first_embedding(rounds: int) -> Ratio:
    """Seconds from a command to ten embedded proteins, and whose code it reads on the way."""
    seconds, floors, cpu = [], [], []
    with tempfile.TemporaryDirectory() as scratch:
        fasta = Path(scratch) / "ten.fasta"
        records = (f">p{place}\n{text}\n" for place, text in enumerate(carried_proteins()[:10]))
        fasta.write_text("".join(records), encoding="utf-8")

        def command(number: int, *flags: str) -> list[str]:
            inputs = ["--model", str(MINI), "--input", str(fasta), "--output", str(Path(scratch) / str(number))]
            return [sys.executable, *flags, "-m", "rd_hf", "embed", *inputs]

        for number in range(rounds):
            started, used = time.perf_counter(), _cpu_of_children()
            output = _run(command(number))
            seconds.append(time.perf_counter() - started)
            cpu.append(_cpu_of_children() - used)
            started = time.perf_counter()
            _run([sys.executable, "-c", f"import torch; {ESM}"])
            floors.append(time.perf_counter() - started)
        imports = import_seconds(errors_of([*command(rounds, "-X", "importtime")], PYTHONPATH=str(REPOSITORY)))
    stages = output.partition("seconds: ")[2].partition("\n")[0]
    shown = ", ".join(f"{package} {value:.1f}" for package, value in list(imports.items())[:5])
    detail = (
        f"{statistics.median(cpu):.1f} s of CPU; a process that imports torch and transformers' ESM and ends takes "
    )
    detail += f"{statistics.median(floors):.1f} s; reading code: {shown}; "
    detail += f"the job's own stages: {stages}"
    return Ratio("rd-hf embed, ten proteins, rd-esm2-mini, seconds", statistics.median(seconds), 4, False, detail)


def import_seconds(report: str) -> dict[str, float]:
    """Seconds that the modules of each top package took to read, most first, from what ``-X importtime`` prints.

    Only an upper bound: telling the time of each module takes time too.
    """
    found: Counter[str] = Counter()
    for line in report.splitlines():
        words = line.removeprefix("import time:").split("|")
        if len(words) == 3 and words[0].strip().isdecimal():
            found[words[2].strip().partition(".")[0]] += int(words[0])
    return {package: value / 1e6 for package, value in found.most_common()}


def seconds_inside(*statements: str) -> list[float]:
    """Seconds that each statement takes in a fresh process that has imported torch and transformers."""
    lines = ["import time, torch, transformers", "seconds = []"]
    for statement in statements:
        lines += ["started = time.perf_counter()", statement, "seconds.append(time.perf_counter() - started)"]
    lines.append("print(*seconds)")
    answer = _run([sys.executable, "-c", "\n".join(lines)])
    return [float(word) for word in answer.splitlines()[-1].split()]


def seconds_of_help(script: Path) -> float:
    """Seconds that ``script --help`` takes, from start to exit."""
    started = time.perf_counter()
    _run([sys.executable, str(script), "--help"])
    return time.perf_counter() - started


def _cpu_of_children() -> float:
    """Seconds of CPU, the system's included, of all processes that this one started and that have ended."""
    times = os.times()
    return times.children_user + times.children_system


def _run(command: Sequence[str]) -> str:
    return output_of(command, PYTHONPATH=str(REPOSITORY), HF_HUB_OFFLINE="1")
