"""The job on a real Ray cluster of two nodes: the folder of the local job, whatever is lost on the way.

``RD_HF_FULL=1`` also runs two proteomes in ten files through ten losses.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rd_hf.data.fasta import read_fasta
from tests.conftest import environment, random_model
from tests.embedding.conftest import Outcome, command, content_hashes, parts, random_fasta, read, run_process

pytest.importorskip("ray")

from rd_hf.embedding.ray import RaySettings
from rd_hf.embedding.ray.cluster import joined
from tests.embedding.ray_cluster import RayCluster, two_nodes
from tests.embedding.test_quantization import whitened_model

Embed = Callable[..., Outcome]
FULL = bool(os.environ.get("RD_HF_FULL"))


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    with two_nodes() as found:
        yield found


@pytest.fixture(scope="module")
def connected(cluster: RayCluster) -> Iterator[RayCluster]:
    """The cluster, joined by this process once for all its jobs, whose tasks then find worker processes that run."""
    with joined(RaySettings(address=cluster.address)):
        yield cluster


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The same kind of proteins in four formats, with what is odd in real files."""
    folder = tmp_path_factory.mktemp("inputs")
    fasta = random_fasta(folder / "first.fasta", 140, seed=1, longest=800)
    odd = ">bad\nMK*T\n>\nMKT\n>p\xff one\nMKL\n>empty\n\n>bytes\nMK\xffT\n".encode("latin-1")
    (folder / "second.fa.gz").write_bytes(gzip.compress(fasta.read_bytes()[:6000] + b"\n" + odd))
    # To readers that guess types, the first two ids and sequences are missing values and numbers.
    (folder / "third.csv").write_text('id,sequence\nNA,NA\n1e5,MKT\n,MKV\n"a,b",GAV\nx,M1\n')
    (folder / "fourth.jsonl").write_text("".join(json.dumps({"id": n, "sequence": "MKT" * n}) + "\n" for n in range(9)))
    pq.write_table(pa.table({"name": ["q1", "q2"], "seq": ["MKTAY", None]}), folder / "fifth.parquet")
    return sorted(folder.iterdir(), key=lambda path: ["fi", "se", "th", "fo"].index(path.name[:2]))


@pytest.fixture(scope="module")
def job(tiny_checkpoint: Path, inputs: list[Path]) -> list[object]:
    """A command of several parts that lie across the inputs, all but its --output."""
    return ["--model", tiny_checkpoint, "--input", *inputs, "--part-records", 5, "--output"]


@pytest.fixture(scope="module")
def local(job: list[object], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the local job makes of it."""
    folder = tmp_path_factory.mktemp("local") / "out"
    assert run_process(*job, folder).status == 0
    return folder


def on(cluster: RayCluster, *more: object) -> list[object]:
    return ["--engine", "ray", "--address", cluster.address, *more]


def on_one(cluster: RayCluster) -> list[object]:
    """With one worker: a second one would import torch beside it, and serves no claim of the test."""
    return on(cluster, "--workers", 1)


def manifest(folder: Path) -> dict[str, object]:
    return json.loads((folder / "_manifest.json").read_text())


def test_the_folder_is_that_of_the_local_job(
    cluster: RayCluster, job: list[object], local: Path, tmp_path: Path
) -> None:
    """Every byte: the records, their order, rejects, values and checksums, so that all that reads one reads both."""
    outcome = run_process(*job, tmp_path / "out", *on(cluster))
    assert outcome.status == 0, outcome.stderr
    assert content_hashes(tmp_path / "out") == content_hashes(local)
    assert manifest(tmp_path / "out") == manifest(local)
    counts = manifest(local)["counts"]
    assert isinstance(counts, dict)
    words = f"{counts['records']} records: {counts['written']} written, {counts['rejected']} rejected\n"
    assert outcome.stdout.startswith(words)
    assert "0 of them from an earlier run" in outcome.stdout
    # The inputs' own news, once each, and nothing of Ray's.
    said = outcome.stderr.splitlines()
    assert len(said) == 1, outcome.stderr
    assert "bytes of ids or headers" in said[0]
    assert {path.name for path in (tmp_path / "out" / ".job").iterdir()} == {
        path.name for path in (local / ".job").iterdir()
    }, "staged files and signs are cleared away"


@pytest.mark.parametrize("dtype", ["int8", "binary"])
def test_bytes_in_blocks_are_those_of_the_local_job(connected: RayCluster, tmp_path: Path, dtype: str) -> None:
    model = whitened_model(tmp_path / "model")
    fasta = random_fasta(tmp_path / "p.fasta", 20, longest=40)
    words = ["--model", model, "--input", fasta, "--part-records", 7, "--output-dtype", dtype, "--layout", "blocks"]
    assert run_process(*words, "--output", tmp_path / "local").status == 0
    outcome = run_process(*words, "--output", tmp_path / "ray", *on_one(connected))
    assert outcome.status == 0, outcome.stderr
    assert content_hashes(tmp_path / "ray") == content_hashes(tmp_path / "local")


def test_its_default_is_that_of_every_other_entry_point_and_its_inputs_are_known_by_place(
    connected: RayCluster, tmp_path: Path, embed: Embed
) -> None:
    """A level 320 wide on the cluster, one of 64 here: the common columns are the same bits."""
    random_model([64, 320], ["narrow", "wide"], layers=1).save_pretrained(tmp_path / "model")
    fasta = random_fasta(tmp_path / "in.fasta", 12, seed=2)
    asked = ("--model", tmp_path / "model", "--part-records", 4, "--input")
    outcome = embed(*asked, fasta, "--output", tmp_path / "wide", *on_one(connected))
    assert outcome.status == 0, outcome.stderr
    assert embed(*asked, fasta, "--output", tmp_path / "narrow", "--level", "narrow").status == 0
    wide, narrow = (np.stack(read(tmp_path / name)["embedding"].to_numpy()) for name in ("wide", "narrow"))
    assert wide.shape == (11, 320)
    assert np.array_equal(wide[:, :64], narrow)
    # What came on since makes a part of its own.
    fasta.write_text(fasta.read_text() + ">more\nMKTAY\n")
    outcome = embed(
        *asked, f"{tmp_path}/../{tmp_path.name}/in.fasta", "--output", tmp_path / "wide", *on_one(connected)
    )
    assert outcome.status == 1
    assert "the input is longer than when" in outcome.stderr
    assert "has records from number 13 on" in outcome.stderr


def test_it_takes_up_what_the_local_job_left_off(
    connected: RayCluster, job: list[object], local: Path, tmp_path: Path, embed: Embed
) -> None:
    output = Path(shutil.copytree(local, tmp_path / "out"))
    whole = len(parts(output))
    parts(output)[2].unlink()  # lost since it was noted
    (output / ".job" / "000004.json").unlink()  # written, not yet noted
    times = {path.name: path.stat().st_mtime_ns for path in parts(output)}
    content = {**manifest(output), "status": "running"}
    (output / "_manifest.json").write_text(json.dumps(content))
    outcome = embed(*job, output, *on_one(connected))
    assert outcome.status == 0, outcome.stderr
    assert "embeddings-000002.parquet is not as it was written: doing part 2 again" in outcome.stderr
    assert f"{whole} parts, {whole - 2} of them from an earlier run" in outcome.stdout
    assert content_hashes(output) == content_hashes(local)
    done_again = {path.name for path in parts(output) if path.stat().st_mtime_ns != times.get(path.name)}
    assert done_again == {"embeddings-000002.parquet", "embeddings-000004.parquet"}


def test_a_changed_input_another_option_and_a_foreign_folder_are_refused(
    connected: RayCluster, job: list[object], local: Path, inputs: list[Path], tmp_path: Path, embed: Embed
) -> None:
    output = Path(shutil.copytree(local, tmp_path / "out"))
    before = content_hashes(output)
    outcome = embed(*job, output, *on_one(connected), "--pooling", "max")
    assert outcome.status == 1
    assert "holds another job, which this one will not be mixed with: pooling was 'mean'" in outcome.stderr
    text = inputs[0].read_text()
    try:
        inputs[0].write_text(text.replace(">r55\n", ">r55\nM"))
        outcome = embed(*job, output, *on_one(connected))
    finally:
        inputs[0].write_text(text)
    assert outcome.status == 1
    assert "the input has changed since" in outcome.stderr
    assert content_hashes(output) == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("do not lose")
    outcome = embed(*job, tmp_path / "mine", *on_one(connected))
    assert outcome.status == 1
    assert "holds other files (thesis.txt)" in outcome.stderr
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_a_sequence_that_several_parts_share_is_computed_once(
    connected: RayCluster, tiny_checkpoint: Path, tmp_path: Path, embed: Embed
) -> None:
    generator = random.Random(0)
    proteins = ["".join(generator.choices("LAGVSERTIDPKQNFYMHWC", k=generator.randint(5, 90))) for _ in range(25)]
    # Each four times, in two inputs and with other letters' case; one that no protein is, too.
    texts = ["".join(f">{r}_{n}\n{s}\n" for r in range(2) for n, s in enumerate([*proteins, "M1"])) for _ in range(2)]
    (tmp_path / "a.fasta").write_text(texts[0])
    (tmp_path / "b.fasta").write_text(texts[1].lower())
    job: list[object] = ["--model", tiny_checkpoint, "--input", tmp_path / "a.fasta", tmp_path / "b.fasta"]
    job += ["--part-records", 10, "--output"]
    assert embed(*job, tmp_path / "local", "--width", 40).status == 0
    outcome = embed(*job, tmp_path / "out", *on_one(connected), "--width", 40, "--deduplicate")
    assert outcome.status == 0, outcome.stderr
    assert "25 sequences of 100 records lie in several parts, and are computed once" in outcome.stderr
    assert_same(tmp_path / "out", tmp_path / "local")
    residues = sum(map(len, proteins))
    tokens, padding = re.findall(r"([\d,]+) tokens computed.* ([\d.]+) % of them padding", outcome.stdout)[0]
    computed = int(tokens.replace(",", "")) * (1 - float(padding) / 100) - 2 * len(proteins)
    # A part that Ray happens to begin before the block that it shares computes for itself; four would be without.
    assert 0.99 * residues < computed < 2 * residues, "of 100 records 25 went through the model"


class Loss:
    """A job that is under way, and ways to take something from it.

    Args:
        cluster: that it runs on.
        arguments: of the job, --output included.
        journal: of its folder.
    """

    def __init__(self, cluster: RayCluster, arguments: list[object], journal: Path) -> None:
        self.cluster, self.arguments, self.journal = cluster, arguments, journal
        self.driver = self._start()

    def _start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            command(*self.arguments, *on(self.cluster)),
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def finished(self) -> int:
        return sum(path.stem.isdecimal() for path in self.journal.glob("*.json"))

    def wait_for(self, count: int) -> None:
        """Until so many parts more are finished than at the start, or the job has ended."""
        while self.finished() < count and self.driver.poll() is None:
            time.sleep(0.02)

    def worker(self, generator: random.Random) -> None:
        """Kill one process that embeds."""
        found = self.cluster.workers()
        if found:
            generator.choice(found).kill()

    def node(self, generator: random.Random) -> None:
        """Kill the second machine, with everything on it."""
        self.cluster.lose(self.cluster.nodes[0])

    def the_driver(self, generator: random.Random) -> None:
        """Kill the job itself, and give the same command again."""
        self.driver.kill()
        self.driver.communicate()
        self.driver = self._start()

    def end(self) -> tuple[str, str]:
        stdout, stderr = self.driver.communicate(timeout=900)
        assert self.driver.returncode == 0, stderr
        return stdout, stderr


def lost_parts(stdout: str) -> int:
    """Parts that were begun again, as the summary counts them."""
    found = [line for line in stdout.splitlines() if "were begun again" in line]
    return int(found[0].split()[0].replace(",", "")) if found else 0


def test_a_worker_a_machine_and_the_driver_lost_the_folder_is_the_same(
    cluster: RayCluster, job: list[object], local: Path, tmp_path: Path
) -> None:
    generator = random.Random(5)
    loss = Loss(cluster, [*job, tmp_path / "out"], tmp_path / "out" / ".job")
    for how, count in ((loss.worker, 2), (loss.node, 5), (loss.the_driver, 8)):
        loss.wait_for(count)
        assert loss.driver.poll() is None, "the job ended before anything was lost"
        how(generator)
    stdout, _ = loss.end()
    cluster.add()
    print(stdout)
    assert content_hashes(tmp_path / "out") == content_hashes(local)
    # What was in hand is lost, and with the driver what it had not yet taken: one each, and four.
    assert 1 <= lost_parts(stdout) <= 6
    assert not list((tmp_path / "out").rglob("*.tmp"))


@pytest.mark.skipif(not FULL, reason="RD_HF_FULL=1 runs it: ten runs of a minute")
def test_two_proteomes_survive_ten_losses(
    cluster: RayCluster, shared_data: Path, mini_checkpoint: Path, tmp_path: Path
) -> None:
    generator = random.Random(0)
    records = [
        record
        for name in ("ecoli_K12_UP000000625", "yeast_UP000002311")
        for record in read_fasta(shared_data / "sequences" / f"{name}.fasta.gz")
    ]
    share = -(-len(records) // 10)
    files = []
    for number in range(10):
        files.append(tmp_path / f"{number}.fasta.gz")
        text = "".join(f">{r.description}\n{r.sequence}\n" for r in records[number * share : (number + 1) * share])
        files[-1].write_bytes(gzip.compress(text.encode()))
    # All records, the first hundred residues of each: a run takes a minute, and most of it is in the parts.
    job: list[object] = ["--model", mini_checkpoint, "--level", "0.3M", "--long", "truncate", "--max-length", 100]
    job += ["--part-records", 200, "--input", *files, "--output"]
    subprocess.run(command(*job, tmp_path / "local"), env=environment(), check=True)
    whole = Loss(cluster, [*job, tmp_path / "whole"], tmp_path / "whole" / ".job")
    started = time.monotonic()
    print(whole.end()[0], f"{time.monotonic() - started:.0f} s")
    assert_same(tmp_path / "whole", tmp_path / "local")
    count = len(parts(tmp_path / "local"))
    twice = []
    for number in range(10):
        loss = Loss(cluster, [*job, tmp_path / "out"], tmp_path / "out" / ".job")
        # At any moment: while it starts and reads, or after some parts.
        moment = generator.randint(-count // 4, count - 3)
        if moment < 0:
            time.sleep(generator.uniform(0, 15))
        loss.wait_for(moment)
        ended = loss.driver.poll() is not None
        how = (loss.worker, loss.node, loss.the_driver)[number % 3]
        how(generator)
        stdout, _ = loss.end()
        twice.append(lost_parts(stdout))
        print(f"{how.__name__} lost after {moment} of {count} parts (ended: {ended}): {twice[-1]} parts begun twice")
        assert_same(tmp_path / "out", tmp_path / "local")
        shutil.rmtree(tmp_path / "out")
        if not cluster.nodes:
            cluster.add()
    print(f"{sum(twice)} of {10 * count} parts were begun twice")
    # What was in hand, and with the driver what it had not yet taken: two parts a worker at most.
    assert max(twice) <= 4


def assert_same(folder: Path, local: Path) -> None:
    """The same records, ids, rejects; embeddings to 1e-5, which is what float32 sums in another order differ by."""
    found, expected = read(folder), read(local)
    assert found.drop_columns("embedding") == expected.drop_columns("embedding")
    assert (folder / "_rejects.tsv").read_bytes() == (local / "_rejects.tsv").read_bytes()
    values, reference = (np.stack(table["embedding"].to_numpy()) for table in (found, expected))
    difference = np.linalg.norm(values - reference, axis=1) / np.linalg.norm(reference, axis=1)
    assert difference.max() <= 1e-5


def test_a_full_disk_is_one_sentence(
    connected: RayCluster, job: list[object], tmp_path: Path, small_disk: Callable[[str], Path], embed: Embed
) -> None:
    output = small_disk("size=160k") / "out"
    outcome = embed(*job, output, *on_one(connected))
    assert outcome.status == 1
    assert outcome.stderr.splitlines()[-1] == (
        f"rd-hf embed: error: {output} is full (No space left on device): free some space and give the same command "
        "again; what is finished is kept"
    )


def test_a_worker_without_the_package_is_one_sentence(
    cluster: RayCluster, job: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken" / "rd_hf").mkdir(parents=True)
    (tmp_path / "broken" / "rd_hf" / "__init__.py").write_text("raise ModuleNotFoundError('No module named rd_hf')\n")
    # Workers import from where the driver was started, too.
    monkeypatch.chdir(tmp_path)
    node = cluster.add(PYTHONPATH=str(tmp_path / "broken"))
    try:
        outcome = run_process(*job, tmp_path / "out", *on(cluster))
    finally:
        cluster.lose(node)
    assert outcome.status == 1
    assert re.search(r"the worker at \S+ cannot import rd_hf \(No module named rd_hf\): install rd_hf ", outcome.stderr)
    assert outcome.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists(), "nothing was begun"


def test_gpus_and_cpus_that_no_node_has_are_one_sentence(
    connected: RayCluster, job: list[object], tmp_path: Path, embed: Embed
) -> None:
    outcome = embed(*job, tmp_path / "out", *on(connected), "--gpus-per-worker", 1)
    assert outcome.status == 1
    assert outcome.stderr == (
        f"rd-hf embed: error: a worker is to have 1 GPU, and no node of the cluster at {connected.address} has more "
        "than 0: add nodes with GPUs, or give --gpus-per-worker 0\n"
    )
    outcome = embed(*job, tmp_path / "out", *on(connected), "--cpus-per-worker", 2)
    assert outcome.status == 1
    assert "a worker is to have 2 CPUs" in outcome.stderr
    assert not (tmp_path / "out").exists()


def test_an_address_where_nothing_listens_is_one_sentence(
    job: list[object], tmp_path: Path, embed: Embed, monkeypatch: pytest.MonkeyPatch
) -> None:
    # By the tests before, this process may be connected.
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    started = time.monotonic()
    outcome = embed(*job, tmp_path / "out", "--engine", "ray", "--address", "127.0.0.1:9")
    assert outcome.status == 1
    assert "nothing listens at 127.0.0.1:9 " in outcome.stderr
    assert outcome.stderr.count("\n") == 1
    assert time.monotonic() - started < 60
    assert embed(*job, tmp_path / "out", "--engine", "ray", "--address", "here").status == 1


def test_an_address_where_something_else_listens_is_one_sentence(
    job: list[object], tmp_path: Path, embed: Embed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("rd_hf.embedding.ray.cluster._ANSWERS_WITHIN", 4.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        outcome = embed(*job, tmp_path / "out", "--engine", "ray", "--address", address)
    assert outcome.status == 1
    assert outcome.stderr.startswith(f"rd-hf embed: error: no Ray cluster answers at {address} within 4 s")
    assert outcome.stderr.count("\n") == 1


def test_without_ray_it_says_what_to_install(
    job: list[object], tmp_path: Path, embed: Embed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    outcome = embed(*job, tmp_path / "out", "--engine", "ray")
    assert outcome.status == 1
    assert outcome.stderr == ('rd-hf embed: error: this needs ray, which is not installed: pip install "rd_hf[ray]"\n')


def test_a_job_keeps_its_own_words_at_sigterm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's handler, set as it starts, ends the process without any."""
    from rd_hf.embedding.ray import cluster

    def join(_: object) -> None:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(15))

    monkeypatch.setattr(cluster, "_join", join)
    monkeypatch.setattr(cluster, "_look_over", lambda _: None)
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.shutdown", lambda: None)
    before = signal.signal(signal.SIGTERM, handler := lambda *_: None)
    try:
        with joined(RaySettings()):
            assert signal.getsignal(signal.SIGTERM) is handler
    finally:
        signal.signal(signal.SIGTERM, before)


def test_nothing_of_a_cluster_of_its_own_is_left(job: list[object], local: Path, tmp_path: Path) -> None:
    """Without an address the job starts Ray on this machine, and ends it."""
    before = {process for process in psutil.process_iter() if "raylet" in process.name()}
    process = subprocess.Popen(
        command(*job, tmp_path / "out", "--engine", "ray", "--workers", 1),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    # Processes, not their numbers, which others get: psutil compares when they were started too.
    started: set[psutil.Process] = set()
    while process.poll() is None:
        with contextlib.suppress(psutil.NoSuchProcess):
            started |= set(psutil.Process(process.pid).children(recursive=True))
        time.sleep(0.2)
    assert process.returncode == 0, process.communicate()[1]
    assert started
    assert content_hashes(tmp_path / "out") == content_hashes(local)
    deadline = time.monotonic() + 30
    while left := {each for each in started - before if each.is_running()}:
        assert time.monotonic() < deadline, left
        time.sleep(0.2)
