"""What the job on Ray rests on, without a cluster: staged records, the parts cut of them, what parts share."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rd_hf.data.records import FastaRecord
from rd_hf.data.residues import RejectedSequenceError
from rd_hf.embedding.checkpoint import resolve
from rd_hf.embedding.engine import prepare
from rd_hf.embedding.folder import JobError, OutputFolder, PartEntry
from rd_hf.embedding.options import EmbeddingOptions
from rd_hf.embedding.parts import cut_parts, read_all
from rd_hf.embedding.ray import RaySettings, staging
from rd_hf.embedding.ray.staging import PlannedPart, StagedFile, StagingFolder, key_of, plan, read_records, stage
from rd_hf.embedding.ray.worker import Assignment, PartWorker, WorkerFolder
from rd_hf.embedding.settings import JobSettings
from rd_hf.options import add_options, options_from
from tests.conftest import environment

WIDTHS = {"L": 8}


def staged_of(job: JobSettings, keys: bool = False) -> list[dict[str, Any]]:
    """The inputs of a job, staged in this process, as they are noted."""
    found = []
    for index in range(len(job.inputs)):
        rows = list(stage(job, index, keys))
        assert not rows[-1]["error"], rows[-1]["error"]
        chunks = [{name: row[name] for name in ("file", "records")} for row in rows[:-1]]
        found.append({"chunks": chunks, "notes": rows[-1]["notes"]})
    return found


def files_of(job: JobSettings, keys: bool = False) -> list[StagedFile]:
    return StagingFolder.files(staged_of(job, keys))


def made(worker: PartWorker, **task: Any) -> dict[str, Any]:
    """What a worker answers to a task."""
    answer: dict[str, Any] = json.loads(worker({"task": json.dumps(task)})["answer"])
    assert not answer["error"]
    return answer


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
        patch.setattr(staging, "FILE_RECORDS", chunk)
        patch.setattr(staging, "ROW_GROUP", 2)
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
        parts = [PlannedPart(**json.loads(json.dumps(asdict(each)))) for each in plan(files_of(job), path, job, WIDTHS)]
        expected = list(cut_parts(read_all(job, lambda count: None), job, WIDTHS))
        assert [part.read(path, job) for part in parts] == expected
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
    staging.write_records(path, records, job, keys=True)
    assert read_records(path, 0, 3) == records
    assert read_records(path, 1, 2) == records[1:2]


@pytest.mark.parametrize("long", ["window", "truncate", "error"])
def test_what_the_engine_would_reject_has_no_key(long: str, tmp_path: Path) -> None:
    options = EmbeddingOptions(long=long, max_length=5, overlap=2)
    job = JobSettings(model="", inputs=("x",), output=str(tmp_path), options=options)
    records = [FastaRecord(n, "", "", text) for n, text in enumerate(("MKT", "mktay", "MKTAYI", "M1", ""), start=1)]
    staging.write_records(tmp_path / "records.parquet", records, job, keys=True)
    for record, key in zip(records, pq.read_table(tmp_path / "records.parquet")["key"].to_pylist(), strict=True):
        try:
            assert key == key_of(prepare(record.letters(), (), options).sequence)
        except RejectedSequenceError:
            assert key is None


def test_staged_inputs_are_kept_until_they_change(tmp_path: Path) -> None:
    fasta = tmp_path / "a.fasta"
    fasta.write_text(">a\nMKT\n>b\nMKTA\n")
    job = JobSettings(model="", inputs=(str(fasta),), output=str(tmp_path / "out"))
    prepared(job)
    folder = OutputFolder(job.output)
    folder.claim()
    kept = StagingFolder(folder, job, keys=False)
    assert kept.find(0) is None
    (staged,) = staged_of(job)
    kept.note(0, staged, kept.identity(0))
    assert kept.find(0) == staged
    assert StagingFolder(folder, job, keys=True).find(0) is None, "keys are missing"
    other = replace(job, strict=True)
    assert StagingFolder(folder, other, keys=False).find(0) is None
    fasta.write_text(">a\nMKT\n>b\nMKTAY\n")
    assert kept.find(0) is None
    kept.note(0, staged, kept.identity(0))
    assert kept.find(0) == staged
    (kept.path / staged["chunks"][0]["file"]).unlink()
    assert kept.find(0) is None


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
    found = staging.in_several_parts(bucket, starts).to_pylist()
    assert {(row["key"], row["record"], row["copies"]) for row in found} == expected
    assert len(found) == len(expected)


def test_shared_rows_are_found_by_their_sequence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging, "GROUP", 3)
    names = [f"MKT{'A' * number}" for number in range(8)]
    keys = np.array([key_of(name) for name in names], dtype="S16")
    # The records that have them first are in another order than the keys.
    records = np.array([5, 3, 9, 1, 20, 11, 7, 2])
    shared = staging.write_shared(keys, records, 16, tmp_path)
    rank = np.argsort(np.argsort(records))
    values = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
    values[rank[6]] = np.nan
    for group in range(shared.groups - 1):
        np.save(shared.group_path(group), values[group * 3 : group * 3 + 3])
    for name, row in zip(names, rank, strict=True):
        found = shared.find(name)
        if row >= 6 or name == names[6]:
            assert found is None, "its group is not there yet, or it could not be computed"
        else:
            assert found is not None
            assert np.array_equal(found, values[row])
    assert shared.find("MKTY") is None


def test_a_group_is_as_wide_as_what_is_computed(tmp_path: Path, tiny_checkpoint: Path) -> None:
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
    files, path = files_of(job, keys=True), folder.journal / "staged"
    keys = np.array([key_of("MKTAY" * times) for times in (1, 2, 3)], dtype="S16")
    shared = staging.write_shared(keys, np.array([1, 2, 3]), 12, path)
    assert not folder.holds_work()
    worker = PartWorker(assignment, shared, files)
    tokens = made(worker, group=0)["work"]["tokens"]
    assert tokens > 0
    assert folder.holds_work(), "what was computed for many parts is no other job's"
    for part in plan(files, path, job, assignment.widths):
        answer = made(worker, part=asdict(part))
        assert answer["work"]["tokens"] == tokens, "all was there"
        alone = made(PartWorker(assignment), part=asdict(part))
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
        WorkerFolder(tmp_path / "out", token).start("000007")
    WorkerFolder(tmp_path / "out", token).start("000008")
    with pytest.raises(JobError, match="000007 ended its worker 5 times: it may need more memory"):
        WorkerFolder(tmp_path / "out", token).start("000007")


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
    (part,) = plan(files_of(job), folder.journal / "staged", job, assignment.widths)
    answers = [made(PartWorker(assignment), part=asdict(part)) for _ in range(2)]
    assert not folder.part_path(0).exists()
    folder.adopt(folder.journal / answers[0]["handed"], PartEntry.from_json(answers[0]["entry"]))
    entry = folder.entry(0)
    assert entry is not None
    assert folder.holds(entry)
    assert (folder.journal / answers[1]["handed"]).exists()
    # Whoever is given it once more finds it whole.
    assert made(PartWorker(assignment), part=asdict(part)).keys().isdisjoint({"entry", "handed", "sign"})
    assert len(list(Path(job.output).glob("*.parquet"))) == 1


def test_a_foreign_file_is_not_replaced_by_a_part(tmp_path: Path) -> None:
    folder = OutputFolder(tmp_path / "out")
    folder.claim()
    folder.part_path(0).write_bytes(b"do not lose")
    (folder.journal / "handed").write_bytes(b"PAR1")
    entry = PartEntry(0, 1, 0, 0, 0, 0, 0, 0, "", "embeddings-000000.parquet", "", 4, ())
    with pytest.raises(JobError, match="would be replaced, and is no embedding job's"):
        folder.adopt(folder.journal / "handed", entry)
    assert folder.part_path(0).read_bytes() == b"do not lose"


@pytest.mark.parametrize("wrong", [{"workers": 0}, {"cpus": 0}, {"gpus": -1.0}])
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must"):
        RaySettings(**wrong)  # type: ignore[arg-type]


def test_settings_and_their_flags_need_neither_ray_nor_torch() -> None:
    script = (
        "import sys, rd_hf.embedding.ray as r; r.RaySettings(cpus=2); print({'ray', 'torch', 'numpy'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", script], env=environment(), capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_flags_become_settings() -> None:
    parser = argparse.ArgumentParser()
    add_options(parser, RaySettings)
    assert options_from(RaySettings, parser.parse_args([])) == RaySettings()
    words = ["--address", "auto", "--workers", "3", "--cpus-per-worker", "2", "--gpus-per-worker", "0.5"]
    assert options_from(RaySettings, parser.parse_args([*words, "--deduplicate"])) == RaySettings(
        "auto", 3, 2, 0.5, deduplicate=True
    )
