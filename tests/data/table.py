"""The table of what happens to input, made from the parameters of the tests that check it.

python -m tests.data.table          write the page rd_hf/embedding/INPUT.md
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from rd_hf.data.columns import ID_COLUMNS, SEQUENCE_COLUMNS
from rd_hf.data.streams import SUFFIXES
from rd_hf.data.tables import FORMATS
from tests.conftest import REPOSITORY
from tests.data import cases
from tests.data.cases import Case

PAGE = REPOSITORY / "rd_hf" / "embedding" / "INPUT.md"
HEAD = """# Input, case by case

What `rd-hf embed`, `Embedder` and every other command that reads proteins make of letters, cells, types and files.
The guide is [the room's page](README.md#what-happens-to-your-input). The tables are the parameters of the tests that
check them (`tests/data/cases.py`), written by `python -m tests.data.table`; a test fails where they differ."""


def code(value: Any) -> str:
    """A value as inline code of a Markdown table's cell; invisible characters as their escapes."""
    # str() of numpy's values is the same in every release.
    text = str(value) if isinstance(value, (str, np.generic)) else repr(value)
    if isinstance(value, tuple):
        text = f"({', '.join(map(str, value))})"
    shown = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)
    shown = shown.replace("|", "\\|")
    if not shown:
        return "(empty)"
    return f"`` {shown} ``" if "`" in shown else f"`{shown}`"


def outcome(case: Case) -> str:
    """What comes of a case, in a cell."""
    if case.reason:
        return f"rejected: {case.reason}"
    if isinstance(case.gives, tuple):
        return f"read as {code(list(case.gives))}" if case.gives else "none asked for"
    if case.gives == "" and case in cases.SEQUENCE_VALUES:
        return "rejected: no residues"
    return case.gives if case.gives == "the record's number" else f"read as {code(case.gives)}"


def rows(gives: Iterable[tuple[str, str]]) -> str:
    """Records that come of some lines, in a cell."""
    said = []
    for name, sequence in gives:
        good = set(sequence) <= set("ACDEFGHIKLMNPQRSTVWY")
        said.append(f"{code(name)}: {code(sequence)}" if good else f"rejected: {sequence}")
    return "; ".join(dict.fromkeys(said))


def table(head: tuple[str, ...], lines: Iterable[tuple[str, ...]]) -> Iterator[str]:
    for line in (head, ("---",) * len(head), *lines):
        yield "| " + " | ".join(line) + " |"
    yield ""


def names(values: Iterable[Any]) -> str:
    return ", ".join(f"`{value}`" for value in values)


def render() -> str:
    """The page."""
    lines = [HEAD, "", "## Letters", ""]
    lines += table(
        ("what", "for example", "what happens"), ((c.what, code(c.value), outcome(c)) for c in cases.LETTERS)
    )
    for title, values in (
        ("Values of a sequence column", cases.SEQUENCE_VALUES),
        ("Values of an id column", cases.ID_VALUES),
        ("Values of a positions column", cases.POSITION_VALUES),
    ):
        lines += [f"## {title}", "", "In JSON lines, Parquet and `datasets` alike.", ""]
        lines += table(("what", "for example", "what happens"), ((c.what, code(c.value), outcome(c)) for c in values))
    lines += ["## Types of Arrow columns", ""]
    lines += table(
        ("column", "read", "refused in a sentence"),
        [
            ("sequences", names(cases.TEXT_TYPES), names(cases.NO_TEXT_TYPES)),
            ("ids", names(cases.ID_TYPES), "lists and structs"),
            ("positions", names(cases.POSITION_TYPES), names(cases.NO_POSITION_TYPES)),
        ],
    )
    lines += [
        "## Names",
        "",
        f"A table is known by its suffix: {names(FORMATS)}, before one of {names(SUFFIXES)} or not. Sequences are read "
        f"from the column named with `--sequence-column`, else from the first of {names(SEQUENCE_COLUMNS)} there is, "
        f"ids from `--id-column`, else {names(ID_COLUMNS)}, whatever their case, blanks and signs (`AA sequence`); two "
        "columns of one such name are refused, and so is a column without `--sequence-column` whose first cells look "
        "like names. Which columns are read is said unless they are `sequence` or `seq`. File names, ids and headers "
        "that are not text in their encoding keep their bytes as `\\xff` and the "
        "like.",
        "",
        "## Delimiters",
        "",
    ]
    lines += table(
        ("what", "for example", "the first record"),
        ((c.what, code(c.value[1]), f"{code(c.gives[0])}: {code(c.gives[1])}") for c in cases.DELIMITED),
    )
    for title, mark, values in (
        ("Rows of a tab-separated file", "a tab", cases.TAB_ROWS),
        ("Rows of a comma- or semicolon-separated file", "a comma", cases.COMMA_ROWS),
    ):
        lines += [f"## {title}", "", f"With the header `id`, `note`, `sequence`; {mark} between cells.", ""]
        shown = ((c.what, code(c.value.replace("|", "\t")), rows(c.gives)) for c in values)
        lines += table(("what", "for example", "records"), shown)
    lines += ["## FASTA", ""]
    lines += table(
        ("what", "for example", "records"),
        (
            (c.what, code(c.value), f"refused: the file {c.reason}" if c.gives is None else rows(c.gives))
            for c in cases.FASTA_TEXTS
        ),
    )
    lines += [
        "## Files",
        "",
        f"Compressions, told by content: {', '.join(cases.COMPRESSIONS)}, also several streams end to end and one in "
        f"another; encodings: {'; '.join(cases.ENCODINGS)}. A stream that is cut short, changed or followed by "
        "something else ends the job in a sentence. Refused:",
        "",
    ]
    lines += table(("file", "the sentence"), ((c.what, f"{c.reason} ...") for c in cases.REFUSED_FILES))
    return "\n".join(lines).strip() + "\n"


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
