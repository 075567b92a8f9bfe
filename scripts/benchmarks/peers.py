"""One backbone by every engine that is installed, over the same random weights and proteins, float32, on the CPU.

The floor is the same for all: the products of weights (see limit.py). What they differ in is what else they do, and to
how many tokens: padded batches here, one packed row or one sequence at a time elsewhere. Each is handed what its own
way of batching is; answers are compared at residues before anything is timed, and an engine that computes something
else is named with its error, and not timed as if it did not.

* ``transformers``: ``EsmModel``, padded batches, scaled dot product attention;
* ``rd_hf``: the same in a family of one level, with fused layers;
* ``fair-esm`` 2.0: the first implementation, padded batches;
* ``ONNX Runtime``: transformers' model as torch exports it, padded batches (its graph fuses GELU and norms);
* ``esm-cpp``: C++ (``pip install --no-deps esm-cpp==0.2.1``), its own scheduler over packed rows, which
  gives logits: it also multiplies by the language model's head, and is compared by those.

ESME (``esm-efficient``) needs flash attention, so CUDA; FastPLMs is code that comes with weights on the Hub, which no
benchmark here runs. Both are named as left out.
"""

from __future__ import annotations

import importlib.util
import logging
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import EsmForMaskedLM

from benchmarks import published
from benchmarks.common import ESM2_SIZES, Ratio, alternating, full_groups, medians, paired, random_family
from rd_hf.data.batching import collate

LEVELS = ("8M", "35M")
BATCH_TOKENS = 1024
# Of the reference's norm: float32 sums in another order, through a dozen layers.
TOLERANCE = 1e-3
LEFT_OUT = {
    "ESME": "needs flash attention, so CUDA",
    "FastPLMs": "is code that comes with weights, which is not run here",
}

Engine = Callable[[], "list[torch.Tensor]"]


def run(rounds: int) -> list[Ratio]:
    """See the module's docstring."""
    ratios = []
    for level in LEVELS:
        sequences = full_groups(BATCH_TOKENS, 1)[0]
        with tempfile.TemporaryDirectory() as scratch, torch.inference_mode():
            ratios += compare(level, ESM2_SIZES[level], sequences, Path(scratch), rounds)
    return ratios


def compare(
    level: str, size: tuple[int, int, int], sequences: Sequence[str], scratch: Path, rounds: int
) -> list[Ratio]:
    """Time of each engine over that of ours, with one set of weights."""
    engines, absent = built(level, size, sequences, scratch)
    reference = {kind: engines[kind]() for kind in ("transformers", "head")}
    del engines["head"]
    timed = {}
    for name, engine in engines.items():
        expected = reference["head" if name == "esm-cpp" else "transformers"]
        error = max(
            float((found - wanted).norm() / wanted.norm()) for found, wanted in zip(engine(), expected, strict=True)
        )
        if error > TOLERANCE:
            absent[name] = f"computes something else (error {error:.2g} of the states' norm)"
        else:
            timed[name] = engine
    seconds = alternating(timed, rounds)
    middle = medians(seconds)
    residues = sum(map(len, sequences))
    ratios = [
        Ratio(
            f"{level}: {name} / rd_hf", paired(seconds[name], seconds["rd_hf"]), None,
            detail=f"{residues / middle[name]:,.0f} residues/s",
        )
        for name in timed
    ]  # fmt: skip
    shown = "; ".join(f"{name} {why}" for name, why in (absent | LEFT_OUT).items())
    ratios[-1] = Ratio(ratios[-1].name, ratios[-1].value, None, detail=f"{ratios[-1].detail} (left out: {shown})")
    return ratios


def built(
    level: str, size: tuple[int, int, int], sequences: Sequence[str], scratch: Path
) -> tuple[dict[str, Engine], dict[str, str]]:
    """What computes each protein's states (rows as in it, special tokens left out); and why others are not here."""
    family = random_family({level: size})
    language: Any = EsmForMaskedLM(family.config.backbone_config(0)).eval()
    language.esm.load_state_dict(family.backbones[0].state_dict(), strict=True)
    ids, mask = collate(sequences)

    def rows(states: torch.Tensor) -> list[torch.Tensor]:
        return [state[1 : 1 + len(sequence)] for state, sequence in zip(states, sequences, strict=True)]

    engines: dict[str, Engine] = {
        "transformers": lambda: rows(language.esm(ids, attention_mask=mask).last_hidden_state),
        "head": lambda: rows(language(ids, attention_mask=mask).logits),
        "rd_hf": lambda: rows(family(ids, attention_mask=mask).last_hidden_state),
    }
    absent: dict[str, str] = {}
    for name, package, make in (
        ("fair-esm", "esm", lambda: _fair_esm(family, ids, rows)),
        ("ONNX Runtime", "onnxruntime", lambda: _onnx(language.esm, ids, mask, scratch, rows)),
        ("esm-cpp", "esm_cpp", lambda: _esm_cpp(language, sequences, scratch)),
    ):
        if importlib.util.find_spec(package) is None:
            absent[name] = "is not installed"
            continue
        try:
            engines[name] = make()
        # Whatever a peer raises: it is named, and the others stand.
        except Exception as error:
            reason = " ".join(str(error).split())[:120]
            absent[name] = f"could not be set up ({type(error).__name__}: {reason})"
    return engines, absent


def _fair_esm(family: Any, ids: torch.Tensor, rows: Callable[..., list[torch.Tensor]]) -> Engine:
    twin = published._as_fair_esm(family.backbones[0])
    last = twin.num_layers
    return lambda: rows(twin(ids, repr_layers=[last])["representations"][last])


def _onnx(
    model: torch.nn.Module,
    ids: torch.Tensor,
    mask: torch.Tensor,
    scratch: Path,
    rows: Callable[..., list[torch.Tensor]],
) -> Engine:
    import onnxruntime

    path = scratch / "model.onnx"
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(_StatesOnly(model), (ids, mask), path, dynamo=True, verbose=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    inputs: Mapping[str, Any] = dict(zip(names, (ids.numpy(), mask.numpy()), strict=True))
    return lambda: rows(torch.from_numpy(session.run(None, inputs)[0]))


class _StatesOnly(torch.nn.Module):
    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        states: torch.Tensor = self.model(ids, attention_mask=mask).last_hidden_state
        return states


def _esm_cpp(language: Any, sequences: Sequence[str], scratch: Path) -> Engine:
    import esm_cpp

    # As published checkpoints have them: frequencies in every layer.
    state = {key: value.clone() for key, value in language.state_dict().items() if "inv_freq" not in key}
    frequencies = next(value for key, value in language.named_buffers() if key.endswith("inv_freq"))
    for layer in range(language.config.num_hidden_layers):
        state[f"esm.encoder.layer.{layer}.attention.self.rotary_embeddings.inv_freq"] = frequencies.clone()
    language.config.save_pretrained(scratch / "cpp")
    save_file(state, scratch / "cpp" / "model.safetensors", metadata={"format": "pt"})
    model = esm_cpp.Model.load_from_safetensors(str(scratch / "cpp" / "model.safetensors"))
    tokenizer = esm_cpp.Tokenizer()
    tokens = [tokenizer.encode(sequence) for sequence in sequences]
    return lambda: [torch.as_tensor(found)[1:-1] for found in model.forward_scheduled(tokens)]
