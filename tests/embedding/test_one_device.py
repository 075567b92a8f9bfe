"""A folder is of one kind of device, and entry points compute in one dtype there: refused or equal, never mixed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from rd_hf.commands.search import main as search
from rd_hf.embedding import extension, run_job
from rd_hf.embedding import job as job_module
from rd_hf.embedding import worker as worker_module
from rd_hf.embedding.checkpoint import load_model
from rd_hf.embedding.dtypes import _FLAGS
from rd_hf.embedding.embedder import Embedder
from rd_hf.embedding.folder import JobError, OutputFolder
from rd_hf.embedding.options import EmbeddingOptions
from rd_hf.embedding.ray.job import _Driver
from rd_hf.embedding.settings import JobSettings
from rd_hf.evaluation.families import load_families, residue_states
from rd_hf.evaluation.options import EvaluationOptions
from rd_hf.fitting import FitOptions, FitSettings, run_fit
from rd_hf.hub import save_checkpoint
from rd_hf.model.modeling_rd_esm import RDEsmModel
from rd_hf.sklearn import NestedEmbedding, clear_cache
from rd_hf.training import PredictionSettings, TrainingSettings, run_prediction, run_training
from tests.conftest import random_model
from tests.embedding.conftest import content_hashes, random_fasta, read
from tests.training.conftest import labelled, write_table

WIDTHS = [32, 48]
# Of a vector's largest number: the same sums in another order.
ROUNDING = 1e-5


def as_if_on(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Jobs take this CPU for another kind of device."""
    for module in (job_module, worker_module, extension):
        monkeypatch.setattr(module, "kind_of", lambda device: kind)


@pytest.fixture
def settings(tiny_checkpoint: Path, tmp_path: Path) -> Callable[..., JobSettings]:
    fasta = random_fasta(tmp_path / "in.fasta", 20)

    def make(name: str = "out", **more: Any) -> JobSettings:
        more.setdefault("model", str(tiny_checkpoint))
        return JobSettings(inputs=(str(fasta),), output=str(tmp_path / name), device="cpu", part_records=5, **more)

    return make


def run(settings: JobSettings) -> Any:
    return run_job(settings, report=lambda _: None, show_progress=False)


def unfinished(folder: Path) -> dict[str, bytes]:
    """Make a finished folder one whose second part is yet to be done; what it then holds."""
    path = folder / "_manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "status": "running"}))
    (folder / "embeddings-000001.parquet").unlink()
    return {one.name: one.read_bytes() for one in folder.glob("*.parquet")}


@pytest.mark.parametrize("noted", [True, False], ids=["", "in the manifest of an earlier version"])
def test_a_folder_that_was_begun_on_a_cpu_does_not_go_on_on_a_gpu(
    settings: Callable[..., JobSettings], monkeypatch: pytest.MonkeyPatch, noted: bool
) -> None:
    run(settings())
    folder = Path(settings().output)
    whole = content_hashes(folder)
    path = folder / "_manifest.json"
    content = json.loads(path.read_text())
    assert content["device"] == "cpu"
    before = unfinished(folder)
    if not noted:
        path.write_text(json.dumps({key: one for key, one in json.loads(path.read_text()).items() if key != "device"}))
        assert run(settings()).parts_kept == 3, "what is not said is not compared"
        return
    with monkeypatch.context() as patch:
        as_if_on(patch, "cuda")
        with pytest.raises(JobError, match=r"was begun on cpu, and this is cuda, .*: go on with --device cpu, or"):
            run(settings())
    assert {one.name: one.read_bytes() for one in folder.glob("*.parquet")} == before
    assert run(settings()).parts_kept == 3
    assert content_hashes(folder) == whole


def test_a_finished_folder_is_found_finished_anywhere_and_mended_where_it_was_made(
    settings: Callable[..., JobSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(settings())
    as_if_on(monkeypatch, "cuda")
    assert run(settings()).parts_kept == 4
    (Path(settings().output) / "embeddings-000001.parquet").write_bytes(b"damaged")
    with pytest.raises(JobError, match="was begun on cpu, and this is cuda"):
        run(settings())


def test_another_process_of_another_kind_is_refused(
    settings: Callable[..., JobSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the main process is: this is what each asks before it loads a model."""
    monkeypatch.setattr(worker_module, "kind_of", lambda device: "cuda")
    with pytest.raises(JobError, match="was begun on cpu, and this is cuda"):
        run(settings())


def test_workers_of_a_cluster_are_of_one_kind(settings: Callable[..., JobSettings]) -> None:
    """Its driver knows by what the first of them answers."""
    run(settings())
    folder = OutputFolder(settings().output)
    content = folder.manifest() or {}
    folder.write_manifest({key: one for key, one in content.items() if key != "device"})
    driver = _Driver(settings(), None, None, folder, print, False)  # type: ignore[arg-type]
    for kind in ("cuda", "cuda"):
        driver._note_kind(kind)
    assert (folder.manifest() or {})["device"] == "cuda"
    with pytest.raises(JobError, match="was begun on cuda, and this is cpu"):
        driver._note_kind("cpu")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_folder_of_a_cpu_is_extended_on_a_gpu_in_float32_alone(
    settings: Callable[..., JobSettings], monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    options = {"options": EmbeddingOptions(levels=("L0",), dtype=dtype)}
    run(settings("small", **options))
    as_if_on(monkeypatch, "cuda")
    wide = settings("wide", extend=settings("small").output, options=EmbeddingOptions(levels=("L2",), dtype=dtype))
    if dtype == "bfloat16":
        with pytest.raises(JobError, match=r"computed in bfloat16 on cpu, and this is cuda, .*: give --device cpu, or"):
            run(wide)
        return
    run(wide)
    monkeypatch.undo()
    run(settings("scratch", options=EmbeddingOptions(levels=("L2",))))
    ours, theirs = (np.stack(read(Path(settings(name).output))["embedding"].to_numpy()) for name in ("wide", "scratch"))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=ROUNDING * np.abs(theirs).max())


def test_a_prediction_that_was_begun_on_a_cpu_does_not_go_on_on_a_gpu(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = trained(tiny_checkpoint, tmp_path)
    fasta = random_fasta(tmp_path / "in.fasta", 20)
    asked = PredictionSettings(
        str(head), str(tmp_path / "predicted"), inputs=(str(fasta),), device="cpu", part_records=5
    )

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("rd_hf.training.predict._Prediction._predict", killed)
        with pytest.raises(KeyboardInterrupt):
            run_prediction(asked, report=lambda _: None, show_progress=False)
    before = unfinished(tmp_path / "predicted" / ".embeddings")
    with monkeypatch.context() as patch:
        as_if_on(patch, "cuda")
        with pytest.raises(JobError, match="was begun on cpu, and this is cuda"):
            run_prediction(asked, report=lambda _: None, show_progress=False)
    assert {p.name: p.read_bytes() for p in (tmp_path / "predicted" / ".embeddings").glob("*.parquet")} == before
    assert run_prediction(asked, report=lambda _: None, show_progress=False).parts == 4


def trained(model: Path, folder: Path) -> Path:
    table = write_table(folder / "labelled.csv", labelled(30))
    how: dict[str, Any] = {"folds": 3, "inner_folds": 2, "device": "cpu", "level": "L1"}
    asked = TrainingSettings(model=str(model), input=str(table), target="score", output=folder / "head", **how)
    run_training(asked, lambda _: None, show_progress=False)
    return folder / "head"


# --- one dtype ------------------------------------------------------------------------------------------------

SEQUENCES = ["MKTAYIAKQR", "GSHMLEDPVD", "ACDEFGHIKL"]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A family whose weights are stored in bfloat16, which decides nothing."""
    model = random_model(WIDTHS, layers=1)
    for backbone in model.backbones:
        backbone.to(torch.bfloat16)
    model.config.dtype = torch.bfloat16
    save_checkpoint(model, tmp_path / "model", backbones=True)
    return tmp_path / "model"


@pytest.fixture
def dtypes(monkeypatch: pytest.MonkeyPatch) -> Iterator[set[torch.dtype]]:
    """Of every backbone that runs, on a processor that has bfloat16."""
    found: set[torch.dtype] = set()
    visit = RDEsmModel.visit_backbones

    def watched(self: RDEsmModel, *arguments: Any, **more: Any) -> None:
        found.update(parameter.dtype for parameter in self.backbones.parameters())
        visit(self, *arguments, **more)

    monkeypatch.setattr(RDEsmModel, "visit_backbones", watched)
    monkeypatch.setattr("rd_hf.embedding.dtypes._cpu_flags", lambda: set().union(*_FLAGS.values()))
    load_model.cache_clear()
    clear_cache()
    yield found
    load_model.cache_clear()
    clear_cache()


def _embedder(model: Path, folder: Path, **dtype: str) -> None:
    Embedder(model, device="cpu", **dtype).encode(SEQUENCES)


def _sklearn(model: Path, folder: Path, **dtype: str) -> None:
    NestedEmbedding(model, device="cpu", **dtype).fit_transform(SEQUENCES)


def _embed(model: Path, folder: Path, **dtype: str) -> None:
    fasta = random_fasta(folder / "in.fasta", 12)
    options = EmbeddingOptions(**dtype)  # type: ignore[arg-type]
    run(JobSettings(str(model), (str(fasta),), str(folder / "out"), options, device="cpu"))


def _search(model: Path, folder: Path, **dtype: str) -> None:
    """Queries are embedded as the folder was."""
    _embed(model, folder, **dtype)
    words = [folder / "out", "--input", folder / "in.fasta", "--output", folder / "hits.tsv", "--device", "cpu"]
    assert search([str(word) for word in words]) == 0


def _extend(model: Path, folder: Path, **dtype: str) -> None:
    fasta = random_fasta(folder / "in.fasta", 12)
    small, wide = (EmbeddingOptions(levels=(level,), **dtype) for level in ("L0", "L1"))  # type: ignore[arg-type]
    run(JobSettings(str(model), (str(fasta),), str(folder / "small"), small, device="cpu"))
    extended = str(folder / "small")
    run(JobSettings(str(model), (str(fasta),), str(folder / "wide"), wide, device="cpu", extend=extended))


def _fit(model: Path, folder: Path, **dtype: str) -> None:
    fasta, options = random_fasta(folder / "fit.fasta", 20), FitOptions(heldout_fraction=0.0)
    run_fit(FitSettings((str(fasta),), folder / "fitted", config=str(model), options=options, **dtype))


def _evaluate(model: Path, folder: Path) -> None:
    (family,) = load_families(EvaluationOptions(model=(str(model),), output=folder, device="cpu"))
    residue_states(family, SEQUENCES)


def _train(model: Path, folder: Path) -> None:
    trained(model, folder)


def _predict(model: Path, folder: Path, **dtype: str) -> None:
    head, fasta = trained(model, folder), random_fasta(folder / "in.fasta", 12)
    load_model.cache_clear()
    asked = PredictionSettings(str(head), str(folder / "predicted"), inputs=(str(fasta),), device="cpu", **dtype)
    run_prediction(asked, report=lambda _: None, show_progress=False)


EVERY = {"Embedder": _embedder, "sklearn": _sklearn, "embed": _embed, "search": _search, "extend": _extend}
EVERY |= {"fit": _fit, "predict": _predict}


@pytest.mark.parametrize("name", [*EVERY, "evaluate", "train"])
def test_every_entry_point_computes_in_float32_however_weights_are_stored(
    saved: Path, tmp_path: Path, dtypes: set[torch.dtype], name: str
) -> None:
    assert Accelerator(cpu=True).device.type == "cpu"
    {**EVERY, "evaluate": _evaluate, "train": _train}[name](saved, tmp_path)
    assert dtypes == {torch.float32}


@pytest.mark.parametrize("name", EVERY)
def test_every_entry_point_that_is_told_a_dtype_computes_in_it(
    saved: Path, tmp_path: Path, dtypes: set[torch.dtype], name: str
) -> None:
    EVERY[name](saved, tmp_path, dtype="bfloat16")
    # A training, from which a prediction begins, is in the default.
    assert dtypes - ({torch.float32} if name == "predict" else set()) == {torch.bfloat16}


def test_the_kind_is_that_of_the_name() -> None:
    from rd_hf.devices import kind_of

    assert [kind_of(name) for name in ("cpu", "cuda:1", "mps")] == ["cpu", "cuda", "mps"]
    assert kind_of(None) in ("cpu", "cuda", "mps")
