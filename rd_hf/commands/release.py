"""Publish a reverse-distilled family with one command: fetch, fit, judge, push, load back and compare.

    rd-hf release --config rd-esm2-3B --repo-id rohitsinghlab/rd-esm2-3B --plan
    rd-hf release --config rd-esm2-3B --repo-id rohitsinghlab/rd-esm2-3B --group-tokens 32768
    rd-hf release --config rd-esm2-3B --repo-id rohitsinghlab/rd-esm2-3B-published --from-published

--plan answers first and fetches nothing: bytes to download, disk, peak memory with and without --group-tokens, FLOP,
hours at a rate that it measures here in a few seconds, and whether it fits. A run that does not fit is refused before
the download, and one without a login before the hours.

Backbones come from the Hub at their pinned commits. The bases are fitted on the 1,000 proteins that the package
carries unless --input says otherwise. A run that was stopped continues with the same command: a fit of other content is
refused then, and stages are done again where --least-r2, --license or --private is another. --skip leaves stages out.
--from-published publishes the first publication's bases instead of fitting new ones.
"""

from __future__ import annotations

import argparse

from rd_hf.commands._arguments import command, command_parser
from rd_hf.fitting.settings import FitOptions
from rd_hf.hub.options import PushOptions
from rd_hf.hub.release_settings import ReleaseSettings
from rd_hf.options import add_options, options_from


def build_parser() -> argparse.ArgumentParser:
    parser = command_parser("release", __doc__)
    add_options(parser.add_mutually_exclusive_group(required=True), ReleaseSettings, "config", "level")
    add_options(parser, ReleaseSettings, "repo_id", "plan", "json", "output", "skip", "from_published")
    fit = parser.add_argument_group("the fit (see rd-hf fit)")
    add_options(fit, ReleaseSettings, "data")
    add_options(fit, FitOptions, "num_sequences", "seed", "max_length", "batch_tokens")
    add_options(fit, ReleaseSettings, "group_tokens", "least_r2")
    add_options(parser.add_argument_group("the push (see rd-hf push)"), PushOptions, "private", "license", "token")
    add_options(parser, ReleaseSettings, "memory")
    return parser


def run(args: argparse.Namespace) -> None:
    from rd_hf.hub.release import run_release

    parts = {"fit": options_from(FitOptions, args), "push": options_from(PushOptions, args)}
    run_release(options_from(ReleaseSettings, args, **parts))


def _derived(args: argparse.Namespace) -> dict[str, str]:
    usual = f"release-{args.repo_id.partition('/')[2]}"
    return {} if args.output else {f"the usual --output {usual}": usual}


main = command(build_parser, run, derived=_derived, prints_result=lambda args: bool(args.plan))
