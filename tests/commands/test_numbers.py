"""Numbers on the command line: what no command can work with is refused before anything is read."""

from __future__ import annotations

import argparse
import importlib

import pytest

from rd_hf.__main__ import COMMANDS
from rd_hf.commands._arguments import real, whole
from rd_hf.commands.fit import main as fit
from rd_hf.fitting import FitOptions

FLAGS = [
    (name, action)
    for name, (module, _) in COMMANDS.items()
    for action in importlib.import_module(module).build_parser()._actions
    # All that are no text and no path are numbers.
    if action.type not in (None, str) and "Path" not in str(action.type)
]


def test_bounds() -> None:
    assert [whole(2)("2"), real(0)("0"), real(above=0, below=1)("0.5"), real()("-3")] == [2, 0.0, 0.5, -3.0]
    for refused in ("1", "2.5", "nan", "x", ""):
        with pytest.raises(argparse.ArgumentTypeError, match="no whole number of at least 2"):
            whole(2)(refused)
    for kind, refused in ((real(0), "-1"), (real(above=0), "0"), (real(0, below=1), "1"), (real(most=1), "1.5")):
        with pytest.raises(argparse.ArgumentTypeError, match="is no finite number"):
            kind(refused)


@pytest.mark.parametrize(("name", "action"), FLAGS, ids=lambda value: getattr(value, "dest", value))
def test_no_flag_of_any_command_takes_what_is_no_number(name: str, action: argparse.Action) -> None:
    """NaN and infinity nowhere; below zero where a negative number means something only (seeds, a least R2)."""
    assert callable(action.type)
    signed = action.dest in ("seed", "fit_seed", "least_r2")
    for word in ("nan", "inf", "-inf", "1e400", *(() if signed else ("-1", "-0.5"))):
        with pytest.raises((argparse.ArgumentTypeError, ValueError)):
            action.type(word)


@pytest.mark.parametrize("value", ["nan", "-1", "0", "inf"])
def test_an_impossible_penalty_is_refused_before_anything_is_read(
    value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        fit(["--config", "c", "--data", "d", "--output", "o", "--regression", "ridge", "--ridge-alpha", value])
    assert ended.value.code == 2
    assert f"argument --ridge-alpha: '{value}' is no finite number above 0" in capsys.readouterr().err
    with pytest.raises(ValueError, match="penalty of ridge must be positive and finite"):
        FitOptions(ridge_alpha=float(value))
