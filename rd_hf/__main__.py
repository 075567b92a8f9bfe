"""Reverse-distilled, nested protein embeddings: fit, embed, search, look, publish.

    rd-hf fit --config rd-esm2-650M --input uniref50.fasta.gz --num-sequences 5000 --output my-model
    rd-hf embed --model my-model --input proteome.fasta.gz --output embeddings
    rd-hf info my-model

Several GPUs: accelerate launch --num_processes 8 -m rd_hf fit ... (on CPUs: torchrun --nproc_per_node 8 -m rd_hf ...).
Every command teaches with examples of its own: rd-hf COMMAND --help. To have the shell complete commands, flags and
values, such as families and levels: pip install argcomplete, and in bash's or zsh's start-up file the line
eval "$(register-python-argcomplete rd-hf)".
"""
# PYTHON_ARGCOMPLETE_OK

from __future__ import annotations

import argparse
import importlib
import os
import sys

from rd_hf.commands._parser import Parser, nearest
from rd_hf.version import __version__

# Imported one at a time, when its command is given: the list itself costs nothing.
COMMANDS = {
    "fit": ("rd_hf.commands.fit", "fit the bases of a family on protein sequences"),
    "embed": ("rd_hf.commands.embed", "embed proteins: FASTA, tables or datasets in, Parquet out"),
    "train": ("rd_hf.commands.train", "train heads on labelled sequences; which level is enough"),
    "predict": ("rd_hf.commands.predict", "predict of proteins with a trained head"),
    "search": ("rd_hf.commands.search", "nearest neighbours and label transfer in a folder of embeddings"),
    "map": ("rd_hf.commands.map", "draw the proteins of a folder of embeddings as a page for the browser"),
    "convert": ("rd_hf.commands.convert", "turn embeddings of raw backbones into nested ones, without a backbone"),
    "export": ("rd_hf.commands.export", "write a folder of embeddings as h5, for biotrainer and protspace"),
    "evaluate dms": ("rd_hf.commands.evaluate_dms", "does bigger win? probes on deep mutational scans"),
    "evaluate residues": ("rd_hf.commands.evaluate_residues", "secondary structure and metal binding of residues"),
    "evaluate homology": ("rd_hf.commands.evaluate_homology", "remote homologues found by similarity"),
    "push": ("rd_hf.commands.push", "push a model to the Hub, load it back, compare"),
    "release": ("rd_hf.commands.release", "fit, evaluate and publish one level of a named family"),
    "import-published": ("rd_hf.commands.import_published", "turn the first publication's weights into a model"),
    "info": ("rd_hf.commands.info", "what a model or a folder of embeddings is"),
}

# Studies of the method run from a clone; their names as commands of version 0.2.0 are still understood.
STUDIES = ("ablate", "blocks", "frontier", "width")
# What other programs call them.
SYNONYMS = {
    **dict.fromkeys(("encode", "extract", "run"), "embed"),
    **dict.fromkeys(("neighbours", "neighbors", "query"), "search"),
    **dict.fromkeys(("plot", "umap", "draw"), "map"),
    **dict.fromkeys(("describe", "show", "version"), "info"),
    **dict.fromkeys(("upload", "publish"), "push"),
}


def commands_of(group: str) -> dict[str, str]:
    """What the commands of a group ("evaluate") do, by their names in it; of all for ""."""
    prefix = f"{group} " if group else ""
    return {name.removeprefix(prefix): words for name, (_, words) in COMMANDS.items() if name.startswith(prefix)}


def build_parser(group: str = "") -> argparse.ArgumentParser:
    """What lists the commands, or those of one group."""
    here, prefix = commands_of(group), f"{group} " if group else ""
    width = max(map(len, here)) + 2
    listed = "\n".join(f"  {name:<{width}}{words}" for name, words in here.items())
    parser = Parser(
        prog=f"rd-hf {prefix}".strip(),
        usage=f"rd-hf {prefix}COMMAND ...",
        description=f"What `rd-hf {group}` can do." if group else __doc__,
        epilog=f"commands:\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", metavar="COMMAND", help=argparse.SUPPRESS)
    if not group:
        parser.add_argument("--version", action="version", version=f"rd-hf {__version__}")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Hand the arguments after a command's name to it; its exit code, or 2 where there is no such command."""
    given = sys.argv[1:] if argv is None else list(argv)
    if given[:1] == ["help"]:
        given = [*given[1:], "--help"]
    if "_ARGCOMPLETE" in os.environ:
        _complete()
    for words in (1, 2):
        module, _ = COMMANDS.get(" ".join(given[:words]), (None, None))
        if module is not None:
            return int(importlib.import_module(module).main(given[words:]))
    if len(given) > 1 and given[0] == "evaluate" and given[1] in STUDIES:
        print(
            f"rd-hf evaluate {given[1]}: this study runs from a clone of the repository: "
            f"python scripts/study.py {given[1]} ...",
            file=sys.stderr,
        )
        return 2
    groups = {name.partition(" ")[0] for name in COMMANDS if " " in name}
    group = given[0] if given and given[0] in groups else ""
    parser, here = build_parser(group), given[bool(group) :]
    if not here:
        parser.error(f"name a command: {', '.join(commands_of(group))}")
    if not here[0].startswith("-"):
        parser.error(_no_such_command(group, here[0]))
    # Ends the process: with the help that was asked for, or with what is wrong.
    parser.parse_args(here)
    return 2


def _no_such_command(group: str, word: str) -> str:
    """What is said of a command that is not there; also of a group's that was named without the group."""
    here = commands_of(group)
    meant = SYNONYMS.get(word) or nearest(word, here)
    if meant is None:
        last = {name.rpartition(" ")[2]: name for name in COMMANDS}
        meant = last.get(nearest(word, last) or "")
    full = f"{group} {meant}" if group and meant in here else meant
    return f"there is no command {word!r}: " + (f"did you mean rd-hf {full}?" if full else f"name {', '.join(here)}")


def _complete() -> None:
    """Answer the shell's completion; only ever called by it, so that nobody else waits for it."""
    import argcomplete

    from rd_hf.commands.completion import complete

    tree = argparse.ArgumentParser(prog="rd-hf")
    branches = {"": tree.add_subparsers()}
    for name, (module, words) in COMMANDS.items():
        group, _, last = name.rpartition(" ")
        if group not in branches:
            branches[group] = branches[""].add_parser(group).add_subparsers()
        leaf = importlib.import_module(module).build_parser()
        complete(leaf)
        branches[group].add_parser(last, help=words, parents=[leaf], conflict_handler="resolve")
    tree.add_argument("--version", action="store_true")
    argcomplete.autocomplete(tree)


if __name__ == "__main__":
    sys.exit(main())
