"""Compiled layers: one graph per backbone, which no batch makes anew, and nothing else about the model is another."""

from __future__ import annotations

import copy
import functools
import pickle
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._inductor.config
from transformers import AttentionInterface

from rd_hf.data.batching import collate, pack
from rd_hf.hub import load_family
from rd_hf.hub.backbones import family_config
from rd_hf.model import layers_rd_esm
from rd_hf.model.layers_rd_esm import PACKED_ATTENTION, stack_of
from rd_hf.model.modeling_rd_esm import RDEsmModel
from tests.hub.layouts import ESM1B, ESM2_SAFETENSORS, ESMC
from tests.model.test_families import HAS_ESMC, SEQUENCES, write_chain

# What a compiler leaves in registers the library rounds several times: tens of units in the last place.
TOLERANCE = 2e-5
LETTERS = "ACDEFGHIKLMNPQRSTVWY"


@pytest.fixture(autouse=True)
def attention_of_others() -> Iterator[None]:
    """An earlier version's code, loaded from a checkpoint in this process, has given its function the name of ours."""

    def theirs(*args: Any, **kwargs: Any) -> Any:
        assert kwargs["cu_seq_lens_q"].tolist()  # which no graph can hold
        return layers_rd_esm.packed_attention(*args, **kwargs)

    AttentionInterface.register(PACKED_ATTENTION, theirs)
    yield
    layers_rd_esm.register_attention()


@pytest.fixture(autouse=True)
def nothing_compiled() -> Iterator[None]:
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch.compiler.reset()


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> list[list[tuple[int, ...]]]:
    """Graphs are made as ever and then run as they are, which is quick; the shapes that each was made for."""
    made: list[list[tuple[int, ...]]] = []

    def keep(graph: Any, inputs: list[Any]) -> Any:
        made.append([tuple(one.shape) for one in inputs if torch.is_tensor(one)])
        return graph.forward

    monkeypatch.setattr(layers_rd_esm.torch, "compile", functools.partial(torch.compile, backend=keep))
    return made


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A family with each kind of backbone that this release of transformers has."""
    folder = tmp_path_factory.mktemp("chain")
    words = write_chain(folder, (ESMC, ESM2_SAFETENSORS, ESM1B) if HAS_ESMC else (ESM2_SAFETENSORS, ESM1B))
    load_family(family_config(words)).save_pretrained(folder / "model", backbones=True)
    return folder / "model"


@pytest.fixture
def load(chain: Path) -> Callable[..., RDEsmModel]:
    return lambda **how: RDEsmModel.from_pretrained(chain, **how).eval()


def batch(count: int, longest: int, packed: bool, draw: random.Random) -> dict[str, Any]:
    sequences = ["".join(draw.choices(LETTERS, k=draw.randint(1, longest))) for _ in range(count)]
    return pack(sequences) if packed else dict(zip(("input_ids", "attention_mask"), collate(sequences), strict=True))


def residues(output: Any, given: dict[str, Any]) -> torch.Tensor:
    mask = given.get("attention_mask")
    return output.last_hidden_state[0] if mask is None else output.last_hidden_state[mask.bool()]


def graphs() -> int:
    assert not torch._dynamo.utils.counters["graph_break"]
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
@torch.inference_mode()
def test_compiled_to_machine_code_it_is_the_same_within_rounding(load: Callable[..., RDEsmModel]) -> None:
    # (The layers of ESM-1b are those of ESM-2 less rotary positions.)
    plain, compiled = load(level="L1"), load(level="L1")
    compiled.compile_layers()
    padded = dict(zip(("input_ids", "attention_mask"), collate(SEQUENCES), strict=True))
    for attention, given in (("sdpa", padded), (PACKED_ATTENTION, pack(SEQUENCES))):
        for model in (plain, compiled):
            model.set_attn_implementation(attention)
        # Without vectors, compilers take two thirds of the time.
        with torch._inductor.config.patch({"cpp.simdlen": 0}):
            expected, found = (residues(model(**given), given) for model in (plain, compiled))
        torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=TOLERANCE)
        for level, width in compiled.config.nested_dims.items():
            assert torch.equal(residues(compiled(**given, level=level), given), found[:, :width])
    assert graphs() == 2 * len(compiled.backbones)


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@torch.inference_mode()
def test_no_batch_has_anything_compiled_anew(load: Callable[..., RDEsmModel], traced: list[Any], packed: bool) -> None:
    plain, compiled = load(), load()
    for model in (plain, compiled):
        model.set_attn_implementation(PACKED_ATTENTION if packed else "sdpa")
    compiled.compile_layers()
    draw = random.Random(0)
    # A row alone and rows without padding are kinds of their own; the widths of the backbones are lengths too.
    first = [batch(count, longest, packed, draw) for count in (1, 5) for longest in (30, 1)]
    for given in first:
        compiled(**given)
    made = len(traced)
    # (Releases up to 5.0 make a mask where there is no padding too.)
    assert made // len(compiled.backbones) in ([1] if packed else [2, 3])
    for number in range(200):
        given = batch(draw.randint(1, 9), (1, 14, 30, 46, 62)[number % 5], packed, draw)
        found, expected = residues(compiled(**given), given), residues(plain(**given), given)
        torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=TOLERANCE)
    assert len(traced) == graphs() == made


@torch.inference_mode()
def test_what_is_compiled_does_not_depend_on_which_batch_comes_first(
    load: Callable[..., RDEsmModel], traced: list[list[tuple[int, ...]]]
) -> None:
    seen = []
    # Of 32 tokens, as wide as the backbone; 30 of 30; and others.
    for count, longest in ((4, 30), (30, 28), (2, 11)):
        torch.compiler.reset()
        traced.clear()
        model = load(level="L0")
        model.compile_layers()
        sequences = ["".join(random.Random(row).choices(LETTERS, k=longest - row % 2)) for row in range(count)]
        model(*collate(sequences))
        seen.append(list(traced))
    assert seen[0] == seen[1] == seen[2]


@torch.inference_mode()
def test_each_backbone_has_graphs_of_its_own(load: Callable[..., RDEsmModel], traced: list[Any], chain: Path) -> None:
    """torch keeps so many of one function, and would run further backbones as they are."""
    ids = collate(SEQUENCES)
    with torch._dynamo.config.patch(recompile_limit=1, cache_size_limit=1):
        model = load()
        model.compile_layers()
        model(*ids)
        assert graphs() == len(model.backbones)
        # Loaded anew for each batch, they find their graphs again.
        model = load(sequential=True)
        model.compile_layers()
        for _ in range(2):
            model(*ids)
    assert graphs() == 2 * len(model.config.backbone_groups)


def test_names_files_copies_and_pickles_are_those_of_any_model(
    load: Callable[..., RDEsmModel], traced: list[Any], tmp_path: Path
) -> None:
    plain, model = load(level="L0"), load(level="L0")
    model.compile_layers()
    ids = collate(SEQUENCES)
    with torch.inference_mode():
        expected = model(*ids).last_hidden_state
    assert traced
    assert list(model.state_dict()) == list(plain.state_dict())
    for layer, other in zip(stack_of(model.backbones[0]), stack_of(plain.backbones[0]), strict=True):
        assert type(layer).__name__ == type(other).__name__
        assert list(dict(layer.named_parameters())) == list(dict(other.named_parameters()))
    model.save_pretrained(tmp_path / "saved", backbones=True)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        before = len(traced)
        with torch.inference_mode():
            torch.testing.assert_close(twin(*ids).last_hidden_state, expected, atol=TOLERANCE, rtol=TOLERANCE)
        assert len(traced) > before, "a copy of a compiled model is compiled"
    saved = RDEsmModel.from_pretrained(tmp_path / "saved")
    assert torch.equal(saved(*ids).last_hidden_state, plain(*ids).last_hidden_state)
    # By itself a backbone is the library's.
    assert b"rd_esm" not in pickle.dumps(stack_of(model.backbones[0])[0])


def test_whoever_looks_within_sees_the_librarys_layers(load: Callable[..., RDEsmModel], traced: list[Any]) -> None:
    plain, model = load(level="L0"), load(level="L0")
    model.compile_layers()
    ids = collate(SEQUENCES)
    # Gradients.
    for one in (plain, model):
        one(*ids).last_hidden_state.sum().backward()
    assert not traced
    names = dict(plain.named_parameters())
    assert all(
        torch.equal(own.grad, names[name].grad) for name, own in model.named_parameters() if own.grad is not None
    )
    assert any(own.grad is not None for own in model.parameters())
    with torch.inference_mode():
        assert model(*ids, output_hidden_states=True).hidden_states is not None
        before = len(traced)
        heard: list[int] = []
        stack = stack_of(model.backbones[0])
        watched = next(module for module in stack[0].modules() if isinstance(module, torch.nn.Linear))
        # One that comes after the graph was made.
        handle = watched.register_forward_hook(lambda *_: heard.append(1))
        model(*ids)
        assert heard == [1]
        handle.remove()
    assert len(traced) == before
    model.train()
    torch.manual_seed(0)
    found = model(*ids).last_hidden_state
    plain.train()
    torch.manual_seed(0)
    assert torch.equal(found, plain(*ids).last_hidden_state)
    model.eval()
    plain.eval()
    with torch.inference_mode():
        # The whole under a compiler is one graph, as without.
        whole = torch.compile(model, fullgraph=True)
        torch.testing.assert_close(
            whole(*ids).last_hidden_state, plain(*ids).last_hidden_state, atol=TOLERANCE, rtol=TOLERANCE
        )
    assert len(traced) == before + 1


@torch.inference_mode()
def test_a_graph_calls_the_fused_kernel_with_bounds_of_any_size(
    load: Callable[..., RDEsmModel], traced: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch.nn.attention.varlen as varlen

    plain, model = load(attn_implementation=PACKED_ATTENTION), load(attn_implementation=PACKED_ATTENTION)
    draw, calls = random.Random(1), []
    rows = [batch(count, longest, True, draw) for count, longest in ((3, 20), (1, 41), (7, 9), (1, 1))]
    expected = [plain(**row).last_hidden_state for row in rows]

    def computed(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, ends: torch.Tensor, longest: int, scale: float
    ) -> torch.Tensor:
        calls.append(longest)
        rows = [states.transpose(0, 1)[None] for states in (q, k, v)]
        attended, _ = layers_rd_esm.packed_attention(plain, *rows, scaling=scale, cu_seq_lens_q=ends)
        return attended[0].clone()

    kernel = torch.library.custom_op("rd_hf_tests::varlen", computed, mutates_args=())
    kernel.register_fake(lambda q, k, v, ends, longest, scale: torch.empty_like(q))
    monkeypatch.setattr(
        varlen, "varlen_attn", lambda q, k, v, cu, _, longest, __, scale: kernel(q, k, v, cu, longest, scale)
    )
    # Within the kernel nothing is compiled, and the loop over sequences stands in for it.
    takes = lambda *_: torch.compiler.is_compiling() or not calls  # noqa: E731
    monkeypatch.setattr(layers_rd_esm, "fused_kernel_takes", takes)
    model.compile_layers()
    for row, states in zip(rows, expected, strict=True):
        torch.testing.assert_close(model(**row).last_hidden_state, states, atol=TOLERANCE, rtol=TOLERANCE)
        assert row["max_length_q"] in calls
    assert graphs() == len(model.backbones)
