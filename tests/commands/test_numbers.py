"""Numbers on the command line: what no command can work with is refused before anything is read."""

from __future__ import annotations

import argparse
import importlib
from dataclasses import dataclass

import pytest

from rd_hf.__main__ import COMMANDS
from rd_hf.commands.fit import main as fit
from rd_hf.fitting import FitOptions
from rd_hf.options import add_options, check_options, option, options_from, real, whole

FLAGS = [
    (name, action)
    for name, (module, _) in COMMANDS.items()
    for action in importlib.import_module(module).build_parser()._actions
    # All that are no text and no path are numbers.
    if action.type not in (None, str) and "Path" not in str(action.type)
]


@dataclass(frozen=True)
class Baking:
    """Options of a command, for the tests."""

    minutes: int = option(30, "how long", kind=whole(1))
    shelves: tuple[int, ...] = option((), "which", kind=whole(0), metavar="N")
    heat: str = option("top", "from where", choices=("top", "below"))
    fan: bool = option(False, "with 100 % of it")
    light: bool = option(True, "in the dark", flags=("--no-light",))
    dish: str = option("bread", "what is baked", flags=("dish",), metavar="DISH")
    heat_up: int | None = option(None, "before it", kind=whole(1), former=("--warm",))
    name: str = "bread"

    def __post_init__(self) -> None:
        check_options(self)


def test_an_option_is_written_once(capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    add_options(parser, Baking, "heat", "minutes")
    add_options(parser, Baking, "shelves", "fan")
    typed = parser.parse_args(["--shelves", "0", "2", "--fan"])
    assert options_from(Baking, typed, name="cake") == Baking(shelves=(0, 2), fan=True, name="cake")
    help = parser.format_help()
    assert "how long (default 30)" in help
    assert "from where (default top)" in help
    assert "with 100 % of it" in help
    with pytest.raises(SystemExit):
        parser.parse_args(["--minutes", "0"])
    assert "argument --minutes: '0' is no whole number of at least 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    "given", [{"minutes": 0}, {"minutes": 2.5}, {"minutes": True}, {"heat": "side"}, {"shelves": (0, -1)}]
)
def test_a_class_of_options_takes_what_its_command_takes(given: dict) -> None:
    with pytest.raises(ValueError, match=rf"{next(iter(given))} must be "):
        Baking(**given)


def test_an_option_is_a_switch_a_place_and_has_former_names() -> None:
    parser = argparse.ArgumentParser()
    add_options(parser, Baking, "light", "dish", "heat_up")
    assert options_from(Baking, parser.parse_args(["pie", "--no-light", "--warm", "5"])) == Baking(
        light=False, dish="pie", heat_up=5
    )
    assert options_from(Baking, parser.parse_args(["pie", "--heat-up", "5"])) == Baking(dish="pie", heat_up=5)
    help = parser.format_help()
    assert "--warm" not in help
    assert "in the dark\n" in help, "a switch has no number as its default"
    with pytest.raises(SystemExit):
        parser.parse_args(["pie", "--warm", "0"])


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
        fit(["--config", "c", "--input", "d", "--output", "o", "--regression", "ridge", "--ridge-alpha", value])
    assert ended.value.code == 2
    assert f"argument --ridge-alpha: '{value}' is no finite number above 0" in capsys.readouterr().err
    with pytest.raises(ValueError, match="ridge_alpha must be a finite number above 0, not"):
        FitOptions(ridge_alpha=float(value))
