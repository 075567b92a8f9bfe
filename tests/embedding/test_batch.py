"""What the page on batch systems prints is run: an array's tasks, and Spark where it is installed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from rd_hf import Embedder
from tests.conftest import REPOSITORY, environment

PAGE = REPOSITORY / "rd_hf" / "embedding" / "BATCH.md"


def block(kind: str, holds: str) -> str:
    """The page's one example of a kind that holds these words."""
    found = re.findall(rf"^```{kind}\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    (code,) = (text for text in found if holds in text)
    return code


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "hub_configs").symlink_to(REPOSITORY / "hub_configs")
    return tmp_path


def test_an_array_of_jobs_reads_as_one(folder: Path) -> None:
    from datasets import load_dataset

    for name, proteins in (("a b", ["MKT", "MKTA"]), ("c", ["MKTAY"])):
        (folder / f"{name}.fasta").write_text("".join(f">{protein}\n{protein}\n" for protein in proteins))
    (folder / "files.txt").write_text("a b.fasta\nc.fasta\n")
    (folder / "job.sh").write_text(block("bash", "SBATCH"))
    # What an installation puts on the path.
    (folder / "bin").mkdir()
    (folder / "bin" / "rd-hf").write_text(f'#!/bin/bash\nexec "{sys.executable}" -m rd_hf "$@"\n')
    (folder / "bin" / "rd-hf").chmod(0o755)
    path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    env = {**environment(), "PATH": path}
    tasks = [
        subprocess.Popen(["bash", "-eu", "job.sh"], cwd=folder, env={**env, "SLURM_ARRAY_TASK_ID": number})
        for number in "12"
    ]
    assert [task.wait(timeout=300) for task in tasks] == [0, 0]
    files = str(folder / "embeddings" / "*" / "*.parquet")
    rows = load_dataset("parquet", data_files=files, split="train", cache_dir=str(folder / "cache"))
    assert [(row["source"], row["record"], row["id"]) for row in rows] == [
        ("a b.fasta", 1, "MKT"),
        ("a b.fasta", 2, "MKTA"),
        ("c.fasta", 1, "MKTAY"),
    ]


def test_spark_embeds_as_the_embedder_does(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pyspark")
    if shutil.which("java") is None:
        pytest.skip("Spark needs Java")
    monkeypatch.chdir(folder)
    proteins = ["MKTAYIAKQR", "NA", "MK*T", "GAVLIMFWPS"]
    (folder / "proteins.csv").write_text("id,sequence\n" + "".join(f"p{n},{p}\n" for n, p in enumerate(proteins)))
    code = 'if __name__ == "__main__":\n' + "".join(f"    {line}\n" for line in block("python", "Spark").splitlines())
    (folder / "job.py").write_text(code)
    env = {**environment(), "PYSPARK_PYTHON": sys.executable, "SPARK_LOCAL_IP": "127.0.0.1"}
    env["PYTHONPATH"] = os.pathsep.join([str(REPOSITORY), *(path for path in sys.path if "spark" in path)])
    subprocess.run([sys.executable, "job.py"], cwd=folder, env=env, check=True, timeout=300)
    rows = {row["id"]: row for row in pq.read_table(folder / "embedded").to_pylist()}
    embedder = Embedder(REPOSITORY / "hub_configs" / "rd-esm2-mini", on_reject="null")
    expected = embedder({"sequence": proteins})
    for number, (value, reason) in enumerate(zip(expected["embedding"], expected["reject_reason"], strict=True)):
        row = rows[f"p{number}"]
        assert row["reject_reason"] == reason
        if value is None:
            assert row["embedding"] is None
        else:
            # Float32 sums of batches of other sizes.
            np.testing.assert_allclose(row["embedding"], value, rtol=1e-4, atol=1e-5)
    assert rows["p2"]["reject_reason"].startswith("stop codon")
