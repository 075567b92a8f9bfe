"""NestedEmbedding: a transformer as scikit-learn knows them, which runs the model once a sequence."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV, KFold, cross_val_score
from sklearn.pipeline import Pipeline, make_pipeline

import rd_hf.sklearn
from rd_hf.data.records import InputError
from rd_hf.embedding import Embedder
from rd_hf.sklearn import NestedEmbedding, clear_cache

SEQUENCES = ["MKTAYIAKQR", "GSHMAS", "ACDEFGHIKLMNPQRSTVWY", "MKVLA", "MKTAYIAKQR", "WWWWY", "GGSGG", "PPKRE"]
SCORES = np.arange(8.0)
LEVELS = {"L0": 32, "L1": 48, "L2": 64}


@pytest.fixture(autouse=True)
def _empty_cache() -> Iterator[None]:
    clear_cache()
    yield
    clear_cache()


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every sequence that the model is run on."""
    seen: list[str] = []
    embed = Embedder.embed

    def watched(self: Embedder, sequences: Any, *others: Any) -> Any:
        seen.extend(sequences)
        return embed(self, sequences, *others)

    monkeypatch.setattr(Embedder, "embed", watched)
    return seen


@pytest.mark.parametrize("level", [None, *LEVELS])
@pytest.mark.parametrize("pooling", ["mean", "max", "cls"])
def test_it_gives_what_an_embedder_gives(tiny_checkpoint: Path, level: str | None, pooling: str) -> None:
    found = NestedEmbedding(tiny_checkpoint, level=level, pooling=pooling).fit_transform(SEQUENCES)
    assert found.shape == (8, LEVELS[level or "L2"])
    assert found.dtype == np.float32
    (expected,) = Embedder(tiny_checkpoint, level=level, pooling=pooling).embed(SEQUENCES).values()
    # Batches are made of other sequences.
    np.testing.assert_allclose(found, np.stack(expected), atol=1e-5, rtol=1e-5)


def test_it_keeps_scikit_learns_manners(tiny_checkpoint: Path) -> None:
    first = NestedEmbedding(tiny_checkpoint, level="L1", pooling="max")
    assert first.get_params() == {
        **{"model": tiny_checkpoint, "level": "L1", "pooling": "max", "embed_at": None, "whiten": False},
        **{"revision": None, "dtype": "float32", "device": None},
    }
    assert clone(first).get_params() == first.get_params()
    with pytest.raises(NotFittedError):
        first.transform(SEQUENCES)
    assert first.fit(SEQUENCES) is first
    assert first.get_params() == clone(first).get_params()
    assert (first.level_, first.n_features_out_) == ("L1", 48)
    names = first.get_feature_names_out()
    assert [names[0], names[-1], len(names)] == ["nestedembedding0", "nestedembedding47", 48]
    frame = first.set_output(transform="pandas").transform(SEQUENCES)
    assert list(frame.columns) == list(names)
    again = pickle.loads(pickle.dumps(first.set_output(transform="default")))
    np.testing.assert_array_equal(again.transform(SEQUENCES), first.transform(SEQUENCES))
    assert first.set_params(level="L0").fit(SEQUENCES).transform(SEQUENCES).shape == (8, 32)
    assert "level='L0'" in repr(first)


def test_a_search_over_levels_runs_the_model_once_a_sequence(tiny_checkpoint: Path, runs: list[str]) -> None:
    steps = Pipeline([("embedding", NestedEmbedding(tiny_checkpoint, embed_at="L2")), ("ridge", Ridge())])
    search = GridSearchCV(steps, {"embedding__level": list(LEVELS)}, cv=KFold(4), scoring="neg_mean_squared_error")
    search.fit(SEQUENCES, SCORES)
    assert sorted(runs) == sorted(set(SEQUENCES))
    for place, level in enumerate(LEVELS):
        # By hand: the same folds, from one embedding.
        rows = np.stack(Embedder(tiny_checkpoint, level=level).embed(SEQUENCES)["embedding"])
        expected = cross_val_score(Ridge(), rows, SCORES, cv=KFold(4), scoring="neg_mean_squared_error").mean()
        assert search.cv_results_["mean_test_score"][place] == pytest.approx(expected, rel=1e-4)
    assert search.predict(["MKV"]).shape == (1,)


def test_clones_and_folds_share_what_was_embedded(tiny_checkpoint: Path, runs: list[str]) -> None:
    steps = make_pipeline(NestedEmbedding(tiny_checkpoint, level="L1"), Ridge())
    cross_val_score(steps, SEQUENCES, SCORES, cv=KFold(4))
    assert sorted(runs) == sorted(set(SEQUENCES))
    # A smaller level is a cut, a larger one is not, and other choices are other embeddings.
    for level, pooling, times in (("L0", "mean", 1), ("L2", "mean", 2), ("L1", "mean", 2), ("L1", "max", 3)):
        NestedEmbedding(tiny_checkpoint, level=level, pooling=pooling, embed_at="L1").fit_transform(SEQUENCES)
        assert runs.count("GSHMAS") == times


def test_a_cut_is_the_smaller_level(tiny_checkpoint: Path) -> None:
    wide = NestedEmbedding(tiny_checkpoint, level="L2").fit_transform(SEQUENCES)
    for level, width in LEVELS.items():
        cut = NestedEmbedding(tiny_checkpoint, level=level, embed_at="L2").fit_transform(SEQUENCES)
        np.testing.assert_array_equal(cut, wide[:, :width])


def test_by_default_it_is_the_carried_model_wherever_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert NestedEmbedding(level="0.3M").fit(SEQUENCES).n_features_out_ == 64


def test_threads_share_one_cache(tiny_checkpoint: Path, runs: list[str]) -> None:
    transformer = NestedEmbedding(tiny_checkpoint).fit(SEQUENCES)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(transformer.transform, [SEQUENCES] * 8))
    assert all(np.array_equal(one, found[0]) for one in found)
    assert sorted(runs) == sorted(set(SEQUENCES))


def test_the_cache_is_bounded(tiny_checkpoint: Path, runs: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rd_hf.sklearn, "CACHE_BYTES", 3 * 64 * 4)
    transformer = NestedEmbedding(tiny_checkpoint)
    found = transformer.fit_transform(SEQUENCES)
    assert found.shape == (8, 64)
    assert rd_hf.sklearn._CACHE.bytes <= 3 * 64 * 4
    transformer.transform(["PPKRE"])
    assert runs.count("PPKRE") == 1
    transformer.transform(["MKTAYIAKQR"])
    assert runs.count("MKTAYIAKQR") == 2


@pytest.mark.parametrize(
    ("settings", "sequences", "message"),
    [
        ({}, [], "there are no sequences to embed"),
        ({}, "MKTAYIAKQR", "X must be a list of sequences"),
        ({}, np.array([["MKT"], ["GSH"]]), "X must be a list of sequences, or one column of them, not ndarray"),
        ({}, ["MKT", 7], r"row 2 of X \('7'\) cannot be embedded: the sequence is .*no text"),
        ({}, ["MKT", "GSH", "MK1"], r"row 3 of X \('MK1'\) cannot be embedded: "),
        ({"level": "L9"}, ["MKT"], "has no level 'L9'; its levels are L0, L1, L2"),
        ({"pooling": "residue"}, ["MKT"], "pooling must be one of mean, max, cls, which give a row a sequence"),
        ({"model": "nowhere-at-all"}, ["MKT"], "nowhere-at-all is no folder here"),
    ],
)
def test_what_it_cannot_take_is_said(tiny_checkpoint: Path, settings: Any, sequences: Any, message: str) -> None:
    with pytest.raises((InputError, ValueError), match=message):
        NestedEmbedding(**{"model": tiny_checkpoint, **settings}).fit_transform(sequences)
