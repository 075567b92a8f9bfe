"""Several batches at once: handed out in order, bounded, and to the same bits as one after the other."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch

from rd_hf.embedding.concurrency import concurrency_for, in_order, may_share
from rd_hf.embedding.engine import Engine, Request
from rd_hf.embedding.job import run_job
from rd_hf.embedding.options import EmbeddingOptions
from rd_hf.embedding.settings import JobSettings
from rd_hf.model.modeling_rd_esm import RDEsmModel
from tests.embedding.conftest import content_hashes, random_fasta
from tests.embedding.test_engine import proteins

# What waits for another thread gives up after so many seconds: a failure, and not a test that never ends.
PATIENCE = 60


@pytest.fixture
def threads() -> Iterator[None]:
    """Torch with two threads, whatever the machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("threads", "batches", "concurrency"),
    [(1, 1000, 1), (2, 8, 2), (2, 7, 1), (8, 32, 8), (8, 31, 1), (12, 1000, 6), (64, 1000, 8), (13, 1000, 6)],
)
def test_threads_share_all_threads_where_batches_are_many(
    monkeypatch: pytest.MonkeyPatch, threads: int, batches: int, concurrency: int
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert concurrency_for(batches) == concurrency
    assert concurrency_for(batches, 1) == 1


def test_what_ends_later_is_still_handed_out_in_order(threads: None) -> None:
    second_ran = threading.Event()
    seen: list[int] = []

    def work(item: int) -> int:
        seen.append(torch.get_num_threads())
        if item == 0:
            assert second_ran.wait(PATIENCE)
        second_ran.set()
        return -item

    assert list(in_order(work, range(20), 2)) == [(item, -item) for item in range(20)]
    assert set(seen) == {1}
    assert torch.get_num_threads() == 2


def test_no_more_is_begun_than_lanes_need(threads: None) -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for item in range(100):
            taken.append(item)
            yield item

    with closing(in_order(lambda item: item, items(), 2)) as results:
        for done, _ in enumerate(results, start=1):
            assert len(taken) <= done + 3
            if done == 10:
                break
    assert len(taken) <= 13
    assert torch.get_num_threads() == 2


def test_an_error_comes_at_its_turn_and_nothing_goes_on_behind_it(threads: None) -> None:
    def work(item: int) -> int:
        if item == 3:
            raise ValueError("the fourth")
        return item

    results = in_order(work, range(100), 2)
    assert [next(results)[0] for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="the fourth"):
        next(results)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("rd_hf-batch")]
    assert torch.get_num_threads() == 2


class Counting:
    """A model that says how many batches it had at once at most, and may fail where they are more than one."""

    def __init__(self, model: RDEsmModel, alone: bool = False) -> None:
        self.model, self.alone = model, alone
        self.device, self.dtype, self.config, self.modules = model.device, model.dtype, model.config, model.modules
        self.most = self.running = 0
        self.lock = threading.Lock()
        self.two = threading.Event()

    def forward_window(self, window: list[dict[str, torch.Tensor]], level: str) -> object:
        with self.lock:
            self.running += 1
            self.most = max(self.most, self.running)
            if self.most > 1:
                self.two.set()
        try:
            if torch.get_num_threads() == 1:
                # In one thread: the other comes too, and then nobody waits any more.
                assert self.two.wait(PATIENCE)
            if self.alone and torch.get_num_threads() == 1:
                raise MemoryError
            return self.model.forward_window(window, level)
        finally:
            with self.lock:
                self.running -= 1


@pytest.mark.parametrize("pooling", ["mean", "residue"])
def test_threads_give_the_bits_of_one_batch_after_the_other(
    tiny_model: RDEsmModel, threads: None, pooling: str
) -> None:
    # Windows too: pieces of one sequence come from several batches, and their sums depend on the order.
    options = EmbeddingOptions(pooling=pooling, batch_tokens=120, max_length=50, overlap=20)
    requests = [Request(sequence) for sequence in proteins(60, 200)]
    told: list[tuple[int, int]] = []
    if not may_share(tiny_model):
        pytest.skip("this release of transformers keeps tables of a batch in the model")
    counting = Counting(tiny_model)
    engine = Engine(counting, "L2", options)  # type: ignore[arg-type]
    found = engine.embed(requests, lambda *step: told.append(step))
    assert counting.most == 2

    torch.set_num_threads(1)
    expected_steps: list[tuple[int, int]] = []
    alone = Engine(tiny_model, "L2", options)
    expected = alone.embed(requests, lambda *step: expected_steps.append(step))
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert told == expected_steps
    assert engine.work == alone.work


def test_where_memory_is_short_lanes_go_first(tiny_model: RDEsmModel, threads: None) -> None:
    if not may_share(tiny_model):
        pytest.skip("this release of transformers keeps tables of a batch in the model")
    options = EmbeddingOptions(batch_tokens=120)
    requests = [Request(sequence) for sequence in proteins(60, 100)]
    said: list[str] = []
    engine = Engine(Counting(tiny_model, alone=True), "L2", options, report=said.append)  # type: ignore[arg-type]
    results = engine.embed(requests)
    assert said == ["out of memory with 2 batches at once: going on with one at a time"]
    assert (engine.concurrency, engine.tokens) == (1, 120)
    for ours, theirs in zip(results, Engine(tiny_model, "L2", options).embed(requests), strict=True):
        # Two threads in place of one: sums in another order.
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    engine.embed(requests)
    assert len(said) == 1


def test_a_model_that_loads_its_backbones_in_turn_has_one_lane(tiny_model: RDEsmModel) -> None:
    assert Engine(tiny_model, "L2", EmbeddingOptions(), group_tokens=1000).concurrency == 1


def test_a_job_writes_the_same_bytes_whatever_number_of_lanes(
    tiny_checkpoint: Path, tmp_path: Path, threads: None
) -> None:
    if not may_share(RDEsmModel.from_pretrained(tiny_checkpoint)):
        pytest.skip("this release of transformers keeps tables of a batch in the model")
    fasta = random_fasta(tmp_path / "proteins.fasta", 100)
    hashes = []
    for count in (1, 2):
        torch.set_num_threads(count)
        output = tmp_path / f"threads-{count}"
        options = EmbeddingOptions(batch_tokens=200)
        run_job(
            JobSettings(str(tiny_checkpoint), (str(fasta),), str(output), options, part_records=50),
            show_progress=False,
        )
        hashes.append(content_hashes(output))
    assert hashes[0] == hashes[1]
