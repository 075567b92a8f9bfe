"""Options that are written once: a field of a frozen dataclass with its help, bounds and choices.

The class checks its values with :func:`check_options`, and a command's parser is made of its fields by
:func:`add_options`; :func:`options_from` makes the class of what was parsed. Imports nothing heavy.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import MISSING, Field, dataclass, field, fields
from numbers import Integral, Real
from typing import Any, TypeVar

Options = TypeVar("Options")


@dataclass(frozen=True)
class Bounds:
    """The numbers that an option takes, ``least`` and ``most`` among them; as the type of an argument it reads one."""

    whole: bool
    least: float = -math.inf
    most: float = math.inf
    above: float = -math.inf
    below: float = math.inf

    def __str__(self) -> str:
        bounds = {"of at least": self.least, "above": self.above, "of at most": self.most, "below": self.below}
        said = " and ".join(f"{words} {bound:g}" for words, bound in bounds.items() if math.isfinite(bound))
        return f"{'whole' if self.whole else 'finite'} number{f' {said}' if said else ''}"

    def admit(self, value: Any) -> bool:
        """Whether a value is such a number."""
        # numpy's numbers are such numbers too.
        kind: Any = Integral if self.whole else Real
        if isinstance(value, bool) or not isinstance(value, kind):
            return False
        within = -math.inf < value < math.inf and self.above < value < self.below
        return within and self.least <= value <= self.most

    def __call__(self, word: str) -> Any:
        with suppress(ValueError):
            value = int(word) if self.whole else float(word)
            if self.admit(value):
                return value
        raise argparse.ArgumentTypeError(f"{word!r} is no {self}")


def whole(least: int) -> Bounds:
    """Whole numbers of at least ``least``."""
    return Bounds(True, least)


def real(
    least: float = -math.inf, *, above: float = -math.inf, most: float = math.inf, below: float = math.inf
) -> Bounds:
    """Finite numbers within bounds, with or without the bounds themselves."""
    return Bounds(False, least, most, above, below)


def option(
    default: Any,
    help: str,
    *,
    kind: Any = None,
    flags: Sequence[str] = (),
    former: Sequence[str] = (),
    hidden: bool = False,
    **argument: Any,
) -> Any:
    """A field of a dataclass that a command takes as an argument.

    Args:
        default: of the field; a tuple for several values.
        help: one sentence; how the page of the command and the reader of the class know it. Its default is added, but
            for switches.
        kind: :class:`Bounds` or another type of argparse, for each value.
        flags: how it is typed; ``--`` and its name by default. The name alone makes it a positional argument.
        former: how it was typed in earlier versions: understood, and not listed.
        hidden: it is understood as a whole, and not listed.
        argument: more for ``add_argument``: ``action``, ``choices``, ``metavar``, ``nargs``.
    """
    own = {"help": help, "kind": kind, "flags": tuple(flags), "former": tuple(former), "hidden": hidden}
    return field(default=default, metadata=own | argument)


def same_option(options: Any, name: str) -> Any:
    """A field that is the same option as another dataclass's: for one that hands it on."""
    (known,) = (one for one in option_fields(options) if one.name == name)
    # What was typed in earlier versions belongs to the command that had it.
    return field(default=known.default, metadata=dict(known.metadata) | {"former": ()})


def option_fields(options: Any) -> list[Field]:
    """The fields of a dataclass that are options, in their order."""
    return [one for one in fields(options) if "help" in one.metadata]


def typed_as(one: Field) -> tuple[str, ...]:
    """How a field that is an option is typed: its flags, or its name alone where it is positional."""
    return one.metadata["flags"] or ("--" + one.name.replace("_", "-"),)


def check_options(options: Any) -> None:
    """Check the values of an instance against the choices and bounds of its fields; None stands for a default.

    The ValueError of a value that is not allowed names the field.
    """
    for one in option_fields(options):
        value, choices, kind = getattr(options, one.name), one.metadata.get("choices"), one.metadata["kind"]
        for each in value if isinstance(value, tuple | list) else () if value is None else (value,):
            if choices is not None and each not in choices:
                raise ValueError(f"{one.name} must be one of {', '.join(map(str, choices))}, not {each!r}")
            if isinstance(kind, Bounds) and not kind.admit(each):
                raise ValueError(f"{one.name} must be a {kind}, not {each!r}")


def add_groups(parser: Any, options: type, groups: Mapping[str, Sequence[str]]) -> None:
    """Add arguments for fields of a dataclass, by the title of the group that they stand in; "" is no group."""
    for title, names in groups.items():
        add_options(parser.add_argument_group(title) if title else parser, options, *names)


def add_options(parser: Any, options: type, *names: str) -> None:
    """Add arguments for the fields of a dataclass: those named, in this order, or all that are options."""
    found = {one.name: one for one in option_fields(options)}
    for one in (found[name] for name in names) if names else found.values():
        argument = dict(one.metadata)
        flags, former = typed_as(one), argument.pop("former")
        del argument["flags"]
        kind, help, hidden = argument.pop("kind"), argument.pop("help"), argument.pop("hidden")
        default = None if one.default is MISSING else one.default
        positional = flags == (one.name,)
        if not positional:
            argument["dest"] = one.name
        if isinstance(default, bool) and "nargs" not in argument:
            argument.setdefault("action", "store_false" if default else "store_true")
        elif kind is not None:
            argument["type"] = kind
        if isinstance(kind, Bounds):
            argument.setdefault("metavar", "N")
        if isinstance(default, tuple):
            argument.setdefault("nargs", "+")
        elif default is not None and not isinstance(default, bool) and "default" not in help:
            help += f" (default {default:,})" if isinstance(default, int) else f" (default {default})"
        help = argparse.SUPPRESS if hidden else help.replace("%", "%%")
        # Not set unless it is there, so that it leaves alone what its former flag sets.
        default = argparse.SUPPRESS if positional and former else default
        if positional:
            _add_former(parser, parser.add_argument(*flags, default=default, help=help, **argument), former)
        else:
            # Known by all names, listed under those of today.
            parser.add_argument(*flags, *former, default=default, help=help, **argument).option_strings = list(flags)


def _add_former(parser: Any, positional: argparse.Action, former: Sequence[str]) -> None:
    """Let flags of earlier versions stand for a positional argument."""

    class Former(argparse.Action):
        def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
            setattr(namespace, self.dest, values)
            positional.required = False

    if former:
        hidden = {"default": argparse.SUPPRESS, "help": argparse.SUPPRESS}
        parser.add_argument(*former, action=Former, dest=positional.dest, nargs=positional.nargs, **hidden)


def options_from(options: type[Options], args: Any, /, **others: Any) -> Options:
    """Make the dataclass of what was parsed by a parser that has its options, or of another dataclass that has some.

    Fields that ``args`` lack, or that are None, keep their defaults; ``others`` are values instead of those parsed.
    """
    given = {one.name: getattr(args, one.name, None) for one in option_fields(options)}
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    return options(**{name: value for name, value in given.items() if value is not None} | others)
