"""Repos as ESM models really lie on the Hub, written by hand at any size, with random weights.

What ``save_pretrained`` of today writes is another layout (renamed keys, nothing stored twice), so that these cannot
be made with it. The facts, from the repos themselves: keys have the prefix ``esm.``; beside the encoder lie
``lm_head.*``, ``position_ids`` (int64), an absolute position table that rotary models do not use, and one
``inv_freq`` a layer, which was rounded to float16; a ``.bin`` holds ``lm_head.decoder.weight`` as a second name of
the word embeddings, and a second copy where these lie in another shard; ESM-1v has no contact head; DPLM has no
``position_ids``; fine-tuned models have heads of their own and no ``lm_head``. ESM-C has no biases in its layers, norms
of queries and keys, no frequencies, 64 rows of tokens, and a tokenizer.json (:func:`write_vocabulary`) in place of
vocab.txt.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

ESM2_TOKENS = ("<cls>", "<pad>", "<eos>", "<unk>", *"LAGVSERTIDPKQNFYMHWCXBUZO.-", "<null_1>", "<mask>")
POSITIONS = 1026
VOCABULARY = 33
INDEX = "pytorch_model.bin.index.json"
# One layer spans two shards of ESM-2 3B: the first ends after this tensor of layer 31 of 36.
CUT_AFTER = "intermediate.dense.bias"


@dataclass(frozen=True)
class Layout:
    """What a repo holds.

    Attributes:
        container: "safetensors", "bin" or "shards" (``.bin`` shards with an index).
        architecture: first of ``architectures`` in config.json.
        rotary: else the absolute position table is used.
        position_ids, contact_head, lm_head, classifier, layer_norm: which tensors are there.
        esmc: it is of another family.
        fields: of config.json, over ESM-2's.
    """

    container: str
    architecture: str = "EsmForMaskedLM"
    rotary: bool = True
    position_ids: bool = True
    contact_head: bool = True
    lm_head: bool = True
    classifier: bool = False
    layer_norm: bool = False
    esmc: bool = False
    fields: Mapping[str, Any] = field(default_factory=dict)


ESM2_SAFETENSORS = Layout("safetensors")
ESM2_SHARDS = Layout("shards")
ESM2_BIN = Layout("bin")
ESM1B = Layout("bin", rotary=False, layer_norm=True, fields={"emb_layer_norm_before": True})
ESM1V = Layout("bin", rotary=False, contact_head=False)
DPLM = Layout(
    "bin",
    architecture="EsmForDPLM",
    position_ids=False,
    fields={"dplm_type": "dplm_esm", "hidden_dropout_prob": 0.1, "_name_or_path": "facebook/esm2_t30_150M_UR50D"},
)
FINE_TUNED = Layout(
    "bin",
    architecture="EsmForSequenceClassification",
    lm_head=False,
    classifier=True,
    fields={"problem_type": "single_label_classification"},
)
ESMC = Layout("safetensors", architecture="EsmcForMaskedLM", esmc=True)
ESMC_ROWS = 64
LAYOUTS = {
    "ESM-2, safetensors": ESM2_SAFETENSORS,
    "ESM-2, .bin": ESM2_BIN,
    "ESM-2, .bin shards": ESM2_SHARDS,
    "ESM-1b": ESM1B,
    "ESM-1v": ESM1V,
    "DPLM": DPLM,
    "fine-tuned": FINE_TUNED,
}


@dataclass(frozen=True)
class Size:
    """Width, layers and heads of an encoder."""

    width: int
    layers: int = 2
    heads: int = 4


def config_fields(layout: Layout, size: Size) -> dict[str, Any]:
    """``config.json``, with the fields that those on the Hub have."""
    if layout.esmc:
        return {
            "architectures": [layout.architecture],
            **{"attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 0, "classifier_dropout": 0.1},
            **{"dtype": "float32", "eos_token_id": 2, "head_dim": size.width // size.heads, "hidden_act": "silu"},
            **{"hidden_size": size.width, "initializer_range": 0.02, "intermediate_size": 2 * size.width},
            **{"mask_token_id": 32, "max_position_embeddings": 2048, "mlp_bias": False, "model_type": "esmc"},
            **{"num_attention_heads": size.heads, "num_hidden_layers": size.layers, "num_key_value_heads": size.heads},
            **{"pad_token_id": 1, "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}},
            **{"tie_word_embeddings": False, "transformers_version": "5.16.0.dev0", "vocab_size": ESMC_ROWS},
            **layout.fields,
        }
    return {
        "architectures": [layout.architecture],
        "attention_probs_dropout_prob": 0.0,
        "classifier_dropout": None,
        "emb_layer_norm_before": layout.layer_norm,
        "esmfold_config": None,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "hidden_size": size.width,
        "initializer_range": 0.02,
        "intermediate_size": 4 * size.width,
        "is_folding_model": False,
        "layer_norm_eps": 1e-05,
        "mask_token_id": 32,
        "max_position_embeddings": POSITIONS,
        "model_type": "esm",
        "num_attention_heads": size.heads,
        "num_hidden_layers": size.layers,
        "pad_token_id": 1,
        "position_embedding_type": "rotary" if layout.rotary else "absolute",
        "token_dropout": True,
        "torch_dtype": "float32",
        "transformers_version": "4.25.0.dev0",
        "use_cache": True,
        "vocab_list": None,
        "vocab_size": VOCABULARY,
        **layout.fields,
    }


def shapes(layout: Layout, size: Size) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every tensor, in the order of the file."""
    k = size.width
    if layout.esmc:
        yield from _esmc_shapes(size)
        return
    if layout.position_ids:
        yield "esm.embeddings.position_ids", (1, POSITIONS)
    yield "esm.embeddings.word_embeddings.weight", (VOCABULARY, k)
    yield "esm.embeddings.position_embeddings.weight", (POSITIONS, k)
    if layout.layer_norm:
        yield from _norm("esm.embeddings.layer_norm", k)
    for layer in range(size.layers):
        prefix = f"esm.encoder.layer.{layer}"
        for name in ("query", "key", "value"):
            yield from _linear(f"{prefix}.attention.self.{name}", k, k)
        if layout.rotary:
            yield f"{prefix}.attention.self.rotary_embeddings.inv_freq", (k // size.heads // 2,)
        yield from _linear(f"{prefix}.attention.output.dense", k, k)
        yield from _norm(f"{prefix}.attention.LayerNorm", k)
        yield from _linear(f"{prefix}.intermediate.dense", k, 4 * k)
        yield from _linear(f"{prefix}.output.dense", 4 * k, k)
        yield from _norm(f"{prefix}.LayerNorm", k)
    yield from _norm("esm.encoder.emb_layer_norm_after", k)
    if layout.contact_head:
        yield "esm.contact_head.regression.weight", (1, size.layers * size.heads)
        yield "esm.contact_head.regression.bias", (1,)
    if layout.lm_head:
        yield "lm_head.bias", (VOCABULARY,)
        yield from _linear("lm_head.dense", k, k)
        yield from _norm("lm_head.layer_norm", k)
        if layout.container != "safetensors":
            yield "lm_head.decoder.weight", (VOCABULARY, k)
    if layout.classifier:
        yield from _linear("classifier.dense", k, k)
        yield from _linear("classifier.out_proj", k, 2)


def _esmc_shapes(size: Size) -> Iterator[tuple[str, tuple[int, ...]]]:
    k, inner = size.width, 2 * size.width
    yield "esmc.embed_tokens.weight", (ESMC_ROWS, k)
    for layer in range(size.layers):
        prefix = f"esmc.layers.{layer}"
        for name in ("input_layernorm", "post_attention_layernorm"):
            yield from _norm(f"{prefix}.{name}", k)
        for name in ("q_norm", "k_norm"):
            yield f"{prefix}.self_attn.{name}.weight", (k,)
        for name in "qkvo":
            yield f"{prefix}.self_attn.{name}_proj.weight", (k, k)
        for name in ("gate_proj", "up_proj"):
            yield f"{prefix}.mlp.{name}.weight", (inner, k)
        yield f"{prefix}.mlp.down_proj.weight", (k, inner)
    yield "esmc.norm.weight", (k,)
    yield from _linear("lm_head.dense", k, k)
    yield from _norm("lm_head.layer_norm", k)
    yield from _linear("lm_head.decoder", k, ESMC_ROWS)


def write_vocabulary(folder: Path, layout: Layout, tokens: Sequence[str] = ESM2_TOKENS) -> None:
    """The tokenizer's file of a repo: vocab.txt, or for ESM-C, whose token 31 breaks chains, tokenizer.json."""
    if not layout.esmc:
        (folder / "vocab.txt").write_text("\n".join(tokens))
        return
    vocabulary = {token.replace("<null_1>", "|"): place for place, token in enumerate(tokens)}
    special = [{"id": vocabulary[token], "content": token} for token in ("<cls>", "<pad>", "<eos>", "<unk>", "<mask>")]
    content = {"version": "1.0", "added_tokens": special, "model": {"type": "BPE", "vocab": vocabulary, "merges": []}}
    (folder / "tokenizer.json").write_text(json.dumps(content))


def _linear(name: str, inputs: int, outputs: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", (outputs, inputs)
    yield f"{name}.bias", (outputs,)


def _norm(name: str, width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", (width,)
    yield f"{name}.bias", (width,)


def shard_names(layout: Layout, size: Size) -> list[list[str]]:
    """Names of the tensors of each shard: one, or two that a layer spans, as with 3B."""
    names = [name for name, _ in shapes(layout, size)]
    if layout.container != "shards" or layout.esmc:
        return [names]
    # Layer 31 of 36, and as far along in any other size.
    cut = names.index(f"esm.encoder.layer.{size.layers * 31 // 36}.{CUT_AFTER}") + 1
    return [names[:cut], names[cut:]]


def random_tensor(name: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """What a tensor of that name may hold."""
    if name.endswith("position_ids"):
        return torch.arange(shape[1]).expand(1, -1).clone()
    if name.endswith("inv_freq"):
        return (1.0 / 10000 ** (torch.arange(0, 2 * shape[0], 2).float() / (2 * shape[0]))).half().float()
    if len(shape) == 1:
        centre = 1.0 if "norm" in name.lower() and name.endswith("weight") else 0.0
        return torch.randn(shape, generator=generator) * 0.1 + centre
    return torch.randn(shape, generator=generator) / shape[-1] ** 0.5


def write_repo(
    folder: Path,
    layout: Layout,
    size: Size,
    seed: int = 0,
    draw: Callable[[str, tuple[int, ...], torch.Generator], torch.Tensor] = random_tensor,
) -> Path:
    """Write config.json and weights.

    Args:
        draw: values of a tensor by name, shape and the generator seeded with ``seed``; for sizes beyond memory it
            may return tensors that lie in a mapped file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config_fields(layout, size), indent=2, sort_keys=True) + "\n")
    generator = torch.Generator().manual_seed(seed)
    wanted = dict(shapes(layout, size))
    parts = shard_names(layout, size)
    words: torch.Tensor | None = None
    weight_map: dict[str, str] = {}
    total = 0
    for number, names in enumerate(parts, start=1):
        tensors: dict[str, torch.Tensor] = {}
        for name in names:
            if name == "lm_head.decoder.weight" and words is not None:
                tensors[name] = words
            else:
                tensors[name] = draw(name, wanted[name], generator)
            if name == "esm.embeddings.word_embeddings.weight":
                words = tensors[name]
            total += tensors[name].nbytes
        if layout.container == "safetensors":
            save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        elif layout.container == "bin":
            torch.save(tensors, folder / "pytorch_model.bin")
        else:
            file = f"pytorch_model-{number:05d}-of-{len(parts):05d}.bin"
            torch.save(tensors, folder / file)
            weight_map |= dict.fromkeys(names, file)
    if weight_map:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
    return folder
