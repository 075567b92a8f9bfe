"""One vocabulary over all commands: a flag means one thing, and a thing has one flag.

The table of flags in CONTRIBUTING.md is read, and held equal to the parsers.
"""

from __future__ import annotations

import argparse
import importlib
import re
from collections import defaultdict
from dataclasses import dataclass

import pytest

from rd_hf.__main__ import COMMANDS
from rd_hf.flags import FLAGS
from rd_hf.hub.release_settings import ReleaseSettings
from rd_hf.options import options_from
from tests.conftest import REPOSITORY

STUDIES = ("ablate", "angles", "blocks", "frontier", "nested", "readout", "width")
MODULES = {name: module for name, (module, _) in COMMANDS.items()} | {
    f"study {name}": f"studies.{name}" for name in STUDIES
}
# Where a flag differs between commands, and why. "value": what it takes; "default": what it is without being given.
EXCEPTIONS = {
    ("--output", "value"): "a file where one file is made, else a folder",
    ("--output", "default"): "release makes a folder of the repo's name",
    ("--input", "default"): "release and its --plan have the package's proteins to begin with",
    ("--model", "default"): "a search knows the model of its database",
    ("--level", "default"): "the largest of what each command has before it; a map draws all of them",
    ("--whiten", "value"): "an embedding job has no database to whiten by",
    ("--whiten", "default"): "vectors are compared whitened, and stored plain",
    ("--one-pass", "value"): "fit may be told which layers; embed uses what was fitted",
    ("--pooling", "value"): "raw embeddings and variants are pooled before or beside the model",
    ("--dtype", "value"): "a fit sums states, which float16 is too narrow for",
    ("--block-weights", "default"): "a fit chooses what a search takes from the model",
    ("--batch-tokens", "default"): "embed measures its device; elsewhere the bits of sums depend on it",
    ("--num-sequences", "default"): "evaluations repeat the draw that the model records",
    ("--seed", "default"): "evaluations repeat the draw that the model records",
    ("--threads", "default"): "where probes run in processes meanwhile, half the cores; where time is measured, one",
    ("--repeats", "default"): "studies whose tables compare many variants repeat less",
    ("--low-n", "default"): "a figure of widths has room for one curve",
    ("--representations", "default"): "one-hot means are no homology",
    ("--max-length", "default"): "studies of many layers cut sequences that are long",
    ("--longest-domain", "default"): "a study that tries many blocks ranks few domains",
    ("--variants", "default"): "studies of many candidates draw fewer",
    ("--cache", "default"): "beside what it belongs to",
}
# Flags that meant something else in some command, where they are still understood, and have another meaning today.
REASSIGNED = {"--level", "--max-length", "--revision"}


@dataclass(frozen=True)
class Use:
    """A flag in a command."""

    command: str
    action: argparse.Action

    @property
    def value(self) -> str:
        """What it takes, as its help shows it."""
        if self.action.metavar is not None:
            return str(self.action.metavar)
        return "{" + ",".join(map(str, self.action.choices)) + "}" if self.action.choices else ""

    @property
    def default(self) -> str | None:
        """What it says that it is by default; None where it says nothing."""
        found = re.search(r"\(default:? ([^);]*)", self.action.help or "")
        return found and found[1]


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    typed: tuple[str, ...]
    values: tuple[str, ...]
    means: str
    former: frozenset[str]

    @property
    def name(self) -> str:
        return self.typed[-1]


def parser_of(command: str) -> argparse.ArgumentParser:
    parser = importlib.import_module(MODULES[command]).build_parser()
    assert isinstance(parser, argparse.ArgumentParser)
    return parser


def is_hidden(action: argparse.Action) -> bool:
    return action.help == argparse.SUPPRESS


def former_of(command: str) -> dict[str, argparse.Action]:
    """Spellings that a command understands and does not list."""
    return {
        name: action
        for name, action in parser_of(command)._option_string_actions.items()
        if is_hidden(action) or name not in action.option_strings
    }


def uses() -> dict[str, list[Use]]:
    """Every flag by its long name, a positional argument by what it is called, in every command that has it."""
    found: dict[str, list[Use]] = defaultdict(list)
    for command in MODULES:
        for action in parser_of(command)._actions:
            if not is_hidden(action) and action.dest != "help":
                found[action.option_strings[-1] if action.option_strings else str(action.metavar)].append(
                    Use(command, action)
                )
    return found


USES = uses()


def table() -> dict[str, Row]:
    text = (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")
    lines = text.partition("### Flags")[2].partition("\n#")[0].splitlines()
    rows = {}
    for line in (line for line in lines if line.startswith("| `")):
        flags, values, means, former = (cell.strip() for cell in line.strip("|").split("|"))
        quoted = [tuple(re.findall(r"`([^`]+)`", cell)) for cell in (flags, values, former)]
        row = Row(quoted[0], quoted[1], means, frozenset(quoted[2]))
        assert row.name not in rows, row.name
        rows[row.name] = row
    assert rows, "the table is not where it is looked for"
    return rows


TABLE = table()


def test_the_table_has_the_vocabulary_and_every_flag_that_had_another_name() -> None:
    today = {
        action.option_strings[-1] if action.option_strings else str(action.metavar)
        for command in MODULES
        for action in former_of(command).values()
        if not is_hidden(action)
    }
    known = {known.typed[-1] if known.typed else f"--{name.replace('_', '-')}": known for name, known in FLAGS.items()}
    known["EMBEDDINGS"] = known.pop("embeddings")
    assert set(TABLE) == set(known) | today
    assert {name: TABLE[name].means for name in known} == {name: one.means for name, one in known.items()}


def test_what_several_commands_have_and_the_table_has_not_is_the_same_in_all_of_them() -> None:
    for name, found in USES.items():
        if name not in TABLE:
            assert len({(use.value, use.action.help) for use in found}) == 1, name


@pytest.mark.parametrize("name", TABLE)
def test_a_flag_has_one_meaning_one_value_and_one_default(name: str) -> None:
    row, found = TABLE[name], USES[name]
    for use in found:
        assert tuple(use.action.option_strings) in (row.typed, ()), use.command
        assert (use.action.help or "").startswith(row.means), f"{use.command}: {use.action.help}"
    assert {use.value for use in found if use.value and not use.value.startswith("{")} == set(row.values)
    for what, different in (("value", {use.value for use in found}), ("default", {use.default for use in found})):
        # An exception that is none any more goes.
        assert (len(different) > 1) == ((name, what) in EXCEPTIONS), f"{name}: {what} {different}"


def test_exceptions_are_of_flags_of_the_table() -> None:
    assert {name for name, _ in EXCEPTIONS} <= set(TABLE)


def test_two_flags_do_not_mean_the_same() -> None:
    """By the first words of their help: of the table's those that it has, of the others all up to a stop."""
    meanings: dict[str, set[str]] = defaultdict(set)
    for name, found in USES.items():
        for use in found:
            first = TABLE[name].means if name in TABLE else re.split(r"[,:;(]", use.action.help or "")[0]
            meanings[first.strip()].add(name)
    # What takes a choice out of the published files, by the name of the choice.
    meanings.pop("where --weights has several")
    assert {words: names for words, names in meanings.items() if len(names) > 1} == {}


def test_values_are_called_in_capitals_and_numbers_n() -> None:
    for name, found in USES.items():
        for use in found:
            assert re.fullmatch(r"[A-Z_=/@:#\[\]]*|\{[\w,.-]+\}", use.value), f"{use.command} {name} {use.value}"
            numeric = use.action.type is int or type(use.action.type).__name__ == "Bounds"
            assert not numeric or use.value in ("N", "LAYER"), f"{use.command} {name} {use.value}"
            takes = use.action.nargs != 0
            assert not takes or use.value, f"{use.command} {name}: say what it takes"


def test_files_folders_columns_and_levels_are_called_so() -> None:
    for name, found in USES.items():
        for use in found:
            wanted = "COLUMN" if "column" in name else "LEVEL" if name.endswith("-level") else use.value
            assert use.value == wanted or use.value.startswith("{"), f"{use.command} {name} {use.value}"


def settings(command: str, words: str) -> object:
    """What a command makes of its arguments."""
    args = parser_of(command).parse_args(words.split())
    if command == "release":
        return options_from(ReleaseSettings, args)
    # Without effect.
    return {name: value for name, value in vars(args).items() if name != "resume"}


# What was typed, and what is typed for it now.
FIT = "--config c --output o"
SEARCH = "--output o.tsv"
HOMOLOGY = "--model m --output o"
FORMER = [
    ("fit", f"{FIT} --data d e", f"{FIT} --input d e"),
    ("fit", f"{FIT} --data d --window-tokens 9000", f"{FIT} -i d --group-tokens 9000"),
    ("fit", f"{FIT} --input d --resume", f"{FIT} --input d"),
    ("embed", "-m m -i p -o o --window-tokens 9000", "--model m --input p --output o --group-tokens 9000"),
    ("embed", "-m m -i p -o o --whiten", "-m m -i p -o o --whiten model"),
    ("search", f"{SEARCH} --queries q --database d --k 3", f"d {SEARCH} --input q -k 3"),
    ("search", f"{SEARCH} --database d --queries q", f"{SEARCH} --input q d"),
    ("search", f"d {SEARCH} -i q --sequences p q", f"d {SEARCH} -i q --database-input p q"),
    ("map", "e -o o --sample 9", "e -o o --num-sequences 9"),
    ("evaluate homology", f"{HOMOLOGY} --data d", f"{HOMOLOGY} --domains d"),
    ("evaluate homology", f"{HOMOLOGY} --data d --levels fold", f"{HOMOLOGY} --domains d --scop-level fold"),
    ("evaluate homology", f"{HOMOLOGY} --data d --max-length 9", f"{HOMOLOGY} --domains d --longest-domain 9"),
    ("evaluate dms", "-m m -o o --assays a --seeds 2", "-m m -o o --assays a --repeats 2"),
    ("push", "-m m --repo-id o/n --revision b", "-m m --repo-id o/n --branch b"),
    ("release", "--level 35M --repo-id o/n", "--config rd-esm2-35M --repo-id o/n"),
    ("release", "--config c --repo-id o/n --data d", "--config c --repo-id o/n --input d"),
    ("release", "--config c --repo-id o/n --window-tokens 9000", "--config c --repo-id o/n --group-tokens 9000"),
    ("import-published", "--weights w -o o --level 35M", "--weights w -o o --config rd-esm2-35M"),
    *(
        (
            "import-published",
            f"--weights w -o o --level 3B --sequences {word}",
            f"--weights w -o o --config rd-esm2-3B --num-sequences {number}",
        )
        for word, number in (("0.5k", 500), ("1k", 1000), ("5k", 5000), ("10k", 10000))
    ),
    *(
        (
            command,
            f"{required} --fit-data f --fit-sequences 9 --fit-seed 2",
            f"{required} --input f --num-sequences 9 --seed 2",
        )
        for command, required in {
            "evaluate dms": "-m m -o o --assays a",
            "evaluate residues": "-m m -o o",
            "evaluate homology": "-m m -o o --domains d",
            "study ablate": "-m m -o o --assays a",
            "study width": "-m m -o o",
        }.items()
    ),
    ("study angles", "-m m -o o -i f --fit-sequences 9 --fit-seed 2", "-m m -o o -i f --num-sequences 9 --seed 2"),
    *(
        (f"study {name}", f"{required} --fit-seed 2", f"{required} --seed 2")
        for name, required in (
            ("nested", "--backbones b -o o --assays a -i f"),
            ("readout", "-m m -o o --assays a -i f"),
        )
    ),
    ("study ablate", "-m m -o o --assays a -i f --seeds 2", "-m m -o o --assays a -i f --repeats 2"),
    ("study frontier", "-m m -o o --assays a --seeds 2", "-m m -o o --assays a --repeats 2"),
    ("study width", "-m m -o o -i f --seeds 2 --data d", "-m m -o o -i f --repeats 2 --domains d"),
]


@pytest.mark.parametrize(("command", "then", "now"), FORMER)
def test_what_was_typed_before_gives_the_same_settings(command: str, then: str, now: str) -> None:
    assert settings(command, then) == settings(command, now)


def test_every_former_spelling_is_tried_and_stands_in_the_table() -> None:
    tried = {(command, word) for command, then, _ in FORMER for word in then.split()}
    in_table = {former for row in TABLE.values() for former in row.former}
    for command in MODULES:
        for name, action in former_of(command).items():
            assert (command, name) in tried, f"{command} {name}"
            assert name in in_table or action.dest == "resume", f"{command} {name}"
    understood = {name for command in MODULES for name in former_of(command)}
    assert in_table <= understood


def test_former_spellings_are_listed_nowhere_and_mean_nothing_else_today() -> None:
    for command in MODULES:
        text = parser_of(command).format_help()
        for name in former_of(command):
            assert name in REASSIGNED or name not in USES, f"{command} {name}"
            assert not re.search(rf"^  (-\w.*, )?{name}(?![\w-])", text, re.MULTILINE), f"{command} {name}"


@pytest.mark.parametrize("words", [["search", "-i", "q", "-o", "o.tsv"], ["map", "-o", "o.html"]])
def test_an_embedding_folder_that_is_not_given_is_asked_for(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        parser_of(words[0]).parse_args(words[1:])
    assert "the following arguments are required: EMBEDDINGS" in capsys.readouterr().err
