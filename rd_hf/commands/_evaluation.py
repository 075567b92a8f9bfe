"""What the commands that evaluate share: arguments in groups, and last words. Imports nothing heavy."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rd_hf.options import add_options

if TYPE_CHECKING:
    from rd_hf.evaluation.frame import Evaluated


def add_groups(
    parser: argparse.ArgumentParser, options: type, groups: Mapping[str, Sequence[str]]
) -> argparse.ArgumentParser:
    """Add arguments for fields of a dataclass, by the title of the group that they stand in."""
    for title, names in groups.items():
        add_options(parser.add_argument_group(title), options, *names)
    return parser


def tell(evaluated: Evaluated) -> int:
    """Print what an evaluation found and what it left out; the exit code, 1 where something was left out."""
    print(evaluated.text)
    for message in evaluated.failed:
        print(f"left out: {message}", file=sys.stderr)
    print(evaluated.ending)
    return 1 if evaluated.failed else 0
