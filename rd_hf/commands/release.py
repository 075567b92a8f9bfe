"""Publish a reverse-distilled family with one command: fetch, fit, judge, push, load back and compare.

    rd-hf release --level 3B --repo-id rohitsinghlab/rd-esm2-3B --plan
    rd-hf release --level 3B --repo-id rohitsinghlab/rd-esm2-3B --window-tokens 32768
    rd-hf release --level 3B --repo-id rohitsinghlab/rd-esm2-3B-published --from-published

--plan answers first and fetches nothing: bytes to download, disk, peak memory with and without --window-tokens, FLOP,
hours at a rate that it measures here in a few seconds, and whether it fits. A run that does not fit is refused before
the download, and one without a login before the hours.

Backbones come from the Hub at their pinned commits. The bases are fitted on the 1,000 proteins that the package
carries unless --data says otherwise. A run that was stopped goes on with the same command: a fit of other content is
refused then, and stages are done again where --least-r2, --license or --private is another. --skip leaves stages out.
--from-published publishes the first publication's bases instead of fitting new ones.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import sys
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any

from rd_hf.commands._arguments import command_parser, run_with_arguments
from rd_hf.options import real, whole


def build_parser() -> argparse.ArgumentParser:
    parser = command_parser("release", __doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--level", help="largest level of ESM-2: 35M, 150M, 650M, 3B or 15B")
    what.add_argument("--config", help="folder that describes another family (a config.json as in hub_configs/)")
    parser.add_argument("--repo-id", required=True, help="owner/name on the Hub; made where it does not exist")
    parser.add_argument("--plan", action="store_true", help="say what it would need, and do nothing")
    parser.add_argument("--json", action="store_true", help="the plan as JSON, sizes in bytes")
    parser.add_argument("--output", type=Path, help="folder of the work and its record (default: release-NAME)")
    parser.add_argument(
        "--skip",
        nargs="+",
        default=[],
        choices=("fetch", "fit", "judge", "push", "compare"),
        help="stages to leave out; without push and compare no login is needed",
    )
    parser.add_argument("--from-published", action="store_true", help="the first publication's bases, not new ones")
    fit = parser.add_argument_group("the fit (see rd-hf fit)")
    fit.add_argument("--data", nargs="+", help="sequences (default: the 1,000 proteins of the package)")
    fit.add_argument("--num-sequences", type=whole(1), help="draw this many distinct sequences (default: all)")
    fit.add_argument("--seed", type=int, default=0, help="of the draw and of the held-out split (default 0)")
    fit.add_argument("--max-length", type=whole(1), default=1022, help="residues used of a sequence (default 1022)")
    fit.add_argument(
        "--batch-tokens", type=whole(1), default=4096, help="tokens a batch, padding included (default 4096)"
    )
    fit.add_argument(
        "--window-tokens", type=whole(1), metavar="N", help="hold one backbone at a time, N tokens a window"
    )
    fit.add_argument(
        "--least-r2", type=real(), default=0.0, help="held-out R2 below which nothing is pushed (default 0)"
    )
    push = parser.add_argument_group("the push (see rd-hf push)")
    push.add_argument("--private", action="store_true", default=None, help="make a new repo private")
    push.add_argument("--license", default="mit", help="Hub licence id of the bases, for the card (default mit)")
    push.add_argument("--token", help="Hub token (default: the one of 'hf auth login', or HF_TOKEN)")
    parser.add_argument("--memory", help="memory to plan for, for example 24GB (default: what is free here)")
    return parser


def run(args: argparse.Namespace) -> None:
    # Imported here, so that --help and a mistyped flag answer at once.
    from rd_hf.fitting import FitOptions, draw_sample
    from rd_hf.fitting.sample import plan_batches
    from rd_hf.hub.card import is_hub_id
    from rd_hf.hub.plan import make_plan, memory_of_imports
    from rd_hf.hub.push import compare_with_hub, push_folder
    from rd_hf.hub.release import (
        Release,
        check_fits,
        check_login,
        family_of,
        fetch,
        fetch_published,
        judge,
        parse_memory,
    )

    if not is_hub_id(args.repo_id):
        raise ValueError(f"{args.repo_id!r} is no Hub id: write it as owner/name")
    if args.from_published and args.level is None:
        raise ValueError("--from-published needs a --level of ESM-2: the first publication's bases are for it")
    window = args.window_tokens
    if window is not None and window < args.batch_tokens:
        raise ValueError(f"--window-tokens {window:,} must be at least --batch-tokens {args.batch_tokens:,}")
    config = family_of(args.level, args.config)
    output = args.output or _usual_output(args)
    data = args.data or [str(files("rd_hf").joinpath("data/examples/proteins_1000.fasta.gz"))]
    memory = None if args.memory is None else parse_memory(args.memory)
    skipped = set(args.skip)

    if not args.from_published:
        base = memory_of_imports()
        options = FitOptions(
            num_sequences=args.num_sequences,
            seed=args.seed,
            max_length=args.max_length,
            batch_tokens=args.batch_tokens,
        )
        sample = draw_sample(data, options)
        lengths = [len(sequence) for sequence in sample.sequences]
        shapes = [
            (len(positions), 2 + max(lengths[p] for p in positions))
            for _, positions in plan_batches(sample, args.batch_tokens)
        ]
        budget = window or max(32768, args.batch_tokens)
        plan = make_plan(config, shapes, args.batch_tokens, budget, base, work=output)
        trouble = plan.trouble(window is not None, memory)
        verdict = "fits" if trouble is None else f"does not fit: {trouble}"
        print(json.dumps({**asdict(plan), "verdict": verdict}) if args.json else f"{plan}\n{verdict}")
        if args.plan:
            return
        check_fits(plan, window is not None, memory)
    elif args.plan:
        raise ValueError("--from-published fits nothing, so that there is nothing to plan: it fetches some megabytes")
    if not {"push", "compare"} <= skipped:
        print(f"logged in as {check_login(args.repo_id, args.token)}")

    settings: dict[str, Any] = {
        "levels": [[entry["name"], entry["repo_id"], entry["revision"]] for entry in config.levels],
        "family": [config.levels, config.residual_directions],
        "data": data,
        "from published": args.from_published,
        "fit": [args.num_sequences, args.seed, args.max_length, args.batch_tokens],
        "repo": args.repo_id,
    }
    if not args.from_published:
        # The same files may hold other proteins by now.
        settings["sequences"] = hashlib.sha256("\n".join(sample.sequences).encode()).hexdigest()
    release = Release(output, settings)
    if "fit" not in release.stages:
        # What is there stays, and what was found damaged and deleted comes again.
        release.stages.pop("fetch", None)
    hub = {} if args.token is None else {"token": args.token}

    def do_fit() -> dict[str, Any]:
        from rd_hf.commands import fit

        source = output / "config"
        source.mkdir(parents=True, exist_ok=True)
        config.save_pretrained(source)
        words = ["--config", str(source), "--data", *data, "--output", str(release.model), "--resume"]
        for name in ("num_sequences", "seed", "max_length", "batch_tokens", "window_tokens"):
            if getattr(args, name) is not None:
                words += [f"--{name.replace('_', '-')}", str(getattr(args, name))]
        fit.run(fit.build_parser().parse_args([*words, "--form", "bases"]))
        # Its model refers to itself, and would still be held in the stages to come.
        gc.collect()
        return {}

    def do_import() -> dict[str, Any]:
        from rd_hf.commands import import_published

        words = ["--weights", str(output / "published" / "weights"), "--level", args.level]
        import_published.run(import_published.build_parser().parse_args([*words, "--output", str(release.model)]))
        return {}

    def do_push() -> dict[str, Any]:
        result = push_folder(
            release.model, args.repo_id, private=args.private, license=args.license, token=args.token, check=False
        )
        print(result.plan)
        return {"url": result.url, "revision": result.revision, "bytes": sum(result.plan.files.values())}

    def do_compare() -> dict[str, Any]:
        pushed = release.stages.get("push", {}).get("revision", "main")
        checked = compare_with_hub(release.model, args.repo_id, pushed, token=args.token)
        print(f"loaded back and equal bit for bit: {', '.join(checked)}")
        return {"levels": checked}

    if args.from_published:
        release.run("fetch", skipped, lambda: fetch_published(output / "published", args.level, **hub), print)
        release.run("fit", skipped, do_import, print)
    else:
        release.run("fetch", skipped, lambda: fetch(config, print, **hub), print)
        release.run("fit", skipped, do_fit, print)
    release.run("judge", skipped, lambda: judge(release.model, args.least_r2), print, least_r2=args.least_r2)
    release.run("push", skipped, do_push, print, license=args.license, private=args.private)
    release.run("compare", skipped, do_compare, print)


def _usual_output(args: argparse.Namespace) -> Path:
    return Path(f"release-{args.repo_id.partition('/')[2]}")


def _derived(args: argparse.Namespace) -> dict[str, Path]:
    return {} if args.output else {f"the usual --output {_usual_output(args)}": _usual_output(args)}


def main(argv: list[str] | None = None) -> int:
    """Run the command; its exit code (see :mod:`rd_hf.commands._main`)."""
    return run_with_arguments(build_parser(), run, argv, derived=_derived)


if __name__ == "__main__":
    sys.exit(main())
