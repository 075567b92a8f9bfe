"""What the job on Ray rests on, without a cluster: staged records, the parts cut of them, what parts share."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rd_hf.data.fasta import FastaRecord
from rd_hf.embedding.checkpoint import resolve
from rd_hf.embedding.folder import JobError, OutputFolder
from rd_hf.embedding.options import EmbeddingOptions
from rd_hf.embedding.parts import Part, cut_parts, read_all
from rd_hf.embedding.ray import duplicates, staging
from rd_hf.embedding.ray.cluster import RaySettings
from rd_hf.embedding.ray.plan import PlannedPart, plan, read_part
from rd_hf.embedding.ray.staging import Chunk, Staged, Staging, key_of, read_chunk, stage
from rd_hf.embedding.ray.worker import Assignment, PartWorker, WorkerFolder
from rd_hf.embedding.settings import JobSettings

WIDTHS = {"L": 8}


def staged_of(job: JobSettings, keys: bool = False) -> list[Staged]:
    """The inputs of a job, staged in this process."""
    found = []
    for index in range(len(job.inputs)):
        rows = list(stage(job, index, keys))
        assert not rows[-1]["error"], rows[-1]["error"]
        found.append(Staged(tuple(Chunk(row["file"], row["records"]) for row in rows[:-1]), ()))
    return found


def prepared(job: JobSettings) -> Path:
    """Folder of a job's staged files, as the driver makes it."""
    folder = OutputFolder(job.output)
    folder.journal.mkdir(parents=True)
    return folder.journal / "staged"


sequences = st.text("MKTAYIQR", max_size=40)


@settings(max_examples=30, deadline=None)
@given(
    inputs=st.lists(st.lists(sequences, min_size=1, max_size=30), min_size=1, max_size=4),
    part_records=st.integers(1, 12),
    part_rows=st.integers(1, 60),
    chunk=st.integers(1, 9),
    pooling=st.sampled_from(["mean", "residue"]),
)
def test_the_parts_are_those_of_the_local_job(
    inputs: list[list[str]], part_records: int, part_rows: int, chunk: int, pooling: str
) -> None:
    """Whatever the files, the limits and the sizes of the staged files: the same records in the same parts."""
    with tempfile.TemporaryDirectory() as scratch, pytest.MonkeyPatch.context() as patch:
        patch.setattr(staging, "CHUNK_RECORDS", chunk)
        patch.setattr(staging, "GROUP", 2)
        files = []
        for number, found in enumerate(inputs):
            files.append(Path(scratch) / f"{number}.fasta")
            files[-1].write_text("".join(f">{number}_{n} of {n}\n{s}\n" for n, s in enumerate(found)))
        job = JobSettings(
            model="",
            inputs=tuple(map(str, files)),
            output=str(Path(scratch) / "out"),
            options=EmbeddingOptions(pooling=pooling),
            part_records=part_records,
            part_bytes=part_rows * 4 * WIDTHS["L"],
        )
        path = prepared(job)
        parts = [PlannedPart.from_json(each.to_json()) for each in plan(staged_of(job), path, job, WIDTHS)]
        expected = list(cut_parts(read_all(job, lambda count: None), job, WIDTHS))
        assert [read_part(part, path, job) for part in parts] == expected
        assert [part.records for part in parts] == [len(part.records) for part in expected]
        letters = [sum(len(record.sequence) for _, record in part.records) for part in expected]
        assert [part.letters for part in parts] == letters


def test_any_text_comes_back_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "odd.parquet"
    job = JobSettings(model="", inputs=("x",), output=str(tmp_path))
    # A byte that is not in the file's encoding is half of a surrogate pair in memory.
    records = [
        FastaRecord(1, "", "", "MK\udcffT", (), ""),
        FastaRecord(2, "å|1", "å|1 ß\t\0", "", (1, 2**70), "two\nlines"),
        FastaRecord(3, "x" * 1000, "", "M" * 100_000),
    ]
    staging._write(path, records, job, keys=True)
    assert read_chunk(path, 0, 3) == records
    assert read_chunk(path, 1, 2) == records[1:2]


def test_staged_inputs_are_kept_until_they_change(tmp_path: Path) -> None:
    fasta = tmp_path / "a.fasta"
    fasta.write_text(">a\nMKT\n>b\nMKTA\n")
    job = JobSettings(model="", inputs=(str(fasta),), output=str(tmp_path / "out"))
    prepared(job)
    folder = OutputFolder(job.output)
    folder.claim()
    kept = Staging(folder, job, keys=False)
    assert kept.kept(0) is None
    (staged,) = staged_of(job)
    kept.keep(0, staged, kept.identity(0))
    assert kept.kept(0) == staged
    assert Staging(folder, job, keys=True).kept(0) is None, "keys are missing"
    other = replace(job, strict=True)
    assert Staging(folder, other, keys=False).kept(0) is None
    fasta.write_text(">a\nMKT\n>b\nMKTAY\n")
    assert kept.kept(0) is None
    kept.keep(0, staged, kept.identity(0))
    (kept.path / staged.chunks[0].file).unlink()
    assert kept.kept(0) is None


def test_an_input_that_cannot_be_read_says_so_in_a_row(tmp_path: Path) -> None:
    (tmp_path / "a.fasta").write_text("MKT\n")
    job = JobSettings(model="", inputs=(str(tmp_path / "a.fasta"),), output=str(tmp_path / "out"))
    prepared(job)
    (row,) = stage(job, 0, keys=False)
    assert "holds no FASTA record at its start" in row["error"]


@settings(max_examples=50, deadline=None)
@given(
    drawn=st.lists(st.integers(0, 12), min_size=1, max_size=60),
    part=st.integers(1, 10),
)
def test_shared_sequences_are_those_of_several_parts(drawn: list[int], part: int) -> None:
    """Against a search of all pairs; some keys end in the zero byte that numpy's strings leave out."""
    keys = [bytes([number] * 15) + bytes([number % 3]) for number in drawn]
    parts_of: dict[bytes, list[int]] = {}
    for place, key in enumerate(keys):
        parts_of.setdefault(key, []).append(place)
    expected = {
        (key, places[0] + 1, len(places))
        for key, places in parts_of.items()
        if len({place // part for place in places}) > 1
    }
    order = np.random.default_rng(0).permutation(len(keys))
    bucket = pa.table(
        {
            "key": pa.array([keys[place] for place in order], pa.binary(16)),
            "record": pa.array((order + 1).tolist(), pa.int64()),
            "bucket": pa.array([0] * len(keys), pa.int64()),
        }
    )
    starts = np.arange(1, len(keys) + 1, part)
    found = duplicates._in_several(bucket, starts).to_pylist()
    assert {(row["key"], row["record"], row["copies"]) for row in found} == expected
    assert len(found) == len(expected)


def test_shared_rows_are_found_by_their_sequence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "BLOCK", 3)
    names = [f"MKT{'A' * number}" for number in range(8)]
    keys = np.array([key_of(name) for name in names], dtype="S16")
    # The records that have them first are in another order than the keys.
    records = np.array([5, 3, 9, 1, 20, 11, 7, 2])
    shared = duplicates._written(keys, records, 16, tmp_path)
    rank = np.argsort(np.argsort(records))
    values = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
    values[rank[6]] = np.nan
    for block in range(shared.blocks - 1):
        np.save(shared.block_path(block), values[block * 3 : block * 3 + 3])
    rows = duplicates.SharedRows(shared)
    for name, row in zip(names, rank, strict=True):
        found = rows.find(name)
        if row >= 6 or name == names[6]:
            assert found is None, "its block is not there yet, or it could not be computed"
        else:
            assert found is not None
            assert np.array_equal(found, values[row])
    assert rows.find("MKTY") is None


def test_a_block_is_as_wide_as_what_is_computed(tmp_path: Path, tiny_checkpoint: Path) -> None:
    """With fewer dimensions stored than a level has, what is looked up is what would have been computed."""
    fasta = tmp_path / "a.fasta"
    fasta.write_text("".join(f">r{n}\n{'MKTAY' * (1 + n % 3)}\n" for n in range(12)))
    options = EmbeddingOptions(width=40)
    job = JobSettings(
        model=str(tiny_checkpoint), inputs=(str(fasta),), output=str(tmp_path / "out"), options=options,
        device="cpu", part_records=6,
    )  # fmt: skip
    folder = OutputFolder(job.output)
    folder.claim()
    checkpoint = resolve(job.model)
    token = (folder.workspace.record() or {})["token"]
    assignment = Assignment(job, checkpoint, checkpoint.widths((), 40), str(Path.cwd()), token, keys=True)
    staged, path = staged_of(job, keys=True), folder.journal / "staged"
    keys = np.array([key_of("MKTAY" * times) for times in (1, 2, 3)], dtype="S16")
    shared = duplicates._written(keys, np.array([1, 2, 3]), 12, path)
    worker = PartWorker(assignment, shared, duplicates.first_records(staged))
    assert not worker({"part": "", "block": 0})["error"]
    tokens = json.loads(worker({"part": "", "block": 0})["work"])["tokens"]
    assert tokens > 0
    for part in plan(staged, path, job, assignment.widths):
        answer = worker({"part": part.to_json(), "block": -1})
        assert not answer["error"]
        assert json.loads(answer["work"])["tokens"] == 0, "all was there"
        alone = PartWorker(assignment)({"part": part.to_json(), "block": -1})
        found, expected = (pq.read_table(folder.journal / each["handed"]) for each in (answer, alone))
        assert found["embedding"].type.list_size == 40
        values, reference = (np.stack(table["embedding"].to_numpy()) for table in (found, expected))
        # Float32 sums of batches of other sizes.
        np.testing.assert_allclose(values, reference, rtol=1e-4, atol=1e-5)


def test_a_part_that_ends_every_worker_is_given_up_in_a_sentence(tmp_path: Path) -> None:
    folder = OutputFolder(tmp_path / "out")
    folder.claim()
    token = (folder.workspace.record() or {})["token"]
    for _ in range(5):
        # A worker that ends here leaves its sign.
        WorkerFolder(tmp_path / "out", token).begin("000007")
    WorkerFolder(tmp_path / "out", token).begin("000008")
    with pytest.raises(JobError, match="000007 ended its worker 5 times: it may need more memory"):
        WorkerFolder(tmp_path / "out", token).begin("000007")


def test_a_worker_that_was_thought_lost_changes_nothing(tmp_path: Path, tiny_checkpoint: Path) -> None:
    """Two workers make the same part; the driver takes one of them, and the other's file has no place."""
    fasta = tmp_path / "a.fasta"
    fasta.write_text(">a\nMKT\n>b\nMKTA\n")
    job = JobSettings(model=str(tiny_checkpoint), inputs=(str(fasta),), output=str(tmp_path / "out"), device="cpu")
    folder = OutputFolder(job.output)
    folder.claim()
    checkpoint = resolve(job.model)
    token = (folder.workspace.record() or {})["token"]
    assignment = Assignment(job, checkpoint, checkpoint.widths(()), str(Path.cwd()), token)
    (part,) = plan(staged_of(job), folder.journal / "staged", job, assignment.widths)
    answers = [PartWorker(assignment)({"part": part.to_json(), "block": -1}) for _ in range(2)]
    assert not folder.part_path(0).exists()
    from rd_hf.embedding.folder import PartEntry

    folder.adopt(folder.journal / answers[0]["handed"], PartEntry.from_json(answers[0]["entry"]))
    entry = folder.entry(0)
    assert entry is not None
    assert folder.holds(entry)
    assert (folder.journal / answers[1]["handed"]).exists()
    assert len(list(Path(job.output).glob("*.parquet"))) == 1


def test_a_foreign_file_is_not_replaced_by_a_part(tmp_path: Path) -> None:
    folder = OutputFolder(tmp_path / "out")
    folder.claim()
    folder.part_path(0).write_bytes(b"do not lose")
    (folder.journal / "handed").write_bytes(b"PAR1")
    part = Part(0, 1, [], "")
    from rd_hf.embedding.folder import PartEntry

    entry = PartEntry(part.index, 1, 0, 0, 0, 0, 0, 0, "", "embeddings-000000.parquet", "", 4, ())
    with pytest.raises(JobError, match="would be replaced, and is no embedding job's"):
        folder.adopt(folder.journal / "handed", entry)
    assert folder.part_path(0).read_bytes() == b"do not lose"


@pytest.mark.parametrize("wrong", [{"workers": 0}, {"cpus": 0}, {"gpus": -1.0}])
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must"):
        RaySettings(**wrong)  # type: ignore[arg-type]
