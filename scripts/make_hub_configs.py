"""Write hub_configs/rd-esm2-650M, rd-esmc-600M, ...: what fitting each model, and its Hub repo, starts from.

    python scripts/make_hub_configs.py             write them all
    python scripts/make_hub_configs.py --check     say whether they are what this command would write
    python scripts/make_hub_configs.py --released  note this version's code as published, before the version moves on

All come from one description of the families, rd_hf/families.py. Each holds a config.json alone: the backbones
are fetched by rd-hf fit, which adds bases, code, tokenizer and card. The shipped mini family, which is a
complete repo, gets the remote code, its entries in config.json, the tokenizer and what sentence-transformers reads of
this version.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path


def config_text(name: str) -> str:
    """The config.json of one model, the same from every release of transformers."""
    from rd_hf.families import NAMED

    fields = NAMED[name]().to_diff_dict()
    fields.pop("transformers_version", None)
    return json.dumps(fields, indent=2, sort_keys=True) + "\n"


def note_release() -> None:
    """Add this version's code to what folders of earlier versions may hold, rd_hf/earlier_code.json."""
    import rd_hf
    from rd_hf.files import write_json
    from rd_hf.trust import earlier_code, this_code

    write_json(Path(rd_hf.__file__).parent / "earlier_code.json", earlier_code() | {rd_hf.__version__: this_code()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("hub_configs"), help="folder of the folders (hub_configs)")
    parser.add_argument("--check", action="store_true", help="write nothing; fail where a file is another")
    parser.add_argument("--released", action="store_true", help="note this version's code as published; nothing else")
    args = parser.parse_args()
    if args.released:
        note_release()
        return
    # Imported here, so that --help and typing errors are answered at once.
    import rd_hf.model.configuration_rd_esm
    from rd_hf.families import NAMED
    from rd_hf.files import write_json
    from rd_hf.hub.checkpoint import SENTENCE_TRANSFORMERS_FILES
    from rd_hf.hub.tokenizer import save_tokenizer
    from rd_hf.trust import OWN_CLASSES

    stale = []
    wanted = {args.output / name / "config.json": config_text(name) for name in NAMED}
    code = Path(rd_hf.model.configuration_rd_esm.__file__).parent
    for path in sorted(code.glob("*_rd_esm.py")):
        wanted[args.output / "rd-esm2-mini" / path.name] = path.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as scratch:
        save_tokenizer(Path(scratch))
        for name, content in SENTENCE_TRANSFORMERS_FILES.items():
            write_json(Path(scratch) / name, content, indent=2)
        for path in sorted(Path(scratch).iterdir()):
            wanted[args.output / "rd-esm2-mini" / path.name] = path.read_text(encoding="utf-8")
    # Which of the code's classes transformers is to load; what else it says is a fit's.
    mini = args.output / "rd-esm2-mini" / "config.json"
    if mini.is_file():
        fields = json.loads(mini.read_text(encoding="utf-8")) | {"auto_map": OWN_CLASSES}
        wanted[mini] = json.dumps(fields, indent=2, sort_keys=True) + "\n"
    # Code of this project under names that it no longer has.
    for path in sorted((args.output / "rd-esm2-mini").glob("*_rd_esm.py")):
        if path in wanted:
            continue
        if args.check:
            stale.append(str(path))
            continue
        path.unlink()
        print(f"{path} removed")
    for path, text in wanted.items():
        if args.check:
            if not path.exists() or path.read_text(encoding="utf-8") != text:
                stale.append(str(path))
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        print(path)
    if stale:
        sys.exit(f"not what this command writes: {', '.join(stale)}; run python scripts/make_hub_configs.py")


if __name__ == "__main__":
    main()
