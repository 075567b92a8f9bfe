"""What the benchmarks' figures are made of. Nothing here is timed."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from rd_hf.data.fasta import read_fasta
from tests.conftest import REPOSITORY, random_model

sys.path.insert(0, str(REPOSITORY / "scripts"))

import benchmark
from benchmarks import common, forward, growth, limit, peers, precision, published, simulate, start
from benchmarks.common import Ratio
from benchmarks.live import LiveTensors


def test_a_ratio_knows_whether_it_is_met() -> None:
    assert Ratio("a", 2.0, 1.1).met is True
    assert Ratio("a", 1.0, 1.1).met is False
    assert Ratio("a", 1.02, 1.03, at_least=False).met is True
    assert Ratio("a", 1.04, 1.03, at_least=False).met is False
    assert Ratio("a", 1.0, None).met is None


def test_the_table_shows_every_ratio_with_its_target() -> None:
    lines = common.table([Ratio("slow", 1.5, 1.03, at_least=False), Ratio("fast", 2.0, 1.0), Ratio("odd", 3.0, None)])
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines.splitlines()[2:]]
    assert rows == [
        ["slow", "1.5", "≤ 1.03", "**no**", ""],
        ["fast", "2", "≥ 1", "yes", ""],
        ["odd", "3", "", "", ""],
    ]


def test_the_readme_has_a_place_for_every_table(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(benchmark.README.read_text())
    tables = {name: f"| {name}, anew |" for name in ["machine", *benchmark.BENCHMARKS]}
    common.write_tables(readme, tables)
    text = readme.read_text()
    for name, table in tables.items():
        assert f"<!-- benchmark: {name} -->\n{table}\n<!-- end -->" in text
    # What stands outside of the tables stays, and a second writing changes nothing.
    assert "half an hour" in text
    common.write_tables(readme, tables)
    assert readme.read_text() == text
    with pytest.raises(ValueError, match="benchmark: dreams"):
        common.write_tables(readme, {"machine": "other", "dreams": ""})
    assert readme.read_text() == text


def test_neighbours_are_compared_with_each_other() -> None:
    # The machine slows down tenfold and one pair is hit by something else: the ratio stays what it is.
    assert common.paired([1.1, 2.2, 11.0, 50.0, 4.4], [1.0, 2.0, 10.0, 10.0, 4.0]) == pytest.approx(1.1)
    with pytest.raises(ValueError, match="zip"):
        common.paired([1.0], [1.0, 2.0])


def test_every_second_round_runs_backwards() -> None:
    order: list[str] = []
    candidates = {name: lambda name=name: order.append(name) for name in "abc"}
    seconds = common.alternating(candidates, 3)
    assert "".join(order) == "abccbaabc"
    assert {name: len(values) for name, values in seconds.items()} == {"a": 3, "b": 3, "c": 3}


def test_batches_are_full_real_and_the_same_each_time() -> None:
    first, again = common.full_batches(512, 3), common.full_batches(512, 3)
    for (ids, mask), (ids_again, _) in zip(first, again, strict=True):
        assert torch.equal(ids, ids_again)
        assert 410 <= int(mask.sum()) < ids.numel() <= 512


def test_a_random_family_is_the_same_at_every_call() -> None:
    sizes = {"a": (16, 1, 2), "b": (24, 1, 2)}
    first, again = common.random_family(sizes), common.random_family(sizes)
    assert first.config.nested_dims == {"a": 16, "b": 24}
    for (name, value), (_, same) in zip(first.state_dict().items(), again.state_dict().items(), strict=True):
        assert torch.equal(value, same), name


@pytest.mark.parametrize("name", ["forward", "precision", "start", "growth", "ray", "cores"])
def test_each_benchmark_is_registered_and_states_its_floor(name: str) -> None:
    module = importlib.import_module(benchmark.BENCHMARKS[name])
    assert callable(module.run)
    assert "The floor" in (module.__doc__ or "")


def test_an_overhead_is_told_with_its_pairs() -> None:
    model = common.random_family({"8M": (16, 1, 2), "35M": (24, 1, 2)})
    ratio = forward._overhead(model, common.full_batches(512, 2), 2, "35M", "name")
    assert ratio.value > 0
    assert "4 pairs, quartiles" in ratio.detail


def test_what_is_outside_of_the_backbones_is_a_share() -> None:
    model = common.random_family({"8M": (16, 1, 2), "35M": (24, 1, 2)})
    (batch,) = common.full_batches(256, 1)
    for level in ("8M", "35M"):
        assert 0 < forward.share_outside(model, batch, level) < 1
    assert not any(backbone._forward_hooks or backbone._forward_pre_hooks for backbone in model.backbones)


@pytest.mark.skipif(not published.available(), reason="the published model is not installed")
def test_the_published_model_computes_what_ours_does() -> None:
    # Its class looks up ESM-2's numbers of layers by these names.
    model = common.random_family({"8M": (16, 6, 2), "35M": (24, 12, 2)})
    twin = published.published_model(model)
    with torch.inference_mode():
        batches = common.full_batches(256, 2)
        assert all(forward.check_equal(model, twin, batch) < 1e-5 for batch in batches)
        model.projections[0].regression.mul_(2.0)
        with pytest.raises(RuntimeError, match="differ"):
            forward.check_equal(model, twin, batches[0])


def test_the_emulated_chain_is_the_models() -> None:
    model = random_model([32, 48, 64])
    states = [torch.randn(7, width) for width in (32, 48, 64)]
    bases = [precision.Basis(**dict(projection.named_buffers())) for projection in model.projections]
    blocks = precision.residual_blocks(states, bases, torch.float32)
    embedding = states[0]
    for projection, state in zip(model.projections, states[1:], strict=True):
        embedding = projection(embedding, state)
    torch.testing.assert_close(torch.cat([states[0], *blocks], dim=1), embedding)
    assert [block.dtype for block in precision.residual_blocks(states, bases, torch.bfloat16)] == [torch.bfloat16] * 2


def test_an_error_is_relative() -> None:
    exact = torch.tensor([[3.0, 4.0], [0.0, 5.0]], dtype=torch.float64)
    assert precision.error(exact.float(), exact) == precision.Error(0.0, pytest.approx(1.0))
    doubled = precision.error(2 * exact, exact, [1, 1])
    assert (doubled.relative, doubled.cosine, doubled.pooled) == pytest.approx((1.0, 1.0, 1.0))
    # Errors that cancel within a sequence are none once it is pooled.
    wobble = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    assert precision.error(exact + wobble, exact, [2]).pooled == pytest.approx(0.0)
    turned = precision.error(torch.tensor([[4.0, -3.0], [5.0, 0.0]]), exact)
    assert turned.cosine == pytest.approx(0.0)


def test_each_narrower_format_costs_more() -> None:
    sequences = ["MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQ", "GSHMASMTGGQQMGRDPLE"]
    errors = precision.mini_errors(random_model([32, 48, 64], ["S", "M", "L"]), sequences)
    assert list(errors) == ["M", "L"]
    for of in errors.values():
        assert of["float32"].relative < 1e-4 * of["bfloat16"].relative
        # Rounding to eight bits of mantissa: no less than half a unit's mean, no more than a few per cent.
        assert 5e-4 < of["exact states rounded"].relative < of["bfloat16"].relative < 0.1


def test_large_channel_means_are_what_float32_bases_are_for() -> None:
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(8, 40, generator=generator).double()
    small = torch.randn(60, 8, generator=generator).double() @ mixing + torch.randn(60, 40, generator=generator)
    large = torch.randn(60, 56, generator=generator).double()
    large[:, :40] += small
    small[:, 3] += 300.0
    large[:, 5] += 300.0
    errors = precision.real_errors({"S": small, "L": large}, [20, 40], directions=4)
    (of,) = errors.values()
    assert of["float32"].relative < of["bfloat16"].relative < of["all bfloat16"].relative
    assert precision._ratios("x", errors)[-1].met is True


def test_real_states_are_residues_only(shared_data: Path) -> None:
    folder = shared_data / "esm2_outputs" / "fastplms_goldens"
    states, lengths = precision.real_states(folder, ["8M", "35M"])
    assert sum(lengths) == 103
    assert {level: tuple(state.shape) for level, state in states.items()} == {"8M": (103, 320), "35M": (103, 480)}
    assert all(torch.isfinite(state).all() for state in states.values())


def test_a_help_and_an_import_can_be_waited_for() -> None:
    assert start.seconds_of_help("-m", "rd_hf", "embed") > 0
    with pytest.raises(RuntimeError, match="failed"):
        start._run([sys.executable, "-c", "raise SystemExit(3)"])


def test_the_slope_is_the_power() -> None:
    for power in (0.9, 1.0, 1.2):
        seconds = {size: 3e-6 * size**power for size in growth.RESIDUES}
        assert growth.slope(seconds) == pytest.approx(power)
    # What is done once bends the lower end only.
    with_start = {size: 0.5 + 1e-4 * size for size in growth.RESIDUES}
    assert 0.95 < growth.slope(with_start) < 1.0
    assert growth.slope(with_start, len(with_start)) < growth.slope(with_start)


def test_proteins_of_any_size_are_all_different(tmp_path: Path) -> None:
    growth.write_proteins(tmp_path / "a.fasta", 800_000)
    sequences = [record.sequence for record in read_fasta(tmp_path / "a.fasta")]
    assert sum(map(len, sequences)) == 800_000
    assert len(sequences) > 2000
    # The last is cut, so it alone may be the beginning of another.
    assert len(set(sequences)) == len(sequences)


def test_the_figure_is_small(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    some = growth.Growth({size: 1e-4 * size for size in growth.RESIDUES}, {1: 1.0, 2: 3.0, 3: 6.0}, {1: 9.0, 2: 7.0})
    growth.draw({"fit": some, "embed": some}, tmp_path / "growth.png")
    assert 5_000 < (tmp_path / "growth.png").stat().st_size < 120_000
    ratios = growth._ratios("fit", some)
    assert [ratio.value for ratio in ratios] == pytest.approx([1.0, 6.0, 9.0 / 7.0])


def test_the_simulated_job_takes_what_can_be_reckoned() -> None:
    costs = simulate.Costs(start=10, token=0.01, part=1, adopt=0.5, stage=0.1)
    one = simulate.simulate([100.0] * 6, 1, costs, records=20, files=1)
    # Staged in 2 s, ready 10 s later, six parts of 2 s, the last adopted half a second after it was handed over.
    assert one.seconds == pytest.approx(2 + 10 + 6 * 2 + 0.5)
    assert one.busy == pytest.approx(12 / 24.5)
    three = simulate.simulate([100.0] * 6, 3, costs, records=20, files=2)
    # Two files: two of three stage. Each worker has two parts; three are handed over at once, and adopted in turn.
    assert three.seconds == pytest.approx(1 + 10 + 2 * 2 + 3 * 0.5)
    # A driver that is slower than the workers is what the job waits for.
    slow = simulate.simulate([100.0] * 6, 3, simulate.Costs(0, 0.01, adopt=5), records=0, files=1)
    assert slow.seconds == pytest.approx(1 + 6 * 5)


def test_losses_cost_what_was_in_hand_and_the_way_back() -> None:
    costs = simulate.Costs(start=30, token=1e-3)
    parts = [60_000.0] * 200
    well = simulate.simulate(parts, 4, costs, records=0, files=1)
    lossy = simulate.simulate(parts, 4, costs, records=0, files=1, between_losses=1200, seed=1)
    assert well.lost == 0
    assert lossy.busy * lossy.seconds * 4 == pytest.approx(200 * 60), "every part is done in the end"
    # 200 minutes of work at a loss every 20 minutes of a worker: about ten.
    assert 4 <= lossy.lost <= 20
    assert well.seconds < lossy.seconds < well.seconds + lossy.lost * (60 + 30) / 4 + 120
    again = simulate.simulate(parts, 4, costs, records=0, files=1, between_losses=1200, seed=1)
    assert again == lossy


def test_simulated_parts_are_those_of_the_job() -> None:
    parts = simulate.parts_of(40_000, [98], padding=0.5, largest=2048)
    # Each record 100 tokens, half of all padding; the first part has 1,024 records, and none more than 2,048.
    assert parts[0] == 1024 * 200
    assert sum(parts) == pytest.approx(40_000 * 200)
    assert max(parts) <= 2048 * 200


def test_the_limit_is_what_the_products_take() -> None:
    # 24 k^2 a token and layer: at 8M 6 layers 320 wide, over 10 tokens.
    assert limit.products("8M", 10) == 10 * 6 * 24 * 320**2
    kinds = {
        "aten::addmm": "products",
        "mkldnn::_linear_pointwise": "products",
        "aten::_scaled_dot_product_flash_attention_for_cpu": "attention",
        "aten::native_layer_norm": "norms",
        "aten::erf": "activations and sums",
        "aten::gelu": "activations and sums",
        "aten::add_": "activations and sums",
        "aten::copy_": "copies and the rest",
    }
    assert {kernel: limit.kind_of(kernel) for kernel in kinds} == kinds


def test_paths_are_timed_over_equal_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"8M": (320, 1, 20), "35M": (480, 1, 20)}
    monkeypatch.setattr(limit, "ESM2_SIZES", sizes)
    monkeypatch.setattr(limit, "BATCH_TOKENS", 256)
    ratios = {ratio.name: ratio for ratio in limit.run(1)}
    for path in ("model", "fit pass", "embed"):
        saved = ratios[f"{path}: fused / transformers, 8M + 35M, float32"]
        assert saved.value > 0
        assert "of transformers' states" in saved.detail
    assert ratios["embed at 35M: limit / time"].target == 0.6
    assert 0 < ratios["35M: share of products, fused"].value < 1
    exact, fused = common.twins(sizes)
    fused.backbones[0].encoder.layer[0].output.dense.bias.data = torch.linspace(0, 1e-2, 320)
    with torch.inference_mode(), pytest.raises(RuntimeError, match="differ from transformers' own by"):
        limit.difference(fused, exact, common.full_batches(256, 1)[0])


def test_reading_code_is_counted_by_package() -> None:
    report = "import time: self [us] | cumulative | imported package\nimport time:   1500000 |  2000000 |   torch.nn\n"
    report += (
        "import time:    500000 |   500000 |     torch\nimport time:  250000 | 250000 | rd_hf\nother | words | here\n"
    )
    assert start.import_seconds(report) == {"torch": 2.0, "rd_hf": 0.25}


def test_beside_its_widest_backbone_a_forward_pass_holds_one_nested_embedding() -> None:
    model = common.random_family({"S": (64, 2, 4), "M": (128, 2, 4), "L": (192, 2, 4)})
    ids = torch.randint(4, 24, (4, 64))
    mask = torch.ones_like(ids)

    def peak(call: torch.nn.Module) -> int:
        with torch.inference_mode(), LiveTensors([*model.parameters(), *model.buffers(), ids, mask]) as live:
            made = call(ids, attention_mask=mask)
        del made
        assert live.now == 0
        return live.peak

    widest = peak(model.backbones[-1])
    assert peak(model) == peak(model), "the same at every run"
    # 128 float32 a token, and the mask of residues.
    beside = peak(model) - widest
    assert ids.numel() * 4 * 128 * 0.5 < beside <= ids.numel() * (4 * 128 + 16)

    kept: list[object] = []
    hook = model.backbones[0].register_forward_hook(lambda module, given, made: kept.append(made))
    with torch.inference_mode(), LiveTensors([*model.parameters(), *model.buffers(), ids, mask]) as live:
        model(ids, attention_mask=mask)
    hook.remove()
    assert live.peak > widest + beside, "a state that is held is seen"


def test_a_peer_that_computes_something_else_is_named_and_not_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "_fair_esm", lambda family, ids, rows: lambda: rows(torch.zeros(*ids.shape, 32)))
    monkeypatch.setattr(peers, "_esm_cpp", lambda *_: pytest.fail("not installed, so not asked"))
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: None if name == "esm_cpp" else name)

    def broken(*_: object) -> None:
        raise ValueError("no such operator")

    monkeypatch.setattr(peers, "_onnx", broken)
    with torch.inference_mode():
        ratios = peers.compare("8M", (32, 1, 4), ["MKTAYIAKQR", "MAGW"], tmp_path, 1)
    assert [ratio.name for ratio in ratios] == ["8M: transformers / rd_hf", "8M: rd_hf / rd_hf"]
    assert "fair-esm computes something else (error 1 of the states' norm)" in ratios[-1].detail
    assert "ONNX Runtime could not be set up (ValueError: no such operator)" in ratios[-1].detail
    assert "esm-cpp is not installed" in ratios[-1].detail
