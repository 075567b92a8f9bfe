"""Backbones of every family that can be a level, as they are published: loaded, nested, packed, saved, refused."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import transformers
from safetensors.torch import load_file

from rd_hf.data.batching import collate, pack
from rd_hf.data.records import InputError
from rd_hf.embedding import Embedder
from rd_hf.embedding.folder import JobError
from rd_hf.embedding.job import run_job
from rd_hf.embedding.options import EmbeddingOptions
from rd_hf.embedding.settings import JobSettings
from rd_hf.hub import load_family, save_checkpoint
from rd_hf.hub.backbones import family_config
from rd_hf.model.configuration_rd_esm import RDEsmConfig
from rd_hf.model.families_rd_esm import FAMILIES
from rd_hf.model.layers_rd_esm import PACKED_ATTENTION
from rd_hf.model.modeling_rd_esm import RDEsmModel
from tests.conftest import REPOSITORY, environment
from tests.hub.layouts import (
    DPLM,
    ESM1B,
    ESM1V,
    ESM2_SAFETENSORS,
    ESM2_SHARDS,
    ESMC,
    FINE_TUNED,
    Layout,
    Size,
    write_repo,
    write_vocabulary,
)

HAS_ESMC = "esmc" in transformers.CONFIG_MAPPING
needs_esmc = pytest.mark.skipif(not HAS_ESMC, reason="this release of transformers has no ESM-C")
# Each family behind an ESM-2: chains as users put them together.
CHAINS = {
    "ESM-2": (ESM2_SAFETENSORS, ESM2_SHARDS),
    "ESM-1b": (ESM2_SAFETENSORS, ESM1B),
    "ESM-1v": (ESM2_SAFETENSORS, ESM1V),
    "DPLM": (ESM2_SAFETENSORS, DPLM),
    "fine-tuned": (ESM2_SAFETENSORS, FINE_TUNED),
    "ESM-C": (ESMC, ESMC),
    "ESM-2, then ESM-C": (ESM2_SAFETENSORS, ESMC),
    "ESM-C, then ESM-1b": (ESMC, ESM1B),
}
SEQUENCES = ["MKTAYIAKQRQISFVKSHFSRQ", "MXBUZO", "ACDEFGHIKLMNPQRSTVWY" * 3]
# Sums of other shapes, in another order: tens of units in the last place; bfloat16 rounds every layer to 8 bits.
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 0.08}


def available() -> Iterator[str]:
    return (name for name, chain in CHAINS.items() if HAS_ESMC or not any(layout.esmc for layout in chain))


def write_chain(folder: Path, layouts: tuple[Layout, ...]) -> list[str]:
    """Repos 32, 48, ... wide, the second without a tokenizer; words of ``--backbones``."""
    words = []
    for index, layout in enumerate(layouts):
        repo = write_repo(folder / f"L{index}", layout, Size(32 + 16 * index), seed=index)
        if index == 0:
            write_vocabulary(repo, layout)
        words.append(f"L{index}={repo}")
    return words


def random_bases(model: RDEsmModel) -> RDEsmModel:
    torch.manual_seed(5)
    for buffer in model.projections.buffers():
        buffer.copy_(torch.randn_like(buffer) / buffer.shape[0] ** 0.5)
    return model


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folder of each chain, holding its repos and both forms of the checkpoint."""
    folders = {}
    for name in available():
        folder = folders[name] = tmp_path_factory.mktemp("chain")
        model = random_bases(load_family(family_config(write_chain(folder, CHAINS[name]))))
        save_checkpoint(model, folder / "bases", backbones=False)
        save_checkpoint(model, folder / "full", backbones=True)
    return folders


FRESH = """
import json, sys, torch
from safetensors.torch import save_file
from transformers import AutoModel, AutoTokenizer
for folder in sys.argv[1:]:
    for form in ("bases", "full"):
        tokenizer = AutoTokenizer.from_pretrained(f"{folder}/{form}", trust_remote_code=True)
        batch = tokenizer(["MKTAYIAKQRQISFVKSHFSRQ", "MXBUZO"], padding=True, return_tensors="pt")
        small = AutoModel.from_pretrained(f"{folder}/{form}", trust_remote_code=True, level="L0")
        for dtype in ("float32", "bfloat16"):
            model = AutoModel.from_pretrained(f"{folder}/{form}", trust_remote_code=True, dtype=getattr(torch, dtype))
            with torch.inference_mode():
                whole = model(**batch)
                assert torch.equal(whole.nested("L0"), model(**batch, level="L0").last_hidden_state)
                if dtype == "float32":
                    assert torch.equal(whole.nested("L0"), small(**batch).last_hidden_state), (folder, form)
            save_file({"output": whole.last_hidden_state.contiguous()}, f"{folder}/{form}-{dtype}.safetensors")
"""


def test_a_fresh_process_loads_every_family_nested_bit_for_bit(saved: dict[str, Path]) -> None:
    """Through AutoModel and the code that came along, both forms, both dtypes: the same bits as here."""
    folders = [str(folder) for folder in saved.values()]
    env = environment() | {"PYTHONPATH": ":".join(sys.path[:1] + [p for p in sys.path if "overlay" in p])}
    done = subprocess.run(
        [sys.executable, "-c", FRESH, *folders], cwd=folders[0], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    ids, mask = collate(SEQUENCES[:2])
    for name, folder in saved.items():
        for dtype in TOLERANCE:
            expected = RDEsmModel.from_pretrained(folder / "full", dtype=dtype)(ids, mask).last_hidden_state
            for form in ("bases", "full"):
                found = load_file(folder / f"{form}-{str(dtype).removeprefix('torch.')}.safetensors")["output"]
                assert torch.equal(found, expected), (name, dtype, form)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", CHAINS)
def test_batched_is_single_and_packed_is_padded(saved: dict[str, Path], name: str, dtype: torch.dtype) -> None:
    if name not in saved:
        pytest.skip("this release of transformers has no ESM-C")
    plain = RDEsmModel.from_pretrained(saved[name] / "full", dtype=dtype)
    packing = RDEsmModel.from_pretrained(saved[name] / "full", dtype=dtype, attn_implementation=PACKED_ATTENTION)
    batch = plain(*collate(SEQUENCES), output_backbone_states=True)
    packed = pack(SEQUENCES)
    row = packing(**packed, output_backbone_states=True)
    ends = packed["cu_seq_lens_q"].tolist()
    close = {"atol": TOLERANCE[dtype], "rtol": TOLERANCE[dtype]}
    for place, (sequence, (start, stop)) in enumerate(zip(SEQUENCES, itertools.pairwise(ends), strict=True)):
        alone = plain(*collate([sequence]), output_backbone_states=True)
        length = len(sequence) + 2
        for state, single, joined in zip(
            batch.backbone_states, alone.backbone_states, row.backbone_states, strict=True
        ):
            torch.testing.assert_close(state[place, :length], single[0], **close)
            torch.testing.assert_close(joined[0, start:stop], single[0], **close)


@pytest.mark.parametrize("name", CHAINS)
def test_a_level_is_what_the_plain_model_computes(saved: dict[str, Path], name: str) -> None:
    """Cast or loaded in bfloat16, sequentially or held, saved in either form: the same backbone as the library's."""
    if name not in saved:
        pytest.skip("this release of transformers has no ESM-C")
    ids, mask = collate(SEQUENCES)
    for dtype in TOLERANCE:
        plain = []
        for index, layout in enumerate(CHAINS[name]):
            family = FAMILIES["esmc" if layout.esmc else "esm"]
            kind = transformers.AutoModel
            model = kind.from_pretrained(
                saved[name] / f"L{index}", use_safetensors=layout.container == "safetensors", **family.arguments
            )
            # Frequencies are float32 in the library's own forward pass; a cast would round them.
            frequencies = {m: m.inv_freq.clone() for m in model.modules() if hasattr(m, "inv_freq")}
            model = model.to(dtype).eval()
            for module, values in frequencies.items():
                module.inv_freq = values
            plain.append(model(ids, attention_mask=mask).last_hidden_state)
        ways: list[Callable[[], RDEsmModel]] = [
            lambda: RDEsmModel.from_pretrained(saved[name] / "bases", exact_activation=True)
        ]
        if dtype == torch.bfloat16:
            ways = [
                lambda: RDEsmModel.from_pretrained(
                    saved[name] / "full", dtype=torch.bfloat16, sequential=True, exact_activation=True
                ),
                lambda: RDEsmModel.from_pretrained(saved[name] / "full", exact_activation=True).to(torch.bfloat16),
            ]
        for load in ways:
            loaded = load()
            states = loaded(ids, mask, output_backbone_states=True).backbone_states
            for state, expected in zip(states, plain, strict=True):
                assert torch.equal(state, expected)


@needs_esmc
def test_frequencies_survive_every_cast(saved: dict[str, Path]) -> None:
    """ESM-C's lie in no file; rounded to bfloat16 they would turn far positions elsewhere."""
    expected = 1.0 / 10000 ** (torch.arange(0, 12, 2, dtype=torch.float) / 12)
    folder = saved["ESM-2, then ESM-C"]
    for model in (
        RDEsmModel.from_pretrained(folder / "full"),
        RDEsmModel.from_pretrained(folder / "bases", dtype=torch.bfloat16),
        RDEsmModel.from_pretrained(folder / "full").to(torch.bfloat16),
        RDEsmModel.from_pretrained(folder / "full", device_map="cpu", dtype=torch.bfloat16),
    ):
        assert torch.equal(model.backbones[1].rotary_emb.inv_freq, expected)


def test_a_release_without_a_family_says_which_has_it_and_loads_below(tmp_path: Path, saved: dict[str, Path]) -> None:
    """ESM-C's own name stays unknown to releases before 5.16; to this one, another name is made unknown."""
    folder = tmp_path / "chain"
    family = random_bases(RDEsmModel.from_pretrained(saved["ESM-2"] / "full"))
    family.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config["levels"][1]["backbone"] |= {"model_type": "esmc", "vocab_size": 64}
    (folder / "config.json").write_text(json.dumps(config))
    run = "import transformers\ndel transformers.CONFIG_MAPPING._mapping['esmc']\n" if HAS_ESMC else ""
    run += (
        "import sys\nfrom rd_hf.model.modeling_rd_esm import RDEsmModel\n"
        "model = RDEsmModel.from_pretrained(sys.argv[1], level='L0')\nprint(model.config.nested_dims)\n"
        "try:\n    RDEsmModel.from_pretrained(sys.argv[1])\nexcept ValueError as error:\n    print(error)\n"
    )
    env = environment() | {"PYTHONPATH": ":".join([*[p for p in sys.path if "overlay" in p], str(REPOSITORY)])}
    done = subprocess.run(
        [sys.executable, "-c", run, str(folder)], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first == "{'L0': 32}"
    assert "the backbone of level L1 is an ESM-C (model_type 'esmc'), which transformers has from 5.16 on" in second
    assert "load a level below L1" in second


def test_a_missing_weight_is_an_error_in_every_family(tmp_path: Path) -> None:
    for layout, lost in (
        (ESM2_SAFETENSORS, "esm.encoder.layer.1.LayerNorm.weight"),
        (ESMC, "esmc.layers.1.mlp.up_proj.weight"),
    ):
        if layout.esmc and not HAS_ESMC:
            continue
        from safetensors.torch import save_file

        folder = tmp_path / lost
        words = write_chain(folder, (ESM2_SAFETENSORS, layout))
        weights = load_file(folder / "L1" / "model.safetensors")
        del weights[lost]
        save_file(weights, folder / "L1" / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(
            ValueError, match=rf"the backbone of L1.* 1 are missing \({lost.partition('.')[2]}, \.\.\.\)"
        ):
            load_family(family_config(words))


def test_the_longest_input_is_that_of_the_strictest_level_that_runs(tmp_path: Path) -> None:
    words = write_chain(tmp_path, (ESM2_SAFETENSORS, ESM1B))
    config = tmp_path / "L1" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"max_position_embeddings": 42}))
    state = torch.load(tmp_path / "L1" / "pytorch_model.bin", weights_only=True)
    state["esm.embeddings.position_embeddings.weight"] = state["esm.embeddings.position_embeddings.weight"][:42]
    torch.save(state, tmp_path / "L1" / "pytorch_model.bin")
    model = random_bases(load_family(family_config(words)))
    assert (model.config.longest_input("L0"), model.config.longest_input()) == (None, 40)
    save_checkpoint(model, tmp_path / "model", backbones=True)
    long = ("MKTAYIAKQRQISFVKSHFSRQ" * 5)[:100]
    with pytest.raises(
        ValueError, match=r"a backbone with absolute positions has 40 of them, .* a sequence here has 102"
    ):
        model(*collate([long]))
    model(*collate([long]), level="L0")
    model(*collate([long[:38]]))
    (small,) = Embedder(tmp_path / "model", level="L0", device="cpu").embed([long])["embedding"]
    whole = Embedder(tmp_path / "model", device="cpu")
    assert (whole.options.max_length, whole.options.overlap) == (38, 9)
    (windowed,) = whole.embed([long])["embedding"]
    # Windows of 38 residues see less than all 100.
    assert abs(windowed[:32] - small).max() > 1e-3
    (first,) = Embedder(tmp_path / "model", device="cpu", long="truncate").embed([long])["embedding"]
    (alone,) = whole.embed([long[:38]])["embedding"]
    assert (first == alone).all()
    with pytest.raises(InputError, match="100 residues, more than --max-length 38"):
        Embedder(tmp_path / "model", device="cpu", long="error").embed([long])
    (tmp_path / "long.fasta").write_text(f">a\n{long}\n")
    job = JobSettings(str(tmp_path / "model"), (str(tmp_path / "long.fasta"),), str(tmp_path / "out"), device="cpu")
    assert run_job(job, show_progress=False).long == 1
    (stored,) = pq.read_table(tmp_path / "out")["embedding"].to_pylist()
    assert (np.array(stored, dtype=np.float32) == windowed).all()
    # What was seen whole cannot be extended by a level that takes less at once.
    small_job = replace(job, output=str(tmp_path / "small"), options=EmbeddingOptions(levels=("L0",)))
    run_job(small_job, show_progress=False)
    with pytest.raises(JobError, match="the model saw 1,022 residues at once, and level L1 takes 38: embed from"):
        run_job(replace(job, output=str(tmp_path / "wide"), extend=str(tmp_path / "small")), show_progress=False)


def refused(words: list[str], match: str) -> None:
    with pytest.raises(InputError, match=match) as raised:
        family_config(words)
    assert "\n" not in str(raised.value)


def change(folder: Path, **fields: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_what_is_no_level_is_refused_in_a_sentence(tmp_path: Path) -> None:
    words = write_chain(tmp_path, (ESM2_SAFETENSORS, ESM2_SAFETENSORS))
    folder = tmp_path / "L1"
    change(folder, model_type="gpt2")
    refused(words, r"L1 is of type 'gpt2', which is none of the families .*: ESM-2 \(esm\), ESM-C \(esmc\)$")
    change(folder, model_type="fast_esm", auto_map={"AutoModel": "modeling_fast_esm.FastEsmModel"})
    refused(words, r"of type 'fast_esm', .* needs code of its own \(trust_remote_code\), .* never run")
    change(folder, model_type="esm", is_decoder=True)
    refused(words, "L1 is a decoder, .* a level is an encoder")
    change(folder, is_decoder=False, model_type="esmc", intermediate_size=None)
    refused(words, r"L1 is without intermediate_size in its config\.json")


def test_tokens_are_compared_and_not_their_number(tmp_path: Path) -> None:
    words = write_chain(tmp_path, (ESM2_SAFETENSORS, ESM2_SAFETENSORS))
    folder = tmp_path / "L1"
    # The same number of rows, another alphabet.
    (folder / "vocab.txt").write_text("\n".join(["<cls>", "<pad>", "<eos>", "<unk>", *"ACDEFGHIKLMNPQRSTVWYXBUZO.-"]))
    refused(words, r"L1 reads other tokens .*: 'L' is its token 13 \(vocab\.txt\) and ESM-2's 4, and so for \d+ of 29")
    # A table of another size needs a tokenizer that says what it holds.
    (folder / "vocab.txt").unlink()
    change(folder, vocab_size=40)
    refused(words, "L1 has 40 tokens where ESM-2 has 33, and no tokenizer beside its weights")
    write_vocabulary(folder, ESM2_SAFETENSORS)
    config = family_config(words)
    assert config.levels[1]["alphabet"] == "esm2"
    assert RDEsmConfig.from_dict(config.to_dict()).vocab_size == 33
    del config.levels[1]["alphabet"]
    with pytest.raises(ValueError, match="of which ESM-2 has 33 tokens: level L1 has 40"):
        RDEsmConfig.from_dict(config.to_dict())


def test_other_tokens_are_refused_at_load_too(saved: dict[str, Path], tmp_path: Path) -> None:
    """A folder that a checkpoint of bases leans on was given another tokenizer since."""
    words = write_chain(tmp_path, CHAINS["ESM-2"])
    save_checkpoint(random_bases(load_family(family_config(words))), tmp_path / "bases", backbones=False)
    write_vocabulary(tmp_path / "L1", ESM2_SAFETENSORS, ("<pad>", *"ACDEFGHIKLMNPQRSTVWYXBUZO"))
    for load in (RDEsmModel.from_pretrained, load_family):
        with pytest.raises(ValueError, match=r"the backbone of (level )?L1,? reads other tokens .*'<cls>' is none"):
            load(tmp_path / "bases")
        load(tmp_path / "bases", level="L0")


@needs_esmc
def test_esmc_holds_esm2s_tokens_in_a_tokenizer_json(tmp_path: Path) -> None:
    words = write_chain(tmp_path, (ESM2_SAFETENSORS, ESMC))
    write_vocabulary(tmp_path / "L1", ESMC)
    config = family_config(words)
    assert (config.vocab_size, config.levels[1]["backbone"]["model_type"]) == (33, "esmc")
    (tmp_path / "L1" / "tokenizer.json").write_text("{}")
    refused(words, r"tokenizer\.json is no tokenizer\.json")


def test_the_published_tokenizers_are_esm2s(shared_data: Path) -> None:
    """The real files of each model's repo."""
    from rd_hf.model.families_rd_esm import check_alphabet

    folders = [path for path in (shared_data / "hub_layout").iterdir() if (path / "config.json").exists()]
    assert len(folders) > 10
    for folder in folders:
        assert check_alphabet(folder.name, str(folder), None, json.loads((folder / "config.json").read_text()))
