"""Chains put together on the command line, from models as users have them."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from transformers import EsmModel

from rd_hf.commands.fit import main as fit
from rd_hf.data.records import InputError
from rd_hf.embedding.checkpoint import resolve
from rd_hf.hub import load_family, save_checkpoint
from rd_hf.hub.backbones import BackboneSource, family_config, parse_source
from rd_hf.hub.sources import stated_license
from rd_hf.model.modeling_rd_esm import RDEsmModel
from tests.conftest import EXAMPLE_FASTA, REPOSITORY, environment
from tests.hub.layouts import (
    DPLM,
    ESM1B,
    ESM1V,
    ESM2_BIN,
    ESM2_SAFETENSORS,
    ESM2_SHARDS,
    ESMC,
    FINE_TUNED,
    LAYOUTS,
    Layout,
    Size,
    write_repo,
)

IDS = torch.tensor([[0, 20, 15, 11, 32, 19, 12, 5, 15, 2], [0, 20, 15, 11, 5, 2, 1, 1, 1, 1]])


def run_fit(output: Path, *words: str, sequences: int = 30) -> int:
    common = ["--input", str(EXAMPLE_FASTA), "--num-sequences", str(sequences), "--max-length", "60"]
    return fit(["--backbones", *words, *common, "--batch-tokens", "1000", "--output", str(output)])


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("8M=facebook/esm2_t6_8M_UR50D", BackboneSource("8M", "facebook/esm2_t6_8M_UR50D")),
        ("8M=lab/esm@refs/pr/2", BackboneSource("8M", "lab/esm", "refs/pr/2")),
        ("lab/family@v1", BackboneSource(None, "lab/family", "v1")),
    ],
)
def test_words(word: str, expected: BackboneSource) -> None:
    assert parse_source(word) == expected


def test_a_folders_name_may_hold_anything(tmp_path: Path) -> None:
    for name in ("a@b", "a#3", "a=b"):
        folder = tmp_path / name
        folder.mkdir()
        assert parse_source(f"x={folder}") == BackboneSource("x", str(folder))
        assert parse_source(str(folder)) == BackboneSource(None, str(folder))


@pytest.mark.parametrize("word", ["x=no/such/folder", "x=", "=lab/esm", "x=lab", "lab/esm#3", "./absent"])
def test_other_words_are_refused_with_what_to_write(word: str) -> None:
    with pytest.raises(InputError, match=f"--backbones {re.escape(word)}: .*write NAME=REPO"):
        parse_source(word)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_every_layout_is_a_level_and_computes_what_the_plain_model_does(tmp_path: Path, layout: Layout) -> None:
    write_repo(tmp_path / "small", ESM2_SAFETENSORS, Size(16))
    write_repo(tmp_path / "large", layout, Size(32), seed=1)
    config = family_config([f"a={tmp_path / 'small'}", f"b={tmp_path / 'large'}"])
    config.exact_activation = True
    model = RDEsmModel(config)
    model.load_backbones()
    plain = EsmModel.from_pretrained(
        tmp_path / "large", add_pooling_layer=False, use_safetensors=layout.container == "safetensors"
    )
    mask = IDS.ne(1).long()
    with torch.inference_mode():
        state = model.eval()(IDS, mask, output_backbone_states=True).backbone_states[1]
        assert torch.equal(state, plain(IDS, attention_mask=mask).last_hidden_state)


def test_a_chain_on_a_family_is_fitted_saved_and_loaded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A family's levels, then one of another family's, then a fine-tuned model in a `.bin`; no config by hand."""
    write_repo(tmp_path / "first", ESM2_SHARDS, Size(16))
    write_repo(tmp_path / "second", DPLM, Size(24), seed=1)
    assert run_fit(tmp_path / "family", f"16={tmp_path / 'first'}", f"24={tmp_path / 'second'}") == 0
    write_repo(tmp_path / "third", FINE_TUNED, Size(40), seed=2)
    words = [str(tmp_path / "family"), f"40={tmp_path / 'third'}"]
    assert run_fit(tmp_path / "chain", *words) == 0
    assert re.search(r"40 +40 .* -?\d\.\d{4} +-?\d\.\d{4} +\d\.\d{4}", capsys.readouterr().out)
    # It stands alone: of the folders it came from nothing is needed.
    for name in ("first", "second", "third"):
        shutil.rmtree(tmp_path / name)
    model = RDEsmModel.from_pretrained(tmp_path / "chain")
    family = RDEsmModel.from_pretrained(tmp_path / "family")
    assert model.config.nested_dims == {"16": 16, "24": 24, "40": 40}
    with torch.inference_mode():
        state = model(IDS, output_backbone_states=True).backbone_states
        for a, b in zip(state, family(IDS, output_backbone_states=True).backbone_states, strict=False):
            assert torch.equal(a, b)
    shutil.rmtree(tmp_path / "chain")
    assert run_fit(tmp_path / "chain", f"24={tmp_path / 'family'}", f"16={tmp_path / 'family'}") == 1
    said = capsys.readouterr().err
    assert "level 16 (16 wide) does not grow beyond 24 (24 wide): order levels by width, or give --keep" in said


@pytest.mark.skipif("esmc" not in transformers.CONFIG_MAPPING, reason="this release of transformers has no ESM-C")
def test_a_mixed_chain_with_layers_is_fitted_saved_and_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """ESM-2, a layer of an ESM-C and the whole of it, then ESM-1b: widths do not grow, and --keep says so."""
    for name, layout, size in (("a", ESM2_SHARDS, Size(24)), ("c", ESMC, Size(32, 3)), ("b", ESM1B, Size(16))):
        write_repo(tmp_path / name, layout, size)
    (tmp_path / "c" / "README.md").write_text("---\nlicense: other\nlicense_name: cambrian\n---\n# ESM-C\n")
    words = [f"A={tmp_path / 'a'}", f"C1={tmp_path / 'c'}#1", f"C={tmp_path / 'c'}", f"B={tmp_path / 'b'}"]
    assert run_fit(tmp_path / "model", *words) == 1
    assert "level C (32 wide) does not grow beyond C1 (32 wide): order levels by width, or give --keep, how many" in (
        capsys.readouterr().err
    )
    assert run_fit(tmp_path / "model", *words, "--keep", "8", "12", "4") == 0
    table = [line.split() for line in capsys.readouterr().out.splitlines() if re.match(" +[ABC]", line)]
    assert [(row[0], row[1]) for row in table] == [("A", "24"), ("C1", "32"), ("C", "44"), ("B", "48")]
    card = (tmp_path / "model" / "README.md").read_text()
    assert "from 4 levels, some of them layers, of 3 ESM-2 and ESM-C models" in card
    assert "| C1 | in this repo | cambrian | 1 of 3 | 32 | 32 |" in card
    assert "Level B takes 1,022 residues at once at most" in card
    for name in "abc":
        shutil.rmtree(tmp_path / name)
    model = RDEsmModel.from_pretrained(tmp_path / "model")
    with torch.inference_mode():
        whole = model(IDS)
        for level in model.config.level_names:
            part = RDEsmModel.from_pretrained(tmp_path / "model", level=level)
            assert torch.equal(part(IDS).last_hidden_state, whole.nested(level))


@pytest.mark.parametrize(
    ("text", "stated"),
    [
        ("---\nlicense: mit\n---\n", "mit"),
        ("---\nlicense: other\nlicense_name: cambrian\n---\n", "cambrian"),
        ("---\nlicense: other\n---\n", "other"),
        ("# no fields\n", None),
        ("---\nlicense: [\n---\n", None),
        ("---\njust text\n---\n", None),
        ("---\nx: " + "[" * 1200 + "\n---\n", None),
        (None, None),
    ],
)
def test_a_licence_is_what_the_models_own_card_states(tmp_path: Path, text: str | None, stated: str | None) -> None:
    if text is not None:
        (tmp_path / "README.md").write_text(text)
    assert stated_license(str(tmp_path), None) == stated


def test_widths_need_not_grow_where_keep_says_how_many(tmp_path: Path) -> None:
    for name, layout, width in (("a", ESM2_BIN, 32), ("b", ESM1V, 32), ("c", ESM1B, 16)):
        write_repo(tmp_path / name, layout, Size(width))
    words = [f"{name}={tmp_path / name}" for name in "abc"]
    assert family_config(words, [3, 4]).nested_dims == {"a": 32, "b": 35, "c": 39}
    assert family_config(words, "all").nested_dims == {"a": 32, "b": 64, "c": 80}
    with pytest.raises(InputError, match="give --keep"):
        family_config(words)
    with pytest.raises(InputError, match=r"--keep needs one number for each level after the first \(2\), got \[3\]"):
        family_config(words, [3])


def change(folder: Path, **fields: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_what_cannot_be_a_level_is_refused_by_name(tmp_path: Path) -> None:
    small = f"a={write_repo(tmp_path / 'a', ESM2_BIN, Size(16))}"
    folder = write_repo(tmp_path / "b", ESM2_BIN, Size(32))
    word = f"b={folder}"
    with pytest.raises(InputError, match="names 1 level: a chain needs two or more"):
        family_config([word])
    with pytest.raises(InputError, match="has no name: write NAME=REPO"):
        family_config([small, str(folder)])
    with pytest.raises(InputError, match="level names must differ"):
        family_config([small, f"a={folder}"])
    for field, value in (("mask_token_id", 31), ("pad_token_id", 0)):
        before = json.loads((folder / "config.json").read_text())
        change(folder, **{field: value})
        with pytest.raises(
            InputError, match=rf"all levels must share one vocabulary, .* {field} is .* level b is {value}"
        ):
            family_config([small, word])
        change(folder, **before)
    change(folder, model_type="bert")
    with pytest.raises(
        InputError, match=r"is of type 'bert', which is none of the families of encoders .*: ESM-2 \(esm\), ESM-C"
    ):
        family_config([small, word])
    change(folder, model_type="esm", is_folding_model=True)
    with pytest.raises(InputError, match="is a folding model"):
        family_config([small, word])


def test_a_family_stands_for_the_level_that_is_named_or_for_all(mini_checkpoint: Path) -> None:
    def names(*words: str) -> list[str]:
        return family_config(list(words), "all").level_names

    assert names(str(mini_checkpoint)) == ["0.3M", "1.2M", "2.7M"]
    assert names(f"mini={mini_checkpoint}") == ["mini-0.3M", "mini-1.2M", "mini-2.7M"]
    assert names(f"0.3M={mini_checkpoint}", f"big={mini_checkpoint}:2.7M") == ["0.3M", "big"]
    for word in (f"8M={mini_checkpoint}:8M", f"8M={mini_checkpoint}#2"):
        with pytest.raises(
            InputError, match=r"without a level '8M'; it has 0\.3M, 1\.2M, 2\.7M: write NAME=REPO:LEVEL"
        ):
            family_config([word, f"1.2M={mini_checkpoint}"])


def test_a_real_fine_tuned_esm2_is_a_level_and_a_plain_model(shared_data: Path, mini_checkpoint: Path) -> None:
    folder = shared_data / "esm2_8m_finetuned"
    config = family_config([str(mini_checkpoint), f"8M={folder}"])
    config.exact_activation = True
    model = RDEsmModel(config)
    model.load_backbones()
    plain = EsmModel.from_pretrained(folder, add_pooling_layer=False)
    mask = IDS.ne(1).long()
    with torch.inference_mode():
        found = model.eval()(IDS, mask, output_backbone_states=True).backbone_states[-1]
        assert torch.equal(found, plain(IDS, attention_mask=mask).last_hidden_state)


def test_other_weights_in_a_bin_are_another_fingerprint(tmp_path: Path) -> None:
    """Stored embeddings of a family that leans on folders must not be taken for those of changed weights."""
    for name, layout in (("a", ESM2_BIN), ("b", ESM2_SHARDS)):
        write_repo(tmp_path / name, layout, Size(16))
    model = load_family(family_config([f"a={tmp_path / 'a'}", f"b={tmp_path / 'b'}"], [4]))
    folder = save_checkpoint(model, tmp_path / "model", backbones=False)
    seen = {resolve(folder).fingerprint}
    for name, layout in (("a", ESM2_BIN), ("b", ESM2_SHARDS)):
        write_repo(tmp_path / name, layout, Size(16), seed=5)
        seen.add(resolve(folder).fingerprint)
    assert len(seen) == 3


QUIET = """
import sys
from transformers.utils import logging
from rd_hf.hub import load_family, save_checkpoint
from rd_hf.hub.backbones import family_config
from rd_hf.model.modeling_rd_esm import RDEsmModel
save_checkpoint(load_family(family_config(sys.argv[2:], "all")), sys.argv[1], backbones=True)
RDEsmModel.from_pretrained(sys.argv[1])
print(logging.is_progress_bar_enabled(), logging.get_verbosity())
"""


def test_loading_and_saving_several_backbones_says_nothing(tmp_path: Path) -> None:
    """No bar a backbone, and no report of heads that are left out on purpose; what was on before is on again."""
    words = [f"{name}={write_repo(tmp_path / name, ESM2_SHARDS, Size(16))}" for name in "abc"]
    noisy = {key: value for key, value in environment().items() if key != "HF_HUB_DISABLE_PROGRESS_BARS"}
    done = subprocess.run(
        [sys.executable, "-c", QUIET, str(tmp_path / "full"), *words],
        cwd=REPOSITORY,
        env=noisy,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == ["True", "30"]


PEAK = """
import sys, torch
sys.path.insert(0, "scripts")
from benchmarks.resident import reset_peak, resident_mb
from rd_hf.hub import load_family
from rd_hf.hub.backbones import family_config
config = family_config(sys.argv[3:])
ids = torch.tensor([[0, 20, 15, 2]])
# What is imported and set up on first use is no memory of the model's.
load_family(family_config([f"a={sys.argv[2]}", f"b={sys.argv[2]}"], "all"), sequential=sys.argv[1] == "sequential")(ids)
base = resident_mb("VmRSS")
reset_peak()
model = load_family(config, sequential=sys.argv[1] == "sequential")
with torch.inference_mode():
    model(ids)
print(resident_mb("VmHWM") - base)
"""


def test_peak_memory_is_that_of_what_is_loaded(tmp_path: Path) -> None:
    """All weights of a chain of `.bin` shards, or its largest backbone alone; 15 % beyond that at most."""
    words, sizes = [], []
    write_repo(tmp_path / "first", ESM2_SHARDS, Size(16))
    for width in (256, 512, 768):
        write_repo(tmp_path / str(width), ESM2_SHARDS, Size(width, layers=4))
        backbone = EsmModel.from_pretrained(tmp_path / str(width), add_pooling_layer=False, use_safetensors=False)
        sizes.append(sum(parameter.nbytes for parameter in backbone.parameters()) / 2**20)
        words.append(f"{width}={tmp_path / str(width)}")
        del backbone
    for how, loaded in (("resident", sum(sizes)), ("sequential", max(sizes))):
        done = subprocess.run(
            [sys.executable, "-c", PEAK, how, str(tmp_path / "first"), *words],
            cwd=REPOSITORY,
            env=environment() | {"PYTHONPATH": os.environ.get("PYTHONPATH", str(REPOSITORY))},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        peak = float(done.stdout.split()[-1])
        print(f"{how}: peak {peak:.0f} MB, {peak / loaded:.3f} of the {loaded:.0f} MB that are loaded")
        assert peak <= 1.15 * loaded
