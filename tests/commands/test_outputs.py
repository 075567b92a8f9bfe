"""What a command writes replaces nothing that it reads: refused by every command, before anything runs."""

from __future__ import annotations

import argparse
import importlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from rd_hf.__main__ import COMMANDS, main
from rd_hf.commands._outputs import INPUTS, OUTPUTS, refuse_replacing
from rd_hf.files import FolderError
from tests.embedding.test_folder import snapshot
from tests.search.conftest import DIMS, protein_like, write_folder

HERE = sorted(COMMANDS)
# Arguments that are neither read nor written.
WORDS = {
    *("address", "attn_implementation", "check_level", "color_by", "device", "id_column", "keep", "label_column"),
    *(
        "level",
        "levels",
        "license",
        "max_shard_size",
        "memory",
        "commit_message",
        "pooling",
        "positions_column",
        "repo_id",
    ),
    *("representations", "revision", "revision_of", "sequence_column", "shortlist_level", "splits", "study", "title"),
    *("categories", "commit_message", "token"),
    *("group", "split_column", "mutant", "target", "unknown", "up_to"),
}


def parser_of(command: str) -> argparse.ArgumentParser:
    parser = importlib.import_module(COMMANDS[command][0]).build_parser()
    assert isinstance(parser, argparse.ArgumentParser)
    return parser


def texts(command: str) -> Iterator[argparse.Action]:
    """Arguments of a command that take any text."""
    for action in parser_of(command)._actions:
        if action.nargs != 0 and not action.choices and action.type in (None, str, Path):
            yield action


def pairs() -> list[tuple[str, str]]:
    """Each command with an output, and each of its inputs."""
    return [
        (command, action.dest)
        for command in HERE
        if any(action.dest in OUTPUTS for action in texts(command))
        for action in texts(command)
        if action.dest in INPUTS
    ]


@pytest.mark.parametrize("command", HERE)
def test_every_argument_is_known_for_what_it_is(command: str) -> None:
    """A new argument that takes text is a name to put into ``rd_hf/commands/_outputs.py``, or into WORDS here."""
    known = {"read": INPUTS, "written": OUTPUTS, "kept": {"cache"}, "words": WORDS}
    for action in texts(command):
        assert sum(action.dest in names for names in known.values()) == 1, f"--{action.dest} of {command}"


def argv(command: str, chosen: str, value: Path, output: Path) -> list[str]:
    """Arguments that a command takes, one of its inputs and its output being these."""
    words = command.split()
    parser = parser_of(command)
    for group in parser._mutually_exclusive_groups:
        if group.required and chosen not in [action.dest for action in group._group_actions]:
            words += [group._group_actions[0].option_strings[-1], "absent.tsv"]
    for action in parser._actions:
        if action.dest in OUTPUTS:
            given = str(output)
        elif action.dest == chosen:
            given = str(value)
        elif action.required:
            given = str(next(iter(action.choices))) if action.choices else "1" if action.type is int else "absent.tsv"
            # A family by name, where no other is taken.
            given = "rd-esm2-35M" if action.dest in {"config", "level"} and action.type is not None else given
        else:
            continue
        words += [*action.option_strings[-1:], given]
    return words


@pytest.mark.parametrize(("command", "dest"), pairs())
def test_an_output_that_is_an_input_is_refused(
    command: str, dest: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "work.tsv"
    path.write_text("a night's work\n")
    assert main(argv(command, dest, path, path)) == 1
    error = capsys.readouterr().err
    assert f"--output {path} would replace" in error
    assert error.count("\n") == 1
    assert snapshot(tmp_path) == {"work.tsv": b"a night's work\n"}


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "db", iter([protein_like(9)]), DIMS, "L")


def search(database: Path, *more: object) -> int:
    words = ["search", "--input", database, database, "--whiten", "none", "--neighbours", 2, *more]
    return main([str(word) for word in words])


@pytest.mark.parametrize(
    ("name", "arguments", "says"),
    [
        ("L.tsv", ("--labels", "L.tsv", "--output", "L.tsv"), "--output L.tsv would replace --labels L.tsv"),
        (
            "hits.labels.tsv",
            ("--labels", "hits.labels.tsv", "--output", "hits.tsv"),
            "hits.labels.tsv, where the labels of --output hits.tsv go, would replace --labels hits.labels.tsv",
        ),
        ("db/embeddings-000000.parquet", ("--output", "db/embeddings-000000.parquet"), "a folder of embeddings, and"),
        ("db/.search/x.tsv", ("--output", "db/.search/x.tsv"), "a folder of embeddings, and could replace a part"),
    ],
)
def test_a_search_replaces_neither_labels_nor_embeddings(
    name: str, arguments: tuple[str, ...], says: str, database: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    if not name.endswith("parquet"):
        (tmp_path / name).write_text("r1\tx\n")
    before = snapshot(tmp_path)
    assert search(database, *arguments) == 1
    assert says in capsys.readouterr().err
    assert snapshot(tmp_path) == before


def test_labels_go_where_it_is_said(database: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "labels.tsv").write_text("r1\tx\nr2\ty\n")
    output = tmp_path / "hits.csv"
    assert search(database, "--labels", tmp_path / "labels.tsv", "--output", output) == 0
    assert f"written to {output}\nlabels written to {tmp_path / 'hits.labels.csv'}\n" in capsys.readouterr().out
    assert (tmp_path / "hits.labels.csv").is_file()


def test_what_a_folder_was_made_of_is_an_input_of_its_readers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A progressive search reads it again."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "proteins.tsv").write_text("id\tsequence\n")
    database = write_folder(tmp_path / "db", iter([protein_like(9)]), DIMS, "L", inputs=["proteins.tsv"])
    assert search(database, "--output", "proteins.tsv") == 1
    assert f"would replace proteins.tsv, which {database} was made of" in capsys.readouterr().err
    assert (tmp_path / "proteins.tsv").read_text() == "id\tsequence\n"


def test_an_output_that_has_a_usual_name_is_looked_at_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "release-it").mkdir()
    (tmp_path / "release-it" / "p.fasta").write_text(">a\nMKT\n")
    words = ["release", "--config", "rd-esm2-35M", "--repo-id", "me/it", "--input", "release-it/p.fasta"]
    assert main(words) == 1
    assert "the usual --output release-it is a folder that holds --input release-it/p.fasta" in capsys.readouterr().err


def test_links_and_folders_are_looked_through(tmp_path: Path, database: Path) -> None:
    path = tmp_path / "one.tsv"
    path.write_text("x")
    (tmp_path / "soft.tsv").symlink_to(path)
    os.link(path, tmp_path / "hard.tsv")
    (tmp_path / "folder").symlink_to(tmp_path, target_is_directory=True)

    def refused(output: Path | str, given: Path | str, says: str) -> None:
        with pytest.raises(FolderError, match=says):
            refuse_replacing({"the output": output}, {"the input": given})

    for name in ("soft.tsv", "hard.tsv", "folder/one.tsv", "../" + tmp_path.name + "/one.tsv", "db/../one.tsv"):
        refused(tmp_path / name, path, "the output would replace the input")
        refused(path, tmp_path / name, "the output would replace the input")
    refused(database, database, "the output would replace the input")
    refused(tmp_path, path, "is a folder that holds the input")
    refused(tmp_path / "folder", database, "is a folder that holds the input")
    refused(database / "new" / "map.html", path, "a folder of embeddings")
    # Backbones name a folder after a name, and a revision, a level or a layer of it behind.
    for word in (f"8M={database}", f"8M={database}@main", f"{database}:L#3", f"L={database}:L#3"):
        refused(database, word, "the output would replace the input")
    if os.path.exists(str(path).upper()):  # a file system that takes both for one name
        refused(Path(str(path).upper()), path, "the output would replace the input")
    for given in ("-", "owner/model", "a\0b", tmp_path / "absent", path):
        refuse_replacing({"the output": tmp_path / "new.tsv"}, {"the input": given})
    refuse_replacing({"the output": tmp_path / "new" / "folder"}, {"the input": database})


def test_a_familys_name_is_no_folder_to_be_spared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """``fit --config rd-esm2-650M --output rd-esm2-650M`` goes on in the folder that it made."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rd-esm2-650M" / ".fit").mkdir(parents=True)
    words = ["fit", "--config", "rd-esm2-650M", "--input", "absent.fasta", "--output", "rd-esm2-650M"]
    assert main(words) == 1
    assert "would replace" not in capsys.readouterr().err
