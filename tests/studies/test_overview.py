"""The picture of what a nested family is for: every number in it is one of the report or of the config."""

from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.image import imread
from studies import overview as module
from studies.overview import level_costs, main, overview_figure, read_scores

from rd_hf.data.records import InputError
from rd_hf.model.modeling_rd_esm import RDEsmModel

REPORT = """# Evaluation

## Mean Spearman (random folds)

| contender |  | width | mean Spearman | 95 % interval | median | seed spread | assays |
|---|---:|---:|---:|---:|---:|---:|---:|
| one_hot | one-hot | 1099 | 0.706 | [0.675, 0.731] | 0.721 | 0.0047 | 60 |
| raw.L0 | raw backbone | 32 | 0.531 | [0.501, 0.559] | 0.554 | 0.0071 | 60 |
| raw.L1 | raw backbone | 48 | 0.604 | [0.574, 0.630] | 0.624 | 0.0081 | 60 |
| raw.L2 | raw backbone | 64 | 0.634 | [0.602, 0.662] | 0.663 | 0.0075 | 60 |
| rd.L1 | reverse-distilled | 48 | 0.596 | [0.564, 0.625] | 0.628 | 0.0086 | 60 |
| rd.L2 | reverse-distilled | 64 | 0.628 | [0.596, 0.657] | 0.655 | 0.0067 | 60 |
| raw.L2 (shuffled scores) | raw backbone | 64 | 0.004 | [-0.004, 0.012] | 0.004 | 0.0308 | 60 |

## Few training variants

| rd.L1 | reverse-distilled | 48 | 0.111 | [0.101, 0.121] | 0.11 | 0.0086 | 60 |
"""


@pytest.fixture
def report(tmp_path: Path) -> Path:
    path = tmp_path / "report.md"
    path.write_text(REPORT)
    return path


def test_costs_are_those_of_the_linear_maps(tiny_checkpoint: Path) -> None:
    model = RDEsmModel.from_pretrained(tiny_checkpoint)
    costs = level_costs(str(tiny_checkpoint))
    assert [(cost.level, cost.width, cost.raw_width) for cost in costs] == [
        ("L0", 32, 32),
        ("L1", 48, 48),
        ("L2", 64, 64),
    ]
    running = 0
    for number, (cost, backbone) in enumerate(zip(costs, model.backbones, strict=True)):
        # A layer's maps: queries, keys, values and output, then out and back.
        width, inner = backbone.config.hidden_size, backbone.config.intermediate_size
        assert cost.raw == 2 * backbone.config.num_hidden_layers * (4 * width**2 + 2 * width * inner)
        running += cost.raw
        if number:
            step = model.projections[number - 1]
            running += 2 * (step.regression.numel() + step.directions.numel())
        assert cost.nested == running


def test_scores_are_those_of_the_table_of_means(report: Path) -> None:
    found = read_scores(report)
    assert found["one_hot", ""] == (0.706, 0.675, 0.731)
    assert found["rd", "L1"] == (0.596, 0.564, 0.625)
    assert ("raw", "L2 (shuffled") not in found
    assert len(found) == 6


def test_lines_and_bars_show_them(tiny_checkpoint: Path, report: Path) -> None:
    costs = level_costs(str(tiny_checkpoint))
    left, right = overview_figure(costs, read_scores(report)).axes
    lines = {line.get_label(): line.get_xydata().tolist() for line in left.lines}
    nested = lines["nested"]
    # Nested levels begin with the smallest backbone as it is.
    assert [y for _, y in nested] == [0.531, 0.596, 0.628]
    assert [x for x, _ in nested] == [cost.nested / 1e6 for cost in costs]
    assert [x for x, _ in lines["raw"]] == [cost.raw / 1e6 for cost in costs]
    assert "nested, all directions" not in lines  # not in this report
    said = [text.get_text() for text in right.texts]
    assert said[:2] == ["576 bytes", "256 bytes (−56 %)"]  # 4 * (32 + 48 + 64), 4 * 64
    assert said[-1] == "nothing: the vector is cut"
    assert right.patches[1].get_width() == pytest.approx(256 / 576)


def test_the_command_draws_the_same_picture_each_time(
    tiny_checkpoint: Path, report: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.png", "b.png"):
        words = ["--model", str(tiny_checkpoint), "--report", str(report), "--output", str(tmp_path / name)]
        assert main(words) == 0
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert imread(tmp_path / "a.png").shape[1] > 1200
    capsys.readouterr()
    assert main(["--model", str(tiny_checkpoint), "--output", str(tmp_path / "c.png")]) == 1
    error = capsys.readouterr().err
    assert "evaluation/report.md cannot be read: run rd-hf evaluate dms" in error
    assert error.count("\n") == 1


def test_the_carried_picture_is_of_the_carried_family(mini_checkpoint: Path) -> None:
    """Its report names every level and every line."""
    found = read_scores(mini_checkpoint / "evaluation" / "report.md")
    levels = [cost.level for cost in level_costs(str(mini_checkpoint))]
    assert {("raw", levels[0])} | {(kind, level) for kind in module.LINES for level in levels[1:]} <= set(found)


def test_a_report_without_the_table_is_said(tmp_path: Path) -> None:
    (tmp_path / "report.md").write_text("# Evaluation\n")
    with pytest.raises(InputError, match="has no table of mean scores on random folds"):
        read_scores(tmp_path / "report.md")
