"""How the command line answers what it does not understand: the nearest that it does, and two lines, not thirty."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Iterable
from typing import Any, NoReturn

# A word that is meant as a flag: argparse takes it for one too.
_FLAG = re.compile(r"(--?[A-Za-z][\w-]*)(=.*)?", re.DOTALL)
# How argparse begins what it says of arguments beyond the last.
_TOO_MUCH = "unrecognized arguments: "
# What other programs call it.
_FLAGS = {
    **dict.fromkeys(("--fasta", "--fasta-file", "--sequence", "--in", "--proteins"), "--input"),
    **dict.fromkeys(("--gpu", "--cuda", "--cpu", "--gpus"), "--device"),
    **dict.fromkeys(("--fp16", "--bf16", "--half", "--precision"), "--dtype"),
    **dict.fromkeys(("--checkpoint", "--weights-dir", "--pretrained"), "--model"),
    **dict.fromkeys(("--dest", "--save", "--to"), "--output"),
}


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The one of ``known`` that a word was most likely meant to be: what it begins, else the most alike; or None."""
    words = sorted(known)
    begun = [one for one in words if one.startswith(word) and len(word) > 2]
    if begun:
        return min(begun, key=len)
    # Upper and lower case are one typing error, not many.
    alike = {one.lower(): one for one in words}
    found = difflib.get_close_matches(word.lower(), alike, n=1, cutoff=0.6)
    return alike[found[0]] if found else None


def suggestion(word: str, known: Iterable[str]) -> str:
    """``: did you mean NEAREST?``, or nothing where none is near."""
    found = nearest(word, known)
    return "" if found is None else f": did you mean {found}?"


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one sentence with the nearest flag or choice, under a usage of one line.

    Flags are not abbreviated: one that is added later would change what a script means. An abbreviation is answered
    with the flag that it begins. Arguments that are ``usual``, though not required, stand in the short usage too.
    """

    usual: tuple[str, ...] = ()

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(allow_abbrev=False, **kwargs)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse does, but a flag that is not known is named before one that it leaves missing."""
        given = sys.argv[1:] if args is None else list(args)
        if given == ["help"]:
            given = ["--help"]
        words = given[: given.index("--")] if "--" in given else given
        if not {"-h", "--help"} & set(words):
            for before, word in zip(["", *words], words, strict=False):
                if not word:
                    what = before if before.startswith("-") else "an argument"
                    self.error(f"{what} is given as nothing: is a variable of the shell empty?")
                found = _FLAG.fullmatch(word)
                if found and not self._is_known(found[1]):
                    self.error(self._no_such_flag(found[1]))
        return super().parse_known_args(given, namespace)

    def _is_known(self, flag: str) -> bool:
        if flag in self._option_string_actions:
            return True
        # "-k10" is the short flag with its value, "-model" a long one with a dash too few.
        return not flag.startswith("--") and flag[:2] in self._option_string_actions and not self._is_long(flag)

    def _is_long(self, flag: str) -> bool:
        return f"-{flag}" in self._option_string_actions

    def _no_such_flag(self, flag: str) -> str:
        known = [name for one in self._actions if one.help != argparse.SUPPRESS for name in one.option_strings]
        if self._is_long(flag):
            return f"there is no flag {flag}: did you mean -{flag}?"
        if (meant := _FLAGS.get(flag)) in known:
            return f"there is no flag {flag}: did you mean {meant}?"
        long = [name for name in known if name.startswith("--")]
        return f"there is no flag {flag}{suggestion('--' + flag.lstrip('-'), long)}"

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """As argparse does; the message names the nearest choice."""
        if action.choices is not None and value not in action.choices:
            known = list(map(str, action.choices))
            listed = f" (choose from {', '.join(known)})"
            raise argparse.ArgumentError(action, f"there is no {str(value)!r}{suggestion(str(value), known)}{listed}")

    def error(self, message: str) -> NoReturn:
        """Print a usage of one line and the sentence, and end with 2."""
        if message.startswith(_TOO_MUCH):
            message = f"{message.removeprefix(_TOO_MUCH)} belongs to no flag: leave it out, or quote what holds blanks"
        self.exit(2, f"{self.short_usage()}\n{self.prog}: error: {message} ({self.prog} --help tells all)\n")

    def short_usage(self) -> str:
        """What must be given, in one line."""
        if self.usage:
            return f"usage: {self.usage}"
        needed = [one for one in self._actions if one.required or one.dest in self.usual]
        formatter = argparse.HelpFormatter(self.prog, width=10_000)
        groups = [group for group in self._mutually_exclusive_groups if group.required]
        formatter.add_usage(None, needed, [], "")
        # In brackets is what is not required.
        words = re.sub(r"\[(-[^\[\]]*(?:\[[^\]]*\])?[^\[\]]*)\]", r"\1", formatter.format_help().strip())
        words = words.removeprefix("usage: ")
        for group in groups:
            words += f" {{{','.join(one.option_strings[-1] for one in group._group_actions)}}} ..."
        return f"usage: {words} [options]"
