"""Weights of the first publication: written by its own code, imported here, compared with its own model."""

from __future__ import annotations

import io
import subprocess
import sys
import zipfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import EsmConfig, EsmModel

from rd_hf.families import ESM2, Member
from rd_hf.hub.checkpoint import save_checkpoint
from rd_hf.hub.options import ImportSettings
from rd_hf.hub.published import (
    PublishedFileError,
    Recipe,
    find_recipes,
    import_checkpoint,
    import_published,
    read_step,
)
from tests.conftest import REPOSITORY, backbone_settings

pytest.importorskip("esm")
published = pytest.importorskip("reverse_distillation.models.rd_model")

SIZES = ["8M", "35M", "150M"]
LAYERS = 2
PROTEINS = ["MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQ", "GSHMASMTGGQQMGRDPLE", "MSDKIIHLTDDSFDTDVLKADGAILVDFWAEWCGPCK"]
RECIPES = [Recipe(regressor, pca, "1k") for regressor in ("pcr", "linear", "ridge") for pca in ("fbpca", "incremental")]
# The published training fits on raw embeddings; fitted on accumulated ones, the same code gives the other kind.
FITTED = [("raw", recipe) for recipe in RECIPES] + [("accumulated", RECIPES[0])]


@pytest.fixture(scope="module")
def originals() -> dict[str, torch.nn.Module]:
    """fair-esm's own ESM-2 at the real widths, two layers each, random."""
    from esm.model import esm2

    models = {}
    for member in ESM2[: len(SIZES)]:
        torch.manual_seed(member.width)
        models[member.name] = esm2.ESM2(LAYERS, member.width, member.heads, "ESM-1b").eval()
    return models


@pytest.fixture(scope="module")
def tokens() -> torch.Tensor:
    from esm.data import Alphabet

    _, _, batch = Alphabet.from_architecture("ESM-1b").get_batch_converter()(
        [(str(i), p) for i, p in enumerate(PROTEINS)]
    )
    return batch


def as_esm_model(original: torch.nn.Module, member: Member) -> EsmModel:
    """The same weights in transformers' model."""
    renamed = [
        ("self_attn.q_proj", "attention.self.query"),
        ("self_attn.k_proj", "attention.self.key"),
        ("self_attn.v_proj", "attention.self.value"),
        ("self_attn.out_proj", "attention.output.dense"),
        ("self_attn_layer_norm", "attention.LayerNorm"),
        ("final_layer_norm", "LayerNorm"),
        ("fc1", "intermediate.dense"),
        ("fc2", "output.dense"),
    ]
    state = {}
    for key, value in original.state_dict().items():
        if key.startswith("layers.") and "rot_emb" not in key:
            key = key.replace("layers.", "encoder.layer.")
            for theirs, ours in renamed:
                key = key.replace(f".{theirs}.", f".{ours}.")
            state[key] = value
    state["embeddings.word_embeddings.weight"] = original.state_dict()["embed_tokens.weight"]
    for kind in ("weight", "bias"):
        state[f"encoder.emb_layer_norm_after.{kind}"] = original.state_dict()[f"emb_layer_norm_after.{kind}"]
    config = EsmConfig(**{**backbone_settings(member.width, LAYERS), "num_attention_heads": member.heads})
    model = EsmModel(config, add_pooling_layer=False).eval()
    absent, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    assert all("contact_head" in key or "inv_freq" in key for key in absent)
    return model


def states_of(originals: dict[str, torch.nn.Module], batch: torch.Tensor) -> dict[str, np.ndarray]:
    """Final hidden states of residues, (n, k) each."""
    residues = (batch > 3) & (batch < 32)
    with torch.inference_mode():
        return {
            name: model(batch, repr_layers=[LAYERS])["representations"][LAYERS][residues].numpy()
            for name, model in originals.items()
        }


@pytest.fixture(scope="module")
def weights(originals: dict[str, torch.nn.Module], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of .npz files, written by the published scaler: steps fitted on raw, and on accumulated, embeddings."""
    from reverse_distillation.scaler.rd import rdScaler

    generator = torch.Generator().manual_seed(0)
    states = states_of(originals, torch.randint(4, 24, (12, 130), generator=generator))
    # An untrained model's states hardly leave the span of twenty tokens; without some noise least squares would
    # divide by next to nothing, and float32 would disagree with itself.
    states = {
        name: state + 0.3 * torch.randn(state.shape, generator=generator).numpy() for name, state in states.items()
    }
    folders: dict[str, Path] = {}
    for kind, recipe in FITTED:
        if kind not in folders:
            folders[kind] = tmp_path_factory.mktemp(kind)
        small = states["8M"]
        for name_in, name_out in pairwise(SIZES):
            scaler = rdScaler(name_in, name_out, recipe.regressor, recipe.pca)
            # Its own fit() passes arguments that one of its regressors does not take; these are its parts.
            scaler.regressor.fit(small, states[name_out], validate=False)
            scaler.fit_pca(states[name_out] - scaler.predict_regressor(small))
            scaler.is_trained = True
            np.savez(folders[kind] / recipe.file(name_in, name_out), **scaler.get_state_dict())
            if kind == "raw":
                small = states[name_out]
            else:
                small = scaler.step(torch.from_numpy(small), torch.from_numpy(states[name_out])).numpy()
    return folders


def their_output(
    originals: dict[str, torch.nn.Module],
    folder: Path,
    recipe: Recipe,
    batch: torch.Tensor,
    monkeypatch: pytest.MonkeyPatch,
) -> dict[str, torch.Tensor]:
    """Representations of each level by the published model with the published loader."""
    from reverse_distillation.scaler import rd

    monkeypatch.setattr(rd, "hf_hub_download", lambda repo_id, filename: str(folder / Path(filename).name))
    for name in SIZES:
        monkeypatch.setitem(published.ESM2_CONFIGS[name], "layers", LAYERS)
    scalers = torch.nn.ModuleDict(
        {
            name: rd.rdScalerGPUOptimized.from_pretrained(f"rd.esm2/{name}:{recipe.regressor}-{recipe.pca}-1k")
            for name in SIZES[1:]
        }
    )
    model = published.RDESM(SIZES, torch.nn.ModuleDict(originals), scalers)
    model.special_tokens = [1, 32, 0, 2]
    with torch.inference_mode():
        representations: dict[str, torch.Tensor] = model(batch)["representations"]
    return representations


@pytest.mark.parametrize(("kind", "recipe"), FITTED, ids=str)
def test_the_import_computes_what_the_published_model_does(
    originals: dict[str, torch.nn.Module],
    weights: dict[str, Path],
    tokens: torch.Tensor,
    kind: str,
    recipe: Recipe,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    theirs = their_output(originals, weights[kind], recipe, tokens, monkeypatch)
    model, _ = import_published(weights[kind], "150M", recipe)
    model.backbones = torch.nn.ModuleList(as_esm_model(originals[member.name], member) for member in ESM2[: len(SIZES)])
    with torch.inference_mode():
        output = model(tokens)
    residues = (tokens > 3) & (tokens < 32)
    for level in SIZES[1:]:
        difference = (output.nested(level)[residues] - theirs[level][residues]).abs().max()
        print(f"{kind} {recipe} {level}: largest difference {difference:.2e}")
        # Both in float32, with W folded here and applied in two products there; values are of order one to four.
        assert difference < 1e-5


def test_what_a_step_was_fitted_on_is_read_from_the_file(weights: dict[str, Path]) -> None:
    pcr, ridge = Recipe("pcr", "fbpca", "1k"), Recipe("ridge", "fbpca", "1k")
    for kind in ("raw", "accumulated"):
        model, _ = import_published(weights[kind], "150M", pcr)
        assert model.config.bases["fitted_on"] == {"35M": "first level", "150M": kind}
    model, _ = import_published(weights["raw"], "150M", ridge)
    assert model.config.bases["fitted_on"] == {"35M": "first level", "150M": "unknown"}


def test_the_card_says_so_too(weights: dict[str, Path], tmp_path: Path) -> None:
    for kind in ("raw", "accumulated"):
        model, reports = import_published(weights[kind], "150M", Recipe("pcr", "fbpca", "1k"))
        folder = save_checkpoint(model, tmp_path / kind, backbones=False, report=reports)
        card = (folder / "README.md").read_text(encoding="utf-8")
        assert ("The bases of 150M were fitted on the **raw** embedding" in card) == (kind == "raw")
        assert "`reverse_distillation 0.1.0, pcr-fbpca-1k`" in card
        assert f"{reports[1].selected_components} of 320" in card


def test_the_command_imports_and_says_what_it_found(weights: dict[str, Path], tmp_path: Path) -> None:
    assert find_recipes(weights["raw"], "150M") == sorted(RECIPES, key=str)
    assert find_recipes(weights["raw"], "650M") == []
    command = [sys.executable, "-m", "rd_hf", "import-published"]
    command += ["--weights", str(weights["raw"]), "--config", "rd-esm2-150M", "--output", str(tmp_path / "out")]
    environment = {"PYTHONPATH": str(REPOSITORY), "HF_HUB_OFFLINE": "1", "PATH": "", "HF_HOME": str(tmp_path)}
    several = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert several.returncode == 1
    assert "6 complete sets of files for 150M" in several.stderr
    command += ["--regressor", "pcr", "--pca", "fbpca"]
    one = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert one.returncode == 0, one.stderr
    assert "  150M: fitted on raw" in one.stdout
    assert (tmp_path / "out" / "model.safetensors").exists()
    # The same command again makes the same; what is another's stays.
    before = (tmp_path / "out" / "model.safetensors").read_bytes()
    assert subprocess.run(command, env=environment, capture_output=True, check=False).returncode == 0
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == before
    command[command.index("rd-esm2-150M")] = "rd-esm2-35M"
    other = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert other.returncode == 1
    assert "out holds another model: choose another --output, or delete it" in other.stderr
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == before


def test_a_chain_of_components_is_refused_in_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "naive-scaler-8M-35M-None-fbpca-1k.npz"
    np.savez(path, pca__mean_=np.zeros(800), pca__components_=np.zeros((480, 800)))
    with pytest.raises(ValueError, match=r"do not nest.*pca_chain") as refused:
        import_checkpoint(ImportSettings(tmp_path, "35M", tmp_path / "out"))
    assert str(path) in str(refused.value)


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("pickle", "cannot be read without unpickling"),
        ("absent key", "has no pca__components_"),
        ("wrong size", "has shape (3, 320)"),
        ("nan", "NaN"),
        ("bomb", "pca__components_ has shape (800000000, 320)"),
        ("truncated", "no readable .npz"),
        ("no archive", "no readable .npz"),
        ("absent", "no such file"),
    ],
)
def test_a_bad_file_is_named_and_never_unpickled(
    weights: dict[str, Path], tmp_path: Path, case: str, words: str
) -> None:
    name = Recipe("pcr", "fbpca", "1k").file("8M", "35M")
    arrays: dict[str, Any] = dict(np.load(weights["raw"] / name))
    path = tmp_path / name
    if case == "pickle":
        arrays["pca__components_"] = np.array([Bomb(tmp_path / "unpickled")], dtype=object)
    elif case == "absent key":
        del arrays["pca__components_"]
    elif case == "wrong size":
        arrays["regressor__input_components_"] = arrays["regressor__input_components_"][:3]
    elif case == "nan":
        arrays["pca__mean_"][5] = np.nan
    elif case == "bomb":
        del arrays["pca__components_"]
    if case != "absent":
        np.savez(path, **arrays)
    if case == "bomb":
        header = io.BytesIO()
        about = {"descr": "<f4", "fortran_order": False, "shape": (800_000_000, 320)}
        np.lib.format.write_array_header_1_0(header, about)
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("pca__components_.npy", header.getvalue())
    if case == "truncated":
        path.write_bytes(path.read_bytes()[:-1000])
    elif case == "no archive":
        path.write_bytes(b"\x80\x04not an archive")
    with pytest.raises(PublishedFileError) as failed:
        read_step(path, ESM2[0], ESM2[1], ESM2[0].width)
    assert words in str(failed.value)
    assert name in str(failed.value)
    assert not (tmp_path / "unpickled").exists()
