"""A real `rd-hf predict` that is killed in the middle, and one on a Ray cluster: the bytes of an undisturbed run."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import environment, kill
from tests.embedding.conftest import random_fasta
from tests.embedding.test_folder import snapshot
from tests.training.conftest import labelled
from tests.training.test_predict import read, trained

RECORDS = 140


@pytest.fixture(scope="module")
def words(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A command of many files, all but its --output."""
    folder = tmp_path_factory.mktemp("killed")
    head = trained(tiny_checkpoint, folder, labelled(), target="score", level="L1")
    fasta = random_fasta(folder / "proteins.fasta", RECORDS, seed=1)
    argv = ["-m", "rd_hf", "predict", "--model", head, "--input", fasta, "--part-records", 2, "--device", "cpu"]
    return [sys.executable, *map(str, argv), "--quiet", "--output"]


@pytest.fixture(scope="module")
def whole(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command makes where nothing disturbs it."""
    output = tmp_path_factory.mktemp("whole") / "out"
    finish([*words, str(output)])
    return output


def finish(command: list[str]) -> None:
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("sign", [".embeddings/*.parquet", "predictions-000010.parquet"])
def test_killed_while_it_embeds_or_predicts_the_same_command_ends_it(
    sign: str, words: list[str], whole: Path, tmp_path: Path
) -> None:
    command = [*words, str(tmp_path / "out")]
    running = subprocess.Popen(command, env=environment(), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    while not list((tmp_path / "out").glob(sign)):
        assert running.poll() is None, "it ended before it was killed"
        time.sleep(0.001)
    kill(running)
    files = len(list(whole.glob("predictions-*")))
    assert len(list((tmp_path / "out").glob("predictions-*"))) < files
    finish(command)
    assert snapshot(tmp_path / "out") == snapshot(whole)


def test_on_ray_the_answers_are_those_of_one_process(words: list[str], whole: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    from tests.embedding.ray_cluster import two_nodes

    with two_nodes() as cluster:
        finish([*words, str(tmp_path / "out"), "--engine", "ray", "--address", cluster.address])
    found, expected = read(tmp_path / "out"), read(whole)
    assert list(found["id"]) == list(expected["id"])
    assert len(found) > RECORDS / 2
    # Sums of float32 in batches of other sizes, of numbers of about 0.3.
    np.testing.assert_allclose(found["prediction"], expected["prediction"], rtol=0, atol=1e-6)
    assert (tmp_path / "out" / "_rejects.tsv").read_bytes() == (whole / "_rejects.tsv").read_bytes()
    assert {path.name for path in (tmp_path / "out").iterdir()} == {path.name for path in whole.iterdir()}
