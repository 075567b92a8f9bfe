"""Predictions: the numbers of the model itself, whichever way they are asked for; resumed, refused, nothing lost."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoTokenizer, pipeline

from rd_hf.__main__ import main
from rd_hf.data.batching import collate
from rd_hf.files import FolderError
from rd_hf.model.heads_rd_esm import RDEsmForSequenceClassification, RDEsmForTokenClassification
from rd_hf.training import PredictionSettings, TrainingSettings, predict, run_prediction, run_training
from tests.conftest import TWO_PROCESSES, environment
from tests.embedding.test_folder import snapshot
from tests.hub.local import hub_here
from tests.training.conftest import labelled, write_table
from tests.training.test_residues import chains
from tests.training.test_variants import WILD_TYPE, scan

PROTEINS = [row["sequence"] for row in labelled(25, seed=7)]
# In two of them nothing can be predicted.
SEQUENCES = [*PROTEINS[:4], "MK*TA*", *PROTEINS[4:], "", PROTEINS[0]]
Predict = Callable[..., pd.DataFrame]


def trained(model: Path, folder: Path, rows: list[dict[str, str]], **changed: Any) -> Path:
    source = write_table(folder / "labelled.csv", rows)
    own: dict[str, Any] = {"folds": 3, "inner_folds": 2, "device": "cpu", "output": folder / "head", **changed}
    run_training(TrainingSettings(model=str(model), input=str(source), **own), lambda _: None, show_progress=False)
    return folder / "head"


@pytest.fixture(scope="module")
def numbers(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A head of numbers at every level; the middle one answers."""
    return trained(tiny_checkpoint, tmp_path_factory.mktemp("numbers"), labelled(), target="score", level="L1")


@pytest.fixture(scope="module")
def classes(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tiny_checkpoint, tmp_path_factory.mktemp("classes"), labelled(), target="kind", level="L1")


@pytest.fixture(scope="module")
def residues(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = chains()
    return trained(tiny_checkpoint, tmp_path_factory.mktemp("residues"), rows, target="kind", unknown="?", level="L1")


@pytest.fixture
def proteins(tmp_path: Path) -> Path:
    path = tmp_path / "proteins.fasta"
    path.write_text("".join(f">p{number}\n{sequence}\n" for number, sequence in enumerate(SEQUENCES)))
    return path


@pytest.fixture
def ask(tmp_path: Path) -> Predict:
    """Predict, in parts of ten records, and read what comes out."""

    def make(model: Path, source: Path | None = None, name: str = "out", **changed: Any) -> pd.DataFrame:
        own = {"inputs": () if source is None else (str(source),), "part_records": 10, "device": "cpu", **changed}
        settings = PredictionSettings(model=str(model), output=str(tmp_path / name), **own)
        run_prediction(settings, report=lambda _: None, show_progress=False)
        return read(tmp_path / name)

    return make


def read(folder: Path) -> pd.DataFrame:
    files = sorted(folder.glob("predictions-*.parquet"))
    return pd.concat([pq.read_table(file).to_pandas() for file in files], ignore_index=True)


def embedded(model: Path, proteins: Path, output: Path, *words: str) -> Path:
    argv = ["embed", "--model", str(model), "--input", str(proteins), "--output", str(output), "--quiet", *words]
    assert main(argv) == 0
    return output


def logits(folder: Path, sequences: list[str], level: str | None = None) -> np.ndarray:
    """What the model itself says of each alone."""
    asked = {} if level is None else {"level": level}
    model = RDEsmForSequenceClassification.from_pretrained(folder, **asked).eval()
    with torch.inference_mode():
        return np.stack([model(*collate([sequence])).logits[0].numpy() for sequence in sequences])


def same(found: Any, expected: Any) -> None:
    """Within 1e-5 of the expected numbers' deviation."""
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * max(np.std(expected), 1e-3) + 1e-7)


def test_numbers_are_those_of_the_model_with_its_interval(
    numbers: Path, tiny_checkpoint: Path, proteins: Path, ask: Predict, tmp_path: Path
) -> None:
    found = ask(numbers, proteins)
    expected = logits(numbers, [*PROTEINS, PROTEINS[0]])[:, 0]
    assert list(found.columns) == ["record", "id", "prediction", "lower", "upper"]
    assert list(found["record"]) == [1, 2, 3, 4, *range(6, 27), 28]
    assert list(found["id"]) == [f"p{record - 1}" for record in found["record"]]
    same(found["prediction"], expected)
    half = json.loads((numbers / "training.json").read_text())["levels"]["L1"]["interval_half_width"]
    np.testing.assert_allclose(found["upper"] - found["prediction"], half, rtol=1e-4)
    np.testing.assert_allclose(found["prediction"] - found["lower"], half, rtol=1e-4)
    rejects = pd.read_csv(tmp_path / "out" / "_rejects.tsv", sep="\t")
    assert list(rejects["record"]) == [5, 27]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "_predictions.json", "_rejects.tsv", *(f"predictions-00000{number}.parquet" for number in range(3))
    ]  # fmt: skip
    same(
        ask(numbers, proteins, "small", level="L0")["prediction"], logits(numbers, [*PROTEINS, PROTEINS[0]], "L0")[:, 0]
    )
    # Of the model that was trained, at a larger level, and of the checkpoint with the heads itself.
    for name, model in (("base", tiny_checkpoint), ("own", numbers)):
        folder = embedded(
            model, proteins, tmp_path / f"embeddings-{name}", *(() if name == "own" else ("--level", "L2"))
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(predict, "run_job", lambda *_, **__: pytest.fail("no backbone is to run"))
            again = ask(numbers, None, f"from-{name}", embeddings=str(folder))
        same(again["prediction"], expected)
        assert (tmp_path / f"from-{name}" / "_rejects.tsv").read_bytes() == (folder / "_rejects.tsv").read_bytes()


def test_what_lies_on_the_hub_gives_the_same(
    numbers: Path, tiny_checkpoint: Path, proteins: Path, ask: Predict, tmp_path: Path
) -> None:
    expected = ask(numbers, proteins)
    folder = embedded(tiny_checkpoint, proteins, tmp_path / "embeddings", "--level", "L2")
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "p.fasta").write_bytes(proteins.read_bytes())
    with hub_here(tmp_path / "home") as hub:
        for name, place in (("files", tmp_path / "files"), ("embeddings", folder)):
            hub.add(f"datasets/me/{name}", place)
        url = "hf://datasets/me/files/p.fasta"
        found = ask(numbers, None, "files-there", inputs=(url,))
        again = ask(numbers, None, "embeddings-there", embeddings="hf://datasets/me/embeddings")
        assert found.equals(expected)
        same(again["prediction"], expected["prediction"])
        rejects = [(tmp_path / one / "_rejects.tsv").read_bytes() for one in ("embeddings-there", "embeddings")]
        assert rejects[0] == rejects[1]
        # What has moved on is another input.
        (tmp_path / "files" / "p.fasta").write_text(">a\nMKTAYIAKQR\n")
        hub.add("datasets/me/files", tmp_path / "files")
        with pytest.raises(FolderError, match="the inputs were others"):
            ask(numbers, None, "files-there", inputs=(url,))


def test_classes_are_those_of_the_pipeline(classes: Path, proteins: Path, ask: Predict) -> None:
    found = ask(classes, proteins)
    model = RDEsmForSequenceClassification.from_pretrained(classes).eval()
    asked = pipeline(
        "text-classification", model=model, tokenizer=AutoTokenizer.from_pretrained(classes), top_k=None, device="cpu"
    )
    assert list(found.columns) == ["record", "id", "label", "probability_high", "probability_low"]
    for row, sequence in zip(found.itertuples(), [*PROTEINS, PROTEINS[0]], strict=True):
        (said,) = asked([sequence])
        chances = {one["label"]: one["score"] for one in said}
        assert row.label == said[0]["label"]
        same([row.probability_high, row.probability_low], [chances["high"], chances["low"]])


def test_residues_are_a_string_and_on_request_probabilities(
    residues: Path, tiny_checkpoint: Path, proteins: Path, ask: Predict, tmp_path: Path
) -> None:
    found = ask(residues, proteins, probabilities=True)
    model = RDEsmForTokenClassification.from_pretrained(residues).eval()
    for row, sequence in zip(found.itertuples(), [*PROTEINS, PROTEINS[0]], strict=True):
        with torch.inference_mode():
            chances = torch.softmax(model(*collate([sequence])).logits[0, 1:-1], dim=-1).numpy()
        assert row.labels == "".join(model.config.id2label[number] for number in chances.argmax(axis=1))
        same(np.stack(row.probabilities), chances)
    assert list(ask(residues, proteins, "short").columns) == ["record", "id", "labels"]
    folder = embedded(tiny_checkpoint, proteins, tmp_path / "embeddings", "--pooling", "residue")
    assert list(ask(residues, None, "from", embeddings=str(folder))["labels"]) == list(found["labels"])


def test_of_variants_others_are_rejected(tiny_checkpoint: Path, ask: Predict, tmp_path: Path) -> None:
    (tmp_path / "wt.fasta").write_text(f">wt\n{WILD_TYPE}\n")
    head = trained(
        tiny_checkpoint, tmp_path, scan(), target="score", mutant="mutant", wild_type=str(tmp_path / "wt.fasta")
    )
    variants = [WILD_TYPE, "W" * len(WILD_TYPE), "A" + WILD_TYPE[1:], WILD_TYPE[:-1], WILD_TYPE[:-1] + "W"]
    source = tmp_path / "variants.fasta"
    source.write_text("".join(f">v{number}\n{sequence}\n" for number, sequence in enumerate(variants)))
    found = ask(head, source, part_records=2)
    assert list(found["id"]) == ["v0", "v2", "v4"]
    same(found["prediction"], logits(head, [variants[0], variants[2], variants[4]])[:, 0])
    rejects = pd.read_csv(tmp_path / "out" / "_rejects.tsv", sep="\t")
    assert list(rejects["id"]) == ["v1", "v3"]
    assert "is no variant of the 20 residues" in rejects["reason"][0]
    folder = embedded(tiny_checkpoint, source, tmp_path / "embeddings")
    with pytest.raises(ValueError, match="are of variants of one protein and need their sequences"):
        ask(head, None, "from", embeddings=str(folder))
    with pytest.raises(ValueError, match=r"record 2 \(v1\): it is no variant"):
        ask(head, source, "strict", strict=True)


def test_stopped_anywhere_the_same_settings_end_it_to_the_same_bytes(
    numbers: Path, proteins: Path, ask: Predict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask(numbers, proteins, "whole")
    expected = snapshot(tmp_path / "whole")
    for name in ("_embed", "_write", "_complete", "_end"):
        with monkeypatch.context() as patch:
            method, calls = getattr(predict._Prediction, name), []

            def stop(*words: Any, calls: list[Any] = calls, method: Any = method) -> Any:
                calls.append(words)
                if len(calls) == 2 or method.__name__ != "_write":
                    raise KeyboardInterrupt
                return method(*words)

            patch.setattr(predict._Prediction, name, stop)
            with pytest.raises(KeyboardInterrupt):
                ask(numbers, proteins)
        with pytest.raises(ValueError, match=r"holds another prediction, .* the inputs were others; level was 'L1'"):
            ask(numbers, numbers.parent / "labelled.csv", level="L0")
        ask(numbers, proteins)
        assert snapshot(tmp_path / "out") == expected, name
        shutil.rmtree(tmp_path / "out")


def test_a_finished_folder_has_nothing_left_to_do(
    numbers: Path, proteins: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = ["predict", "--model", str(numbers), "--input", str(proteins), "--output", str(tmp_path / "out")]
    assert main(argv) == 0
    assert "28 records: 26 predicted at level L1, 2 rejected" in capsys.readouterr().out
    before = snapshot(tmp_path / "out")
    monkeypatch.setattr(predict, "run_job", lambda *_, **__: pytest.fail("nothing is left to do"))
    assert main(argv) == 0
    assert "nothing is left to do" in capsys.readouterr().out
    assert snapshot(tmp_path / "out") == before
    part = tmp_path / "out" / "predictions-000000.parquet"
    part.write_bytes(part.read_bytes()[:-9] + b"123456789")
    assert main(argv) == 1
    assert "is not as it was written" in capsys.readouterr().err


def test_two_processes_write_what_one_writes(numbers: Path, proteins: Path, ask: Predict, tmp_path: Path) -> None:
    ask(numbers, proteins, "one")
    words = ["predict", "--model", numbers, "--input", proteins, "--output", tmp_path / "two", "--part-records", 10]
    command = [*TWO_PROCESSES, "-m", "rd_hf", *map(str, words)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    same(read(tmp_path / "two")["prediction"], read(tmp_path / "one")["prediction"])
    assert (tmp_path / "two" / "_rejects.tsv").read_bytes() == (tmp_path / "one" / "_rejects.tsv").read_bytes()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--normalize",), "holds normalised embeddings, and the head of"),
        (("--pooling", "max"), "was made with --pooling max, and the head of"),
        (("--level", "L0"), "holds level L0, which is less than level L1 of the head"),
    ],
)
def test_embeddings_that_the_head_does_not_answer_of_are_refused(
    words: tuple[str, ...], says: str, numbers: Path, tiny_checkpoint: Path, proteins: Path, ask: Predict,
    tmp_path: Path,
) -> None:  # fmt: skip
    folder = embedded(tiny_checkpoint, proteins, tmp_path / "embeddings", *words)
    with pytest.raises(ValueError, match=says):
        ask(numbers, None, embeddings=str(folder))
    manifest = json.loads((folder / "_manifest.json").read_text())
    # As of a model that knows how to whiten.
    (folder / "_manifest.json").write_text(json.dumps(manifest | {"job": manifest["job"] | {"whiten": True}}))
    with pytest.raises(ValueError, match="holds whitened embeddings, and the head of"):
        ask(numbers, None, embeddings=str(folder))
    assert not (tmp_path / "out").exists()


def test_embeddings_of_another_model_are_refused(
    numbers: Path, mini_checkpoint: Path, proteins: Path, ask: Predict, tmp_path: Path
) -> None:
    folder = embedded(mini_checkpoint, proteins, tmp_path / "embeddings")
    with pytest.raises(ValueError, match="which is another model than"):
        ask(numbers, None, embeddings=str(folder))


def test_what_does_not_fit_is_one_sentence(
    numbers: Path, tiny_checkpoint: Path, proteins: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    given = ["--input", str(proteins)]
    for model, words, output, says in (
        (tiny_checkpoint, given, "out", "has no head that could predict: train one with rd-hf train"),
        (numbers, [*given, "--level", "L9"], "out", "has no head of level 'L9': give --level L0 or L1 or L2"),
        (numbers, [*given, "--probabilities"], "out", "--probabilities is of heads of residues"),
        (numbers, [], "out", "give proteins with --input, or a folder of their embeddings with --embeddings"),
        (numbers, given, "mine", "mine holds other files (notes.txt)"),
    ):
        argv = ["predict", "--model", str(model), *words, "--output", str(tmp_path / output), "--quiet"]
        assert main(argv) == 1, says
        error = capsys.readouterr().err
        assert says in error
        assert error.count("\n") == 1
        assert not (tmp_path / "out").exists()
