"""Groups of similar sequences, by the program MMseqs2 (Steinegger and Söding 2017), where it is installed."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rd_hf.data.records import InputError

# Connected components: two sequences that the program finds to be alike are never in different groups.
IDENTITY, COVERAGE = 0.3, 0.8
_OPTIONS = ("--min-seq-id", str(IDENTITY), "-c", str(COVERAGE), "--cluster-mode", "1", "-v", "1")


def similarity_groups(sequences: Sequence[str]) -> np.ndarray:
    """Group of each sequence, (n,) int64: alike are those with 30 % identical residues over 80 % of both.

    Raises:
        InputError: the program is not installed, or fails.
    """
    program = shutil.which("mmseqs")
    if program is None:
        raise InputError(
            "--group similarity needs the program mmseqs of MMseqs2, which is not installed: install it (Debian's "
            "package is mmseqs2), or give --group a column of groups"
        )
    groups = np.arange(len(sequences))
    with tempfile.TemporaryDirectory(prefix="rd-hf-mmseqs-") as name:
        folder = Path(name)
        fasta = folder / "sequences.fasta"
        fasta.write_text("".join(f">{number}\n{sequence}\n" for number, sequence in enumerate(sequences)))
        command = [program, "easy-cluster", str(fasta), str(folder / "found"), str(folder / "scratch"), *_OPTIONS]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        if done.returncode:
            said = (done.stderr + done.stdout).split("\n")
            last = next((line for line in reversed(said) if line.strip()), "nothing was said")
            raise InputError(f"{program} easy-cluster failed ({last.strip()}): give --group a column of groups")
        for line in (folder / "found_cluster.tsv").read_text().splitlines():
            first, member = map(int, line.split("\t"))
            groups[member] = first
    return np.unique(groups, return_inverse=True)[1].astype(np.int64)
