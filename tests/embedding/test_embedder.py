"""``datasets.map`` with an Embedder: cache, processes, streams, rows that cannot be embedded."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset, IterableDataset
from datasets.fingerprint import Hasher

from rd_hf.data.records import InputError
from rd_hf.embedding import Embedder
from rd_hf.embedding import checkpoint as checkpoint_module
from tests.embedding.conftest import scale_tensors

REPOSITORY = Path(__file__).resolve().parents[2]
SEQUENCES = ["MKTAYIAKQR", "ACDEFGHIKLMNPQ", "mktayiakqr*", "GAVLIM"]


@pytest.fixture
def dataset() -> Dataset:
    return Dataset.from_dict({"id": list("abcd"), "sequence": SEQUENCES})


def test_several_levels_come_from_one_pass_and_are_prefixes(dataset: Dataset, tiny_checkpoint: Path) -> None:
    embedded = dataset.map(Embedder(tiny_checkpoint, level=["L0", "L2"]), batched=True).with_format("torch")
    wide, narrow = embedded["embedding_L2"][:], embedded["embedding_L0"][:]
    assert (wide.shape, narrow.shape) == ((4, 64), (4, 32))
    assert wide.dtype == torch.float32
    assert torch.equal(wide[:, :32], narrow)
    assert torch.equal(wide[0], wide[2]), "lower case and a stop at the end make no other protein"


def test_one_level_is_called_embedding_and_the_largest_is_the_default(dataset: Dataset, tiny_checkpoint: Path) -> None:
    largest = Embedder(tiny_checkpoint).embed(SEQUENCES)
    assert list(largest) == ["embedding"]
    assert largest["embedding"][0].shape == (64,)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_residue_rows_line_up_with_residues(dataset: Dataset, tiny_checkpoint: Path, dtype: str) -> None:
    embedder = Embedder(tiny_checkpoint, pooling="residue", output_dtype=dtype)
    embedded = dataset.map(embedder, batched=True)
    assert [len(rows) for rows in embedded["embedding"]] == [10, 14, 10, 6]
    assert embedded.features["embedding"].feature.feature.dtype == dtype


def test_positions_come_from_a_column_of_the_dataset(dataset: Dataset, tiny_checkpoint: Path) -> None:
    dataset = dataset.add_column("where", [[1], [14, 2], [10], [3]])
    embedder = Embedder(tiny_checkpoint, pooling="positions", positions_column="where")
    rows = Embedder(tiny_checkpoint, pooling="residue").embed(SEQUENCES)["embedding"]
    found = dataset.map(embedder, batched=True)["embedding"]
    np.testing.assert_array_equal(np.array(found[1]), rows[1][[13, 1]])


def test_a_second_run_hits_the_cache(dataset: Dataset, tiny_checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    dataset.to_json(path)

    def run() -> Dataset:
        loaded = Dataset.from_json(str(path), cache_dir=str(tmp_path / "cache"))
        return loaded.map(Embedder(tiny_checkpoint, level="L1"), batched=True, with_rank=True)

    first = run()
    written = {file["filename"]: os.stat(file["filename"]).st_mtime_ns for file in first.cache_files}
    second = run()
    assert {file["filename"]: os.stat(file["filename"]).st_mtime_ns for file in second.cache_files} == written


@pytest.fixture
def own_checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "model"))


def test_the_fingerprint_changes_with_every_choice_and_with_the_weights(own_checkpoint: Path) -> None:
    choices: list[dict[str, object]] = [
        {},
        {"level": "L0"},
        {"level": ["L0", "L2"]},
        {"pooling": "max"},
        {"dtype": "bfloat16"},
        {"output_dtype": "float16"},
        {"normalize": True},
        {"long": "truncate"},
        {"max_length": 500},
    ]
    hashes = [Hasher.hash(Embedder(own_checkpoint, **choice)) for choice in choices]  # type: ignore[arg-type]
    assert len(set(hashes)) == len(choices)
    assert Hasher.hash(Embedder(own_checkpoint)) == hashes[0]

    scale_tensors(own_checkpoint, "projections.0.directions", 1.5)
    assert Hasher.hash(Embedder(own_checkpoint)) not in hashes


def test_the_commit_of_a_hub_model_is_its_fingerprint(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetch(name: str, revision: str | None) -> Path:
        commit = tmp_path / (revision or "main")
        commit.mkdir()
        return Path(shutil.copy(tiny_checkpoint / "config.json", commit))

    monkeypatch.setattr(checkpoint_module, "_fetch_config", fetch)
    first, second = (Embedder("someone/model", revision=commit) for commit in ("1a2b", "3c4d"))
    assert first.checkpoint.revision == "1a2b"
    assert Hasher.hash(first) != Hasher.hash(second)


def test_the_fingerprint_is_the_same_after_use(tiny_checkpoint: Path) -> None:
    embedder = Embedder(tiny_checkpoint, level=["L0", "L2"])
    before = Hasher.hash(embedder)
    embedder.embed(SEQUENCES)
    assert Hasher.hash(embedder) == before


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_two_worker_processes_give_what_one_gives(tiny_checkpoint: Path, tmp_path: Path, method: str) -> None:
    """In a program of its own: spawn starts the main module again, and fork must survive a parent that computed."""
    program = tmp_path / "program.py"
    program.write_text(
        textwrap.dedent(
            f"""
            import multiprocess
            import numpy as np
            from datasets import Dataset
            from datasets.fingerprint import Hasher
            from rd_hf.embedding import Embedder

            if __name__ == "__main__":
                multiprocess.set_start_method({method!r})
                dataset = Dataset.from_dict({{"sequence": {SEQUENCES!r}}})
                embedder = Embedder({str(tiny_checkpoint)!r})
                expected = np.stack(embedder.embed(dataset["sequence"])["embedding"])
                found = dataset.map(embedder, batched=True, with_rank=True, num_proc=2)["embedding"]
                print(Hasher.hash(embedder), np.abs(np.array(found) - expected).max())
            """
        )
    )
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "7"}
    run = subprocess.run(
        [sys.executable, program], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert run.returncode == 0, run.stderr
    fingerprint, difference = run.stdout.split()[-2:]
    assert fingerprint == Hasher.hash(Embedder(tiny_checkpoint)), "another process finds the same cache"
    # Other batches, so float32 sums in another order.
    assert float(difference) < 1e-5


def test_the_model_is_loaded_once_a_process(
    dataset: Dataset, own_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rd_hf.model.modeling_rd_esm import RDEsmModel

    loads = []
    real = RDEsmModel.from_pretrained

    def counted(*arguments: object, **keywords: object) -> object:
        loads.append(arguments)
        return real(*arguments, **keywords)

    monkeypatch.setattr(RDEsmModel, "from_pretrained", counted)
    for pooling in ("mean", "max"):
        dataset.map(Embedder(own_checkpoint, pooling=pooling), batched=True, batch_size=1)
    assert len(loads) == 1


def test_a_stream_is_embedded_as_it_flows(tiny_checkpoint: Path) -> None:
    stream = IterableDataset.from_generator(lambda: ({"sequence": sequence} for sequence in SEQUENCES))
    embedded = list(stream.map(Embedder(tiny_checkpoint), batched=True, batch_size=3))
    expected = Embedder(tiny_checkpoint).embed(SEQUENCES)["embedding"]
    for row, vector in zip(embedded, expected, strict=True):
        np.testing.assert_allclose(row["embedding"], vector, atol=1e-5)  # other batches


def test_a_row_that_cannot_be_embedded_stops_the_map_with_its_reason(tiny_checkpoint: Path) -> None:
    with pytest.raises(InputError, match=r"row 2 of the batch \('MK\*T'.*stop codon.*on_reject='null'"):
        Embedder(tiny_checkpoint)({"sequence": ["MKT", "MK*T"]})


def test_or_becomes_a_null_that_says_why(tiny_checkpoint: Path) -> None:
    embedder = Embedder(tiny_checkpoint, on_reject="null", long="error", max_length=5, overlap=0)
    rows = Dataset.from_dict({"sequence": ["MKT", "MK*T", None, "MKTAYIAKQR"]}).map(embedder, batched=True)
    assert [value is None for value in rows["embedding"]] == [False, True, True, True]
    assert rows["reject_reason"][0] is None
    assert [reason.split(" ")[0] for reason in rows["reject_reason"][1:]] == ["stop", "no", "10"]


def test_mistakes_are_named_before_any_weight_is_loaded(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no level '650M'; its levels are L0, L1, L2"):
        Embedder(tiny_checkpoint, level="650M")
    with pytest.raises(InputError, match=r"holds no config\.json"):
        Embedder(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "esm"}')
    with pytest.raises(InputError, match="a model of type 'esm', not 'rd_esm'"):
        Embedder(tmp_path)
    with pytest.raises(InputError, match="someone/absent is neither here nor complete in the cache"):
        Embedder("someone/absent")
    with pytest.raises(InputError, match="no column 'sequence'; its columns are protein"):
        Embedder(tiny_checkpoint)({"protein": ["MK"]})
