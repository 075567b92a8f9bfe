"""The tokenizer that travels: what `rd-hf embed` makes of a sequence, by every other road."""

from __future__ import annotations

import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from transformers import AutoTokenizer, EsmTokenizer, pipeline

from rd_hf.data.residues import RejectedSequenceError, clean_sequence, encode
from rd_hf.embedding import Embedder
from rd_hf.hub.card import render_card
from rd_hf.hub.tokenizer import build_tokenizer
from rd_hf.model.modeling_rd_esm import RDEsmModel, ResiduePooling
from tests.conftest import backbone_settings, pearson_records

SEQUENCES = {
    "as it is": "MKTAYIAKQR",
    "lower case": "mktayiakqr",
    "mixed case": "MKTayiAKqr",
    "J": "MKJTAYjIAKQR",
    "gaps": "--MKT..AY-IAKQR-",
    "final stop": "MKTAYIAKQR*",
    "final stops and gaps": "MKTAYIAKQR*-*.",
    "white space": " MKT AYI\tAKQ\nR\r\n",
    "rare residues": "MKXBZUOxbzuo",
}
REFUSED = ["MKT*AYI", "MK1T", "mkt5", "MKTÄ", "M\u212aT", "MK?T", "ß", "MK\u00a0T", "*"]


@pytest.fixture(scope="module")
def tokenizer(mini_checkpoint: Path) -> Any:
    return AutoTokenizer.from_pretrained(mini_checkpoint, trust_remote_code=True)


@pytest.fixture(scope="module")
def model(mini_checkpoint: Path) -> RDEsmModel:
    return RDEsmModel.from_pretrained(mini_checkpoint, level="0.3M")


@pytest.fixture(scope="module")
def embedder(mini_checkpoint: Path) -> Embedder:
    return Embedder(mini_checkpoint, level="0.3M", device="cpu")


@pytest.fixture(scope="module")
def sentence_transformer(mini_checkpoint: Path) -> Any:
    package = pytest.importorskip("sentence_transformers", exc_type=ImportError)
    return package.SentenceTransformer(
        str(mini_checkpoint), trust_remote_code=True, model_kwargs={"level": "0.3M"}, device="cpu"
    )


ALPHABET = st.sampled_from([*string.ascii_letters, *"-. \t\r\n\v\f**", *"0_?é\u212aßİ\u00a0\u200b"])


@given(st.text(ALPHABET, max_size=40))
@example("")
@example("*-*")
@example("MK*-*")
@example("*MK")
def test_ids_are_those_of_the_jobs_or_hold_what_the_model_refuses(text: str) -> None:
    ids = build_tokenizer().encode(text).ids
    try:
        expected = encode(clean_sequence(text))
    except RejectedSequenceError:
        assert 3 in ids or ids == [0, 2]
    else:
        assert ids == expected.tolist()


def test_clean_residues_are_esm2s_tokens_masks_and_pairs_too(tokenizer: Any, mini_checkpoint: Path) -> None:
    esm = EsmTokenizer.from_pretrained(mini_checkpoint)
    for text in ("LAGVSERTIDPKQNFYMHWCXBUZO", "MK<mask>TAY", "<mask>", "M K T"):
        assert tokenizer(text)["input_ids"] == esm(text)["input_ids"]
    assert tokenizer("MK", "TA")["input_ids"] == esm("MK", "TA")["input_ids"]
    assert tokenizer.decode(tokenizer("MKT")["input_ids"]) == esm.decode(esm("MKT")["input_ids"])
    batch = tokenizer(["MK", "MKTA"], padding=True, truncation=True, max_length=5, return_tensors="pt")
    assert batch["input_ids"].tolist() == [[0, 20, 15, 2, 1], [0, 20, 15, 11, 2]]
    assert set(batch) == {"input_ids", "attention_mask"}
    for name in ("cls", "pad", "eos", "unk", "mask"):
        assert getattr(tokenizer, f"{name}_token_id") == getattr(esm, f"{name}_token_id")
    assert len(tokenizer) == 33


def test_saved_again_it_is_the_same(tokenizer: Any, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    for text in SEQUENCES.values():
        assert again(text)["input_ids"] == tokenizer(text)["input_ids"]


def test_a_letter_a_word(tokenizer: Any) -> None:
    """As for labels of residues: a stop inside does not vanish."""
    assert tokenizer(list("mKT"), is_split_into_words=True)["input_ids"] == [0, 20, 15, 11, 2]
    assert 3 in tokenizer(list("MK*T"), is_split_into_words=True)["input_ids"]


def by_model(model: RDEsmModel, tokenizer: Any, **_: Any) -> Callable[[str], np.ndarray]:
    def embed(text: str) -> np.ndarray:
        with torch.no_grad():
            return model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0, 1:-1].mean(dim=0).numpy()

    return embed


def by_pipeline(model: RDEsmModel, tokenizer: Any, **_: Any) -> Callable[[str], np.ndarray]:
    extract = pipeline("feature-extraction", model=model, tokenizer=tokenizer, device="cpu")
    return lambda text: np.asarray(extract(text, return_tensors=True)[0, 1:-1].mean(dim=0))


def by_sentence_transformer(sentence_transformer: Any, **_: Any) -> Callable[[str], np.ndarray]:
    return lambda text: sentence_transformer.encode(text)


ROADS = {"model": by_model, "pipeline": by_pipeline, "sentence-transformers": by_sentence_transformer}


@pytest.fixture(scope="module", params=ROADS)
def road(request: pytest.FixtureRequest, model: RDEsmModel, tokenizer: Any) -> Callable[[str], np.ndarray]:
    extra = {}
    if request.param == "sentence-transformers":
        extra["sentence_transformer"] = request.getfixturevalue("sentence_transformer")
    return ROADS[request.param](model=model, tokenizer=tokenizer, **extra)


@pytest.mark.parametrize("text", SEQUENCES.values(), ids=SEQUENCES)
def test_every_road_gives_what_the_jobs_give(road: Callable[[str], np.ndarray], embedder: Embedder, text: str) -> None:
    (expected,) = embedder.embed([text])["embedding"]
    # Means of at most twelve float32 numbers, added up in another order.
    np.testing.assert_allclose(road(text), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("text", REFUSED)
def test_every_road_refuses_what_the_jobs_reject(road: Callable[[str], np.ndarray], text: str) -> None:
    with pytest.raises(RejectedSequenceError):
        clean_sequence(text)
    with pytest.raises(
        ValueError, match=r"input_ids hold <unk> \(residue \d+ of the sequence '.*\?.*'\): a character that is no resid"
    ):
        road(text)


@pytest.mark.parametrize("text", ["", "---", " \t"])
def test_a_mean_over_nothing_is_refused(sentence_transformer: Any, text: str) -> None:
    with pytest.raises(ValueError, match="no residues to take a mean over: leave out those that are empty, or gaps"):
        sentence_transformer.encode(["MKT", text])


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("MK*TAY", r"residue 3 of the sequence 'MK\?TAY'"),
        ("GSHM" * 10 + "1", "residue 41 of the sequence of 41 letters that begins 'GSHMGSHMGSHMGSHMGSHM'"),
    ],
)
def test_a_refused_sequence_is_named_as_its_owner_knows_it(sentence_transformer: Any, text: str, named: str) -> None:
    """Not by its row: sentence-transformers sorts what it is given."""
    with pytest.raises(ValueError, match=named):
        sentence_transformer.encode(["MK", text, "MKTAYIAKQRQISFVKSHFSRQMKTAYIAKQRQISFVKSHFSRQ"])


def test_a_refused_sequence_is_named_in_packed_and_in_left_padded_rows(model: RDEsmModel) -> None:
    packed = torch.tensor([[0, 20, 15, 2, 0, 20, 3, 11, 2, 0, 15, 2]])
    padded = torch.tensor([[1, 1, 0, 20, 3, 11, 2]])
    for ids in (packed, padded):
        with pytest.raises(ValueError, match=r"residue 2 of the sequence 'M\?T'"):
            model(ids)


def test_the_awkward_files(shared_data: Path, sentence_transformer: Any, embedder: Embedder, tokenizer: Any) -> None:
    """Every record that the job takes, by sentence-transformers; every one it rejects, refused."""
    taken = rejected = 0
    for path in sorted((shared_data / "fasta_awkward").iterdir()):
        if path.suffix == ".tsv" or "titin" in path.name:  # titin's 34,350 residues are read in windows by the job
            continue
        texts = [str(record.seq) for record in pearson_records(path)]
        for text in texts:
            try:
                clean = clean_sequence(text)
            except RejectedSequenceError:
                rejected += 1
                with pytest.raises(ValueError, match=r"<unk>|has no residues"):
                    sentence_transformer.encode(text)
            else:
                taken += 1
                assert tokenizer(text)["input_ids"] == encode(clean).tolist()
        good = [text for text in texts if text and 3 not in tokenizer(text)["input_ids"]]
        if good:
            expected = np.stack(embedder.embed(good)["embedding"])
            found = sentence_transformer.encode(good)
            # Means of up to 1,022 float32 numbers, added up in another order and in other batches.
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    print(f"{taken} records equal, {rejected} refused")
    assert (taken, rejected) == (106, 4)


# -- what the card says of it --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "text", "letters"),
    [
        ("takes lower case too", "mkTa", "MKTA"),
        ("reads J as X", "MJTj", "MXTX"),
        ("drops gaps (`-` and `.`), white space and stops (`*`) at the end", "-M.K T\n*", "MKT"),
        ("X, B, Z, U, O are residues", "XBZUO", "XBZUO"),
        ("any other character is refused", "MK1", None),
        ("any other character is refused", "M*K", None),
    ],
)
def test_the_card_says_what_the_tokenizer_does(words: str, text: str, letters: str | None, tokenizer: Any) -> None:
    config = RDEsmModel.config_class(levels=[{"name": "S", "backbone": backbone_settings(32)}])
    card = " ".join(render_card(config, repo_id="me/x", full=True).split())
    assert words in card
    ids = tokenizer(text)["input_ids"]
    assert 3 in ids if letters is None else ids == encode(letters).tolist()


# -- tokenizers that do not clean ---------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["mktayiakqr", "MKTayiAKQR", "MKJT", "MKT*"])
def test_esm2s_own_tokenizer_is_refused_where_it_does_not_know_a_letter(
    model: RDEsmModel, mini_checkpoint: Path, text: str
) -> None:
    """As checkpoints of version 0.1.0 carry it: runs of unknown letters are one token there."""
    batch = EsmTokenizer.from_pretrained(mini_checkpoint)(text, return_tensors="pt")
    with pytest.raises(ValueError, match="use the tokenizer that came with this model"):
        model(**batch)
    with pytest.raises(ValueError, match="use the tokenizer that came with this model"):
        ResiduePooling()({"input_ids": batch["input_ids"], "token_embeddings": torch.zeros(1, 3, 2)})


def test_gaps_that_a_tokenizer_left_are_no_residues(mini_checkpoint: Path) -> None:
    ids = EsmTokenizer.from_pretrained(mini_checkpoint)("M-K.T", return_tensors="pt")["input_ids"]
    embeddings = torch.tensor([0.0, 1, 10, 3, 10, 5, 0]).reshape(1, 7, 1)
    pooled = ResiduePooling()({"input_ids": ids, "token_embeddings": embeddings})["sentence_embedding"]
    assert pooled.item() == (1 + 3 + 5) / 3


def test_training_may_draw_any_token(model: RDEsmModel) -> None:
    model.train()
    try:
        model(torch.tensor([[0, 20, 3, 11, 2]]))
    finally:
        model.eval()
