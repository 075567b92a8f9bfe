"""Whatever interrupts a job: finished parts stay, the same command ends it, and the result is the same."""

from __future__ import annotations

import gzip
import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import TWO_PROCESSES, environment, kill
from tests.embedding.conftest import (
    REFERENCE_PARTS,
    Outcome,
    Reference,
    command,
    content_hashes,
    parts,
    random_fasta,
    read,
    run_process,
    scale_tensors,
)

Embed = Callable[..., Outcome]
# Each costs a start of torch; RD_HF_FULL=1 runs them all.
KILLS = 20 if os.environ.get("RD_HF_FULL") else 3


@pytest.fixture
def job(tmp_path: Path, tiny_checkpoint: Path) -> list[object]:
    """A command of 10 parts, all but its --output."""
    fasta = random_fasta(tmp_path / "proteins.fasta", 100)
    return ["--model", tiny_checkpoint, "--input", fasta, "--part-records", 10, "--output"]


def test_a_finished_job_is_verified_and_done_again_not_at_all(embed: Embed, job: list[object], tmp_path: Path) -> None:
    output = tmp_path / "out"
    embed(*job, output)
    before = {path: path.stat().st_mtime_ns for path in parts(output)}
    outcome = embed(*job, output)
    assert outcome.status == 0
    assert "10 parts, 10 of them from an earlier run" in outcome.stdout
    assert {path: path.stat().st_mtime_ns for path in parts(output)} == before


def test_killed_again_and_again_the_result_is_that_of_an_uninterrupted_run(
    reference: Reference, tmp_path: Path
) -> None:
    """Each kill comes at a random moment: while a run starts, or somewhere within the next few parts."""
    output = tmp_path / "killed"
    journal = output / ".job"
    generator = random.Random(4)
    finished = []
    for _ in range(KILLS):
        process = subprocess.Popen(
            command(*reference.arguments, output),
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        further = generator.randint(0, REFERENCE_PARTS // (KILLS + 1))
        if further:
            goal = len(list(journal.glob("*.json"))) + further
            while len(list(journal.glob("*.json"))) < goal and process.poll() is None:
                time.sleep(0.001)
            time.sleep(generator.uniform(0, 0.05))
        else:
            time.sleep(generator.uniform(0, reference.seconds / 2))
        process.kill()
        process.wait()
        if process.returncode == -signal.SIGKILL:
            finished.append(len(list(journal.glob("*.json"))))
    outcome = run_process(*reference.arguments, output)
    assert outcome.status == 0, outcome.stderr
    print(f"{len(finished)} of {KILLS} kills met a running job, with {finished} of {REFERENCE_PARTS} parts finished")
    assert finished
    assert content_hashes(output) == content_hashes(reference.folder)
    assert not list(output.rglob("*.tmp")), "what a kill left half written is cleared away"


def test_killed_between_any_two_steps_of_writing(embed: Embed, job: list[object], tmp_path: Path) -> None:
    """Every state that a kill can leave a part in, made by hand: no timing is involved."""
    output = tmp_path / "out"
    embed(*job, output)
    expected = content_hashes(output)
    journal = output / ".job"
    token = json.loads((journal / "rd_hf.json").read_bytes())["token"]
    (journal / f"{token}-0123.tmp").write_bytes(b"half a file")
    (output / "embeddings-000003.parquet").unlink()  # neither renamed nor noted
    (journal / "000003.json").unlink()
    (journal / "000004.json").unlink()  # renamed, not yet noted
    (journal / f"{token}-4567.tmp").write_text('{"half')
    for own in (output / "notes.tmp", journal / "notes.tmp"):
        own.write_text("a user's own")
    (output / "cache.tmp").mkdir()
    manifest = json.loads((output / "_manifest.json").read_text())
    (output / "_manifest.json").write_text(
        json.dumps({key: manifest[key] for key in ("format", "model", "job", "columns", "versions")})
    )
    (output / "_rejects.tsv").unlink()
    outcome = embed(*job, output)
    assert outcome.status == 0, outcome.stderr
    assert "10 parts, 8 of them from an earlier run" in outcome.stdout
    assert content_hashes(output) == expected
    assert sorted(path.name for path in output.rglob("*.tmp")) == ["cache.tmp", "notes.tmp", "notes.tmp"]
    assert json.loads((output / "_manifest.json").read_text())["status"] == "complete"


def test_a_part_that_was_damaged_since_is_done_again(embed: Embed, job: list[object], tmp_path: Path) -> None:
    output = tmp_path / "out"
    embed(*job, output)
    expected = content_hashes(output)
    path = parts(output)[4]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    parts(output)[6].unlink()
    outcome = embed(*job, output)
    assert "embeddings-000004.parquet is not as it was written: doing part 4 again" in outcome.stderr
    assert "10 parts, 8 of them from an earlier run" in outcome.stdout
    assert content_hashes(output) == expected


@pytest.mark.parametrize(
    ("extra", "sentence"),
    [
        (["--level", "L0"], "levels was ['L2'] and is now ['L0']"),
        (["--pooling", "max"], "pooling was 'mean' and is now 'max'"),
        (["--dtype", "bfloat16", "--normalize"], "dtype was 'float32' and is now 'bfloat16'; normalize was False"),
        (["--output-dtype", "float16"], "output_dtype was 'float32' and is now 'float16'"),
        (["--long", "truncate"], "long was 'window' and is now 'truncate'"),
        (["--part-records", "20"], "part_records was 10 and is now 20"),
        (["--batch-tokens", "64"], "batch_tokens was None and is now 64"),
    ],
)
def test_another_option_is_not_mixed_in_and_is_named(
    embed: Embed, job: list[object], tmp_path: Path, extra: list[str], sentence: str
) -> None:
    output = tmp_path / "out"
    embed(*job, output)
    before = content_hashes(output)
    outcome = embed(*job, output, *extra)
    assert outcome.status == 1
    assert sentence in outcome.stderr
    assert "holds another job, which this one will not be mixed with" in outcome.stderr
    assert outcome.stderr.count("\n") == 1
    assert content_hashes(output) == before


def test_strict_stops_at_what_an_earlier_run_rejected(embed: Embed, job: list[object], tmp_path: Path) -> None:
    embed(*job, tmp_path / "out")
    outcome = embed(*job, tmp_path / "out", "--strict")
    assert outcome.status == 1
    assert "record 34 (r33): stop codon '*' inside the sequence" in outcome.stderr


def test_other_versions_are_told(embed: Embed, job: list[object], tmp_path: Path) -> None:
    path = tmp_path / "out" / "_manifest.json"
    embed(*job, tmp_path / "out")
    manifest = json.loads(path.read_text())
    manifest["status"] = "running"
    manifest["versions"]["torch"] = "2.6.0"
    path.write_text(json.dumps(manifest))
    outcome = embed(*job, tmp_path / "out")
    assert outcome.status == 0
    assert "begun with other versions (torch was '2.6.0' and is now" in outcome.stderr


def test_other_weights_are_not_mixed_in(embed: Embed, job: list[object], tmp_path: Path, tiny_checkpoint: Path) -> None:
    model = Path(shutil.copytree(tiny_checkpoint, tmp_path / "model"))
    output = tmp_path / "out"
    embed(*job, output, "--model", model)
    assert embed(*job, output).status == 0, "the same weights elsewhere are the same model"
    scale_tensors(model, ".regression", 1.5)
    outcome = embed(*job, output, "--model", model)
    assert outcome.status == 1
    assert "the model was " in outcome.stderr
    assert f"and is now {model} (sha256:" in outcome.stderr


@pytest.mark.parametrize("change", ["edited", "shorter", "longer"])
def test_a_changed_input_is_noticed(embed: Embed, job: list[object], tmp_path: Path, change: str) -> None:
    output, fasta = tmp_path / "out", tmp_path / "proteins.fasta"
    embed(*job, output)
    text = fasta.read_text()
    if change == "edited":
        fasta.write_text(text.replace(">r55\n", ">r55\nM"))
    elif change == "shorter":
        fasta.write_text(text[: text.index(">r50\n")])
    else:
        fasta.write_text(text + ">more\nMK\n")
    outcome = embed(*job, output)
    assert outcome.status == 1
    message = {
        "edited": "records from number 51 on differ",
        "shorter": "holds 5 parts beyond the end of the input",
        # Ten full parts are still the first ten; what came on would be an eleventh.
        "longer": f"the input is longer than when {output} was finished: it has records from number 101 on",
    }
    assert message[change] in outcome.stderr
    assert outcome.stderr.count("\n") == 1


@pytest.mark.parametrize("extended", [False, True], ids=["a job", "an extension"])
def test_the_same_files_are_the_same_job_however_their_paths_are_written(
    embed: Embed, job: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, extended: bool
) -> None:
    """Relative, with a detour, absolute, through a link, from elsewhere: told apart by where they lie."""
    home, output, fasta = tmp_path / "k", tmp_path / "out", tmp_path / "proteins.fasta"
    home.mkdir()
    os.link(fasta, home / "in.fasta")
    (tmp_path / "link").symlink_to(home)
    os.link(fasta, tmp_path / "other.fasta")

    def run(path: str) -> Outcome:
        if extended:
            more = ("--part-records", 10, "--output", output)
            return embed("--extend", small, "--input", path, "--level", "L2", *more)
        return embed(*job[:2], "--input", path, "--part-records", 10, "--output", output)

    monkeypatch.chdir(tmp_path)
    small = tmp_path / "small"
    embed(*job[:2], "--input", "k/in.fasta", "--level", "L0", "--part-records", 10, "--output", small)
    assert run("k/in.fasta").status == 0
    whole = content_hashes(output)
    for place, path in {
        tmp_path: "./k/in.fasta",
        home: "../k/../k/in.fasta",
        output: str(home / "in.fasta"),
        small: "../link/in.fasta",
    }.items():
        monkeypatch.chdir(place)
        parts(output)[4].unlink()
        outcome = run(path)
        assert outcome.status == 0, outcome.stderr
        assert content_hashes(output) == whole, "under the name that it was begun with"
    assert set(read(output)["source"].to_pylist()) == {"k/in.fasta"}
    monkeypatch.chdir(tmp_path)
    assert "inputs was ['k/in.fasta'] and is now ['other.fasta']" in run("other.fasta").stderr
    if extended:
        small = tmp_path / "k" / ".." / "small"
        assert run("k/in.fasta").status == 0, "the extended folder's path is written otherwise"


def test_a_manifest_without_places_is_gone_on_with(
    embed: Embed, job: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of versions that noted the names alone, which count from where the job is given again."""
    monkeypatch.chdir(tmp_path)
    arguments = [*job[:2], "--part-records", 10, "--output", "out", "--input"]
    assert embed(*arguments, "proteins.fasta").status == 0
    manifest = json.loads((tmp_path / "out" / "_manifest.json").read_text())
    assert manifest.pop("files") == [
        {"path": str(tmp_path / "proteins.fasta"), "bytes": (tmp_path / "proteins.fasta").stat().st_size}
    ]
    (tmp_path / "out" / "_manifest.json").write_text(json.dumps(manifest))
    assert embed(*arguments, tmp_path / "proteins.fasta").status == 0
    assert embed(*arguments, "./proteins.fasta").status == 0


def test_an_input_that_grew_before_a_job_was_finished_is_read_as_it_is_now_and_said(
    embed: Embed, job: list[object], tmp_path: Path
) -> None:
    output, fasta = tmp_path / "out", tmp_path / "proteins.fasta"
    before = fasta.read_text()
    fasta.write_text(before[: before.index(">r50\n")])
    embed(*job, output)
    manifest = json.loads((output / "_manifest.json").read_text())
    (output / "_manifest.json").write_text(json.dumps({**manifest, "status": "running"}))
    fasta.write_text(before)
    outcome = embed(*job, output)
    assert outcome.status == 0, outcome.stderr
    assert f"{fasta} had {manifest['files'][0]['bytes']:,} bytes when {output} was begun" in outcome.stderr
    embed(*job, tmp_path / "whole")
    assert content_hashes(output) == content_hashes(tmp_path / "whole")


def test_a_second_job_on_the_same_folder_is_refused(job: list[object], tmp_path: Path, embed: Embed) -> None:
    output = tmp_path / "out"
    reader, writer = os.pipe()
    # A job that waits for its input holds the folder, and nothing here depends on how fast anything is.
    waiting = [*job[:2], "--input", "-", "--part-records", 1, "--output", output]
    first = subprocess.Popen(command(*waiting), env=environment(), stdin=reader, stdout=subprocess.PIPE, text=True)
    try:
        os.close(reader)
        with os.fdopen(writer, "w") as pipe:
            pipe.write(">a\nMKTAY\n>b\nMKTAYI\n")
            pipe.flush()
            deadline = time.monotonic() + 120
            while not (output / "_manifest.json").exists() and time.monotonic() < deadline:
                time.sleep(0.1)
            outcome = embed(*waiting)
        assert first.communicate(timeout=120)[0].startswith("2 records: 2 written")
    finally:
        first.kill()
    assert outcome.status == 1
    assert outcome.stderr == (
        f"rd-hf embed: error: {output} is in use by another run of an embedding job: wait for it, or choose another "
        "--output\n"
    )


def test_a_full_disk_is_one_sentence_and_what_was_finished_stays(
    embed: Embed, job: list[object], tmp_path: Path, small_disk: Callable[[str], Path]
) -> None:
    disk = small_disk("size=64k")
    output = disk / "out"
    outcome = embed(*job, output)
    assert outcome.status == 1
    assert outcome.stderr == (
        f"rd-hf embed: error: {output} is full (No space left on device): free some space and give the same command "
        "again; what is finished is kept\n"
    )
    # A part is finished when its journal entry is there; the disk may have been full just before that.
    journal = [output / ".job" / f"{path.stem.rsplit('-', 1)[1]}.json" for path in parts(output)]
    finished = {
        path.name: path.stat().st_mtime_ns for path, entry in zip(parts(output), journal, strict=True) if entry.exists()
    }
    assert finished
    assert not list(output.rglob("*.tmp"))
    subprocess.run(["mount", "-o", "remount,size=10m", disk], check=True)
    assert embed(*job, output).status == 0
    assert {name: (output / name).stat().st_mtime_ns for name in finished} == finished
    embed(*job, tmp_path / "whole")
    assert content_hashes(output) == content_hashes(tmp_path / "whole")


def test_a_folder_that_cannot_be_written_to_is_one_sentence(
    embed: Embed, job: list[object], small_disk: Callable[[str], Path], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    outcome = embed(*job, tmp_path / "file" / "out")
    assert outcome.status == 1
    assert "cannot be written to (Not a directory): choose another --output" in outcome.stderr
    outcome = embed(*job, small_disk("ro") / "out")
    assert outcome.status == 1
    assert "cannot be written to (Read-only file system): choose another --output" in outcome.stderr
    assert outcome.stderr.count("\n") == 1


def test_a_folder_with_other_things_in_it_is_left_alone(embed: Embed, job: list[object], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("do not lose")
    outcome = embed(*job, tmp_path / "out")
    assert outcome.status == 1
    assert "holds other files (thesis.txt) and nothing that says they are an embedding job's" in outcome.stderr


def test_a_gzip_cut_short_stops_the_job_and_keeps_its_finished_parts(
    embed: Embed, tmp_path: Path, tiny_checkpoint: Path
) -> None:
    whole = gzip.compress(random_fasta(tmp_path / "p.fasta", 300).read_bytes())
    path, output = tmp_path / "p.fasta.gz", tmp_path / "out"
    path.write_bytes(whole[: len(whole) * 2 // 3])
    job = ("--model", tiny_checkpoint, "--input", path, "--part-records", 20, "--output", output)
    outcome = embed(*job)
    assert outcome.status == 1
    assert f"{path} is damaged after record " in outcome.stderr
    assert "fetch the file again" in outcome.stderr
    finished = {part.name: part.stat().st_mtime_ns for part in parts(output)}
    assert len(finished) >= 3
    path.write_bytes(whole)
    assert "300 records: 299 written, 1 rejected" in embed(*job).stdout
    assert {name: (output / name).stat().st_mtime_ns for name in finished} == finished


def test_two_processes_killed_and_started_again_write_what_one_writes(reference: Reference, tmp_path: Path) -> None:
    output = tmp_path / "out"
    job = (*reference.arguments, output)
    process = subprocess.Popen(
        command(*job, launcher=TWO_PROCESSES),
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while len(list((output / ".job").glob("*.json"))) < 2 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    kill(process)
    outcome = run_process(*job, launcher=TWO_PROCESSES)
    assert outcome.status == 0, outcome.stderr
    assert "100 records: 99 written, 1 rejected" in outcome.stdout
    assert outcome.stdout.count("records:") == 1, "the main process alone speaks"
    assert content_hashes(output) == content_hashes(reference.folder)
