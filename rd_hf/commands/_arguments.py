"""What all commands share on the command line: their name, the words of their help, and how much they say."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from typing import TYPE_CHECKING, Any

from rd_hf.commands._main import run_command
from rd_hf.commands._outputs import refuse
from rd_hf.commands._parser import Parser
from rd_hf.commands.optional import what_to_install
from rd_hf.lazy import gc_paused
from rd_hf.options import add_groups

if TYPE_CHECKING:
    from rd_hf.evaluation.frame import Evaluated

# Where each library looks for how much to say, and what turns progress bars off.
_LOUDNESS = {
    "transformers": "TRANSFORMERS_VERBOSITY",
    "datasets": "DATASETS_VERBOSITY",
    "huggingface_hub": "HF_HUB_VERBOSITY",
}
# What this project says itself.
_OWN = "rd_hf"
_NO_BARS = ("TQDM_DISABLE", "HF_HUB_DISABLE_PROGRESS_BARS")


def command_parser(
    name: str,
    words: str | None,
    options: type | None = None,
    groups: Mapping[str, Sequence[str]] | None = None,
    *,
    prog: str | None = None,
) -> Parser:
    """The parser of ``rd-hf NAME``, with what every command understands.

    Args:
        name: as typed after ``rd-hf``.
        words: the docstring of its module: what it does, with examples.
        options, groups: its arguments, see :func:`rd_hf.options.add_groups`; without groups all fields of ``options``.
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
    if options is not None:
        add_groups(parser, options, groups or {"": ()})
    return parser


def command(
    build_parser: Callable[[], argparse.ArgumentParser],
    run: Callable[[argparse.Namespace], int | None],
    *,
    extra: str | None = None,
    derived: Callable[[argparse.Namespace], Mapping[str, str | os.PathLike]] = lambda args: {},
    prints_result: Callable[[argparse.Namespace], bool] = lambda args: False,
    **how: Any,
) -> Callable[..., int]:
    """The ``main`` of a command: parse, refuse to replace what is read, run, and end as every command does.

    Args:
        build_parser: makes one with :func:`command_parser`.
        run: the command; its exit code, None for 0.
        extra: the extra of the package that the command belongs to, if any.
        derived: what it writes beside its ``--output``, in words.
        prints_result: whether what it prints is the result that was asked for, which --quiet leaves alone.
        how: see :func:`rd_hf.commands._main.run_command`.
    """

    def main(argv: list[str] | None = None) -> int:
        parser, asked = build_parser(), False

        def body() -> int | None:
            nonlocal asked
            args = parser.parse_args(argv)
            asked = prints_result(args)
            with as_loud_as(args, extra, keep_output=asked):
                refuse(parser, args, derived(args))
                return run(args)

        return run_command(parser.prog, body, prints_result=lambda: asked, **how)

    if build_parser.__module__ == "__main__":  # python -m rd_hf.commands.NAME
        sys.exit(main())
    return main


@contextmanager
def heavy_imports(warnings: bool = True) -> Iterator[None]:
    """Import inside what takes seconds, when it is needed: --help and typing errors are answered at once before.

    transformers then shows no bars, and without ``warnings`` no warnings either.
    """
    with gc_paused():
        from transformers.utils import logging as transformers_logging

        transformers_logging.disable_progress_bar()
        if not warnings:
            transformers_logging.set_verbosity_error()
        yield


def tell(evaluated: Evaluated) -> int:
    """Print what an evaluation found and what it left out; the exit code, 1 where something was left out."""
    print(evaluated.text)
    for message in evaluated.failed:
        print(f"left out: {message}", file=sys.stderr)
    print(evaluated.ending)
    return 1 if evaluated.failed else 0


@contextmanager
def as_loud_as(args: argparse.Namespace, extra: str | None, keep_output: bool) -> Iterator[None]:
    """Run what stands inside as quietly or loudly as ``args`` ask, but for a result that is printed (``keep_output``).

    A ValueError if a library is not installed names the extra that brings it.
    """
    before = {name: os.environ.get(name) for name in (*_LOUDNESS.values(), *_NO_BARS)}
    levels = {library: logging.getLogger(library).level for library in (*_LOUDNESS, _OWN)}
    told = logging.StreamHandler(sys.stderr)
    told.setFormatter(logging.Formatter("rd-hf: %(message)s"))
    if args.quiet:
        os.environ |= dict.fromkeys(_LOUDNESS.values(), "error") | dict.fromkeys(_NO_BARS, "1")
        for library in _LOUDNESS:
            logging.getLogger(library).setLevel("ERROR")
    if args.verbose:
        logging.getLogger(_OWN).setLevel("INFO")
        logging.getLogger(_OWN).addHandler(told)
        logging.getLogger(_OWN).info("%s", _asked(args))
    started = time.monotonic()
    try:
        with ExitStack() as stack:
            if args.quiet and not keep_output:
                nowhere = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
                stack.enter_context(redirect_stdout(nowhere))
            yield
    except ModuleNotFoundError as error:
        raise ValueError(what_to_install(error, extra)) from error
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
        for name in before:
            os.environ.pop(name, None)
        os.environ |= {name: value for name, value in before.items() if value is not None}


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
