"""What an embedding costs and what it is worth: counted, timed, probed, and put into a table."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from studies import costs as frontier
from studies.frontier import main

from rd_hf.evaluation.assays import read_assay
from rd_hf.evaluation.families import Family, residue_states
from rd_hf.evaluation.representations import one_pass_maps
from rd_hf.hub.describe import describe_model
from rd_hf.model.configuration_rd_esm import RDEsmConfig
from rd_hf.model.modeling_rd_esm import RDEsmModel
from tests.conftest import backbone_settings, random_model

WILD_TYPE = "MKTAYIAKQRQISFVKSHFSRQ"


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("frontier") / "chain"
    random_model([32, 48], layers=3, readout={"layers": [0, 2]}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def layers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Layers 1 and 3 of one backbone."""
    torch.manual_seed(0)
    backbone = backbone_settings(48, 3)
    levels = [{"name": "A", "backbone": backbone, "layer": 1, "layers_of": "B"}, {"name": "B", "backbone": backbone}]
    model = RDEsmModel(RDEsmConfig(levels=levels, residual_directions=[16])).eval()
    for buffer in model.projections.buffers():
        buffer.copy_(torch.randn_like(buffer) / buffer.shape[0] ** 0.5)
    folder = tmp_path_factory.mktemp("frontier") / "layers"
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def assay(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 single mutants whose score is that of their residue."""
    rng = np.random.default_rng(0)
    rows = ["mutant,mutated_sequence,DMS_score"]
    chosen = [(place, letter) for place in range(len(WILD_TYPE)) for letter in "ACDEGLV" if WILD_TYPE[place] != letter]
    for place, letter in [chosen[i] for i in rng.choice(len(chosen), 60, replace=False)]:
        score = "ACDEGLV".index(letter) + 0.1 * rng.standard_normal()
        rows.append(
            f"{WILD_TYPE[place]}{place + 1}{letter},{WILD_TYPE[:place]}{letter}{WILD_TYPE[place + 1 :]},{score}"
        )
    path = tmp_path_factory.mktemp("assays") / "letters.csv"
    path.write_text("\n".join(rows) + "\n")
    return path


def linear_flop(width: int, layers: int) -> int:
    """Of an ESM-2 backbone: 12 k^2 weights a layer, two operations each."""
    return 2 * 12 * width**2 * layers


def test_costs_are_of_what_runs(chain: Path, layers: Path) -> None:
    costs = frontier.measure_costs(Family.load(str(chain)), [WILD_TYPE], repeats=1)
    step = 2 * (32 * 48 + 48 * 16)
    assert {key: cost.flop for key, cost in costs.items()} == {
        ("raw", "L0"): linear_flop(32, 3),
        ("raw", "L1"): linear_flop(48, 3),
        ("rd", "L1"): linear_flop(32, 3) + linear_flop(48, 3) + step,
    }
    assert all(cost.seconds > 0 for cost in costs.values())
    # As rd-hf info has it.
    assert costs["rd", "L1"].flop == describe_model(str(chain)).levels[-1].flop_per_residue
    near = frontier.measure_costs(Family.load(str(chain), one_pass=True), [WILD_TYPE], repeats=1)
    read_out = linear_flop(48, 3) + 2 * 3 * 48 * 32 + step
    assert {key: cost.flop for key, cost in near.items()} == dict.fromkeys(
        [("one_pass", "L0"), ("one_pass", "L1")], read_out
    )
    # Levels that are layers of one backbone: it runs once, as far as the deepest.
    shared = frontier.measure_costs(Family.load(str(layers)), [WILD_TYPE], repeats=1)
    assert shared["raw", "A"].flop == linear_flop(48, 1)
    assert shared["rd", "B"].flop == linear_flop(48, 3) + 2 * (48 * 48 + 48 * 16)


def test_what_is_probed_in_one_pass_is_what_the_model_returns(chain: Path) -> None:
    family = Family.load(str(chain), one_pass=True)
    states, _ = residue_states(family, [WILD_TYPE])
    with torch.inference_mode():
        ids = torch.tensor([[0, *range(5, 27), 2]])
        assert family.widths == [48]
        assert states.shape == (1, 24, 48)
        nested = family.model(ids, level="L0").last_hidden_state
    maps = {how.level: how for how in one_pass_maps(family.model.config.nested_dims)}
    np.testing.assert_array_equal(maps["L0"](states.numpy()[0]), states.numpy()[0, :, :32])
    assert nested.shape[-1] == maps["L0"].width
    # Another readout of the same backbone is another embedding.
    exact = Family.load(str(chain))
    assert len({family.fingerprint, exact.fingerprint}) == 2


def test_the_frontier_is_what_nothing_cheaper_reaches() -> None:
    scores = {"a": 0.5, "b": 0.4, "c": 0.6, "d": 0.6}
    flop = {"a": 10, "b": 20, "c": 30, "d": 40}
    rows = [
        {
            **{"model": "m", "depth": 1.0, "pooling": "mean", "representation": "raw", "level": level},
            **{"labels": "true", "assay": f"assay{number}", "width": 8, "split": "random", "repeat": 0, "fold": 0},
            **{"mutations": "all", "n_train": 10, "n_test": 5, "strength": 1.0, "spearman": score},
        }
        for level, score in scores.items()
        for number in range(3)
    ]
    costs = {"m": {("raw", level): frontier.Cost(value, 0.1) for level, value in flop.items()}}
    table = frontier.frontier_table(pd.DataFrame(rows), costs)
    assert table["level"].tolist() == ["a", "b", "c", "d"]
    assert table["frontier"].tolist() == [True, False, True, False]


def test_a_sample_of_variants_is_drawn_by_seed_and_keeps_its_order(assay: Path) -> None:
    whole = read_assay(assay)
    some = frontier.sample_variants(whole, 20, seed=1)
    again = frontier.sample_variants(whole, 20, seed=1)
    assert (some.mutants, some.digest) == (again.mutants, again.digest)
    places = [whole.mutants.index(mutant) for mutant in some.mutants]
    assert len(places) == 20
    assert places == sorted(places)
    assert some.scores.tolist() == whole.scores[places].tolist()
    assert some.digest != whole.digest
    assert frontier.sample_variants(whole, 60, seed=1) is whole


def test_the_command_writes_tables_figure_and_numbers(
    chain: Path, layers: Path, assay: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--model", str(chain), str(layers), "--assays", str(assay), "--output", str(tmp_path / "o")]
    arguments += ["--variants", "50", "--repeats", "1", "--inner-folds", "2", "--jobs", "1", "--batch-tokens", "512"]
    assert main(arguments) == 0
    report = (tmp_path / "o" / "report.md").read_text()
    assert "1 assays (letters), 50 variants" in report
    table = pd.read_parquet(tmp_path / "o" / "frontier.parquet")
    assert set(zip(table["model"], table["representation"], table["level"], strict=True)) == {
        *(("chain", "raw", level) for level in ("L0", "L1")),
        ("chain", "rd", "L1"),
        *(("chain, one pass", "one_pass", level) for level in ("L0", "L1")),
        *(("layers", "raw", level) for level in ("A", "B")),
        ("layers", "rd", "B"),
    }
    assert table["frontier"].any()
    assert (tmp_path / "o" / "frontier.png").read_bytes().startswith(b"\x89PNG")
    assert "## chain, one pass" in capsys.readouterr().out


def test_two_models_of_one_name_are_refused(
    chain: Path, assay: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--model", str(chain), str(chain), "--assays", str(assay), "--output", str(tmp_path / "o")]
    assert main(arguments) == 1
    assert "two models are called chain" in capsys.readouterr().err
