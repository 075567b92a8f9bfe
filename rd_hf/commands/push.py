"""Push a fitted model or a folder of embeddings to the Hugging Face Hub, and compare what arrived.

    hf auth login                                                             (once)
    rd-hf push --model my-fit --repo-id my-name/rd-esm2-650M --dry-run
    rd-hf push --model my-fit --repo-id my-name/rd-esm2-650M --private
    rd-hf push embeddings --repo-id my-name/proteome-650M --license cc-by-4.0 (a dataset)

Of embeddings, the files that the folder's manifest names go up, with rejects (unless they name paths of this machine),
manifest and a card; given again after an interruption, the command sends what is missing. Others read a level of it
where it is: rd-hf search hf://datasets/my-name/proteome-650M.

Of a model, what goes up: config, remote code, weights (as the folder holds them: bases only, or full), tokenizer, fit
report and figure, and a card made from them; the folder is not changed. A README.md that you wrote or edited goes up
as it stands, with the repo's name set in an edited one. Code that no version of rd_hf wrote is refused, and settings
that fetch code from elsewhere are too. After the push the repo's settings and code must be the folder's byte for
byte, and its output bit for bit; both are computed by the installed package, so that no fetched code runs beside your
token.
"""

from __future__ import annotations

import argparse
from typing import Any

from rd_hf.commands._arguments import command, command_parser
from rd_hf.hub.options import PushOptions, PushSettings
from rd_hf.options import add_options, options_from


def build_parser() -> argparse.ArgumentParser:
    parser = command_parser("push", __doc__, PushSettings)
    add_options(parser, PushOptions)
    return parser


def run(args: argparse.Namespace) -> None:
    if (args.embeddings is None) == (args.model is None):
        build_parser().error("give --model, or a folder of embeddings")
    if args.model is None:
        from rd_hf.hub import embeddings

        plan_push: Any = embeddings.plan_embeddings
        push: Any = embeddings.push_embeddings
    else:
        from rd_hf.hub import push as models

        plan_push, push = models.plan_push, models.push_folder
    folder = args.embeddings or args.model
    if args.dry_run:
        plan = plan_push(folder, args.repo_id, license=args.license)
        print(f"{plan}\nnothing was pushed (--dry-run); the card:\n\n{plan.card}")
        return
    result = push(folder, args.repo_id, **vars(options_from(PushOptions, args)))
    print(result.plan)
    print(f"pushed: {result.url} (revision {result.revision})")
    if result.checked:
        print(f"loaded back and equal bit for bit: {', '.join(result.checked)}")


main = command(build_parser, run, prints_result=lambda args: bool(args.dry_run))
