"""What all commands share on the command line: their name, the words of their help, and how much they say."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from typing import Any

from rd_hf.commands._main import run_command
from rd_hf.commands._outputs import refuse
from rd_hf.commands._parser import Parser
from rd_hf.commands.optional import what_to_install

# Where each library looks for how much to say, and what turns progress bars off.
_LOUDNESS = {
    "transformers": "TRANSFORMERS_VERBOSITY",
    "datasets": "DATASETS_VERBOSITY",
    "huggingface_hub": "HF_HUB_VERBOSITY",
}
# What this project says itself.
_OWN = "rd_hf"
_NO_BARS = ("TQDM_DISABLE", "HF_HUB_DISABLE_PROGRESS_BARS")


class MissingExtraError(ValueError):
    """A command needs what this installation does not have."""


def command_parser(name: str, words: str | None, prog: str | None = None) -> Parser:
    """The parser of ``rd-hf NAME``, with what every command understands.

    Args:
        name: as typed after ``rd-hf``.
        words: the docstring of its module: what it does, with examples.
        prog: how it is called where that is not ``rd-hf NAME``.
    """
    parser = Parser(
        prog=prog or f"rd-hf {name}", description=words, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    said = parser.add_argument_group("what is said").add_mutually_exclusive_group()
    said.add_argument(
        "--quiet", action="store_true", help="nothing but errors and a result that is printed: no bar, no summary"
    )
    said.add_argument(
        "--verbose", action="store_true", help="what is done on the way, versions, time and memory; errors in full"
    )
    return parser


def run_with_arguments(
    parser: argparse.ArgumentParser,
    run: Callable[[argparse.Namespace], int | None],
    argv: list[str] | None,
    *,
    extra: str | None = None,
    derived: Callable[[argparse.Namespace], Mapping[str, str | os.PathLike]] = lambda args: {},
    prints_result: Callable[[argparse.Namespace], bool] = lambda args: False,
    **how: Any,
) -> int:
    """Parse, refuse to replace what is read, run, and end as every command does.

    Args:
        parser: from :func:`command_parser`.
        run: the command; its exit code, None for 0.
        argv: arguments, the command line's by default.
        extra: the extra of the package that the command belongs to, if any.
        derived: what it writes beside its ``--output``, in words.
        prints_result: whether what it prints is the result that was asked for, which --quiet leaves alone.
        how: see :func:`rd_hf.commands._main.run_command`.

    Returns:
        The exit code.
    """

    asked = False

    def body() -> int | None:
        nonlocal asked
        args = parser.parse_args(argv)
        asked = prints_result(args)
        with as_loud_as(args, extra, keep_output=asked):
            refuse(parser, args, derived(args))
            return run(args)

    return run_command(parser.prog, body, prints_result=lambda: asked, **how)


@contextmanager
def as_loud_as(args: argparse.Namespace, extra: str | None = None, keep_output: bool = False) -> Iterator[None]:
    """Run what stands inside as quietly or loudly as ``args`` ask.

    Args:
        args: of a :func:`command_parser`.
        extra: the extra of the package that the command belongs to, if any.
        keep_output: whether standard output is shown though it should be quiet.

    Raises:
        MissingExtraError: a library is not installed; the message names the extra that brings it.
    """
    before = {name: os.environ.get(name) for name in (*_LOUDNESS.values(), *_NO_BARS)}
    levels = {library: logging.getLogger(library).level for library in (*_LOUDNESS, _OWN)}
    told = logging.StreamHandler(sys.stderr)
    told.setFormatter(logging.Formatter("rd-hf: %(message)s"))
    if args.quiet:
        _tell_libraries("error")
    if args.verbose:
        logging.getLogger(_OWN).setLevel("INFO")
        logging.getLogger(_OWN).addHandler(told)
        logging.getLogger(_OWN).info("%s", _asked(args))
    started = time.monotonic()
    try:
        if args.quiet:
            os.environ.update(dict.fromkeys(_NO_BARS, "1"))
        if args.quiet and not keep_output:
            with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere):
                yield
        else:
            yield
    except ModuleNotFoundError as error:
        raise MissingExtraError(what_to_install(error, extra)) from error
    except Exception:
        if args.verbose:
            traceback.print_exc()
        raise
    finally:
        if args.verbose:
            print(f"rd-hf: {_circumstances()}; {time.monotonic() - started:.1f} s", file=sys.stderr)
        # Whoever called this in a process of their own finds it as it was.
        logging.getLogger(_OWN).removeHandler(told)
        for library, level in levels.items():
            logging.getLogger(library).setLevel(level)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _tell_libraries(level: str) -> None:
    """Set how much transformers, datasets and the Hub client say, whether or not they are imported yet."""
    for library, variable in _LOUDNESS.items():
        os.environ[variable] = level
        logging.getLogger(library).setLevel(level.upper())


def _asked(args: argparse.Namespace) -> str:
    """The options of a command as they were understood; a token is nobody's business."""
    said = {name: value for name, value in vars(args).items() if name not in ("token", "quiet", "verbose")}
    return ", ".join(f"{name} {value}" for name, value in said.items() if value not in (None, False, (), []))


def _circumstances() -> str:
    """Versions of what matters and the largest memory so far."""
    import platform
    from importlib.metadata import version

    from rd_hf.version import __version__

    said = [f"rd_hf {__version__}", f"Python {platform.python_version()}"]
    said += [f"{name} {version(name)}" for name in ("torch", "transformers") if name in sys.modules]
    try:
        import resource
    except ImportError:  # Windows
        return ", ".join(said)
    kibibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> (10 if sys.platform == "darwin" else 0)
    return ", ".join([*said, f"at most {kibibytes >> 10:,} MB of memory"])
