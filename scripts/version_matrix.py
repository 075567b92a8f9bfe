"""One side of scripts/test_versions.sh's table: a release of transformers writes checkpoints, another reads them.

python scripts/version_matrix.py write FOLDER            both forms, with and without heads, and what they must give
python scripts/version_matrix.py read FOLDER RESULTS     load them as a user does, compare, append to RESULTS
python scripts/version_matrix.py table RESULTS           writers by readers
"""

from __future__ import annotations

import argparse
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

# The last two levels are one backbone: its first layer, and the whole.
WIDTHS = {"L0": 32, "L1": 48, "L2": 64, "L3": 80}
BACKBONES = {"L0": 32, "L1": 48, "L3": 64}
# cls, residues, eos; the second row padded. No <mask>: releases before 5.5 scale token dropout otherwise there.
IDS = [[0, 20, 15, 11, 5, 19, 12, 5, 15, 2], [0, 20, 15, 11, 5, 2, 1, 1, 1, 1]]


def write(folder: Path) -> None:
    import torch
    import transformers
    from safetensors.torch import save_file
    from transformers import EsmConfig, EsmForMaskedLM

    from rd_hf.bases.whitening import fit_whitening, moments_of_rows
    from rd_hf.families import Member, esm2_backbone
    from rd_hf.fitting import install_whitening
    from rd_hf.hub import load_family, save_checkpoint
    from rd_hf.model.configuration_rd_esm import RDEsmConfig
    from rd_hf.model.heads_rd_esm import RDEsmForSequenceClassification

    torch.manual_seed(0)
    levels: list[dict[str, Any]] = []
    for name, width in BACKBONES.items():
        settings = {**esm2_backbone(Member(name, "", width, 2, 4))}
        backbone = EsmForMaskedLM(EsmConfig(**settings))
        # Written as ESM-2 was published, rotary frequencies once a layer and rounded to float16: what is computed
        # afresh differs from these. (What EsmForMaskedLM.save_pretrained of 5.6 and later writes, with a literal
        # "*" in that key, releases 5.0 to 5.5 cannot load at all, with or without this project.)
        state = {
            key: value.clone()
            for key, value in backbone.state_dict().items()
            if "inv_freq" not in key and key != "lm_head.decoder.weight"
        }
        frequencies = next(value for key, value in backbone.named_buffers() if "inv_freq" in key).half().float()
        for layer in range(2):
            key = f"esm.encoder.layer.{layer}.attention.self.rotary_embeddings.inv_freq"
            state[key] = frequencies.clone()
        backbone.config.save_pretrained(folder / name)
        save_file(state, folder / name / "model.safetensors", metadata={"format": "pt"})
        levels.append({"name": name, "backbone": settings, "repo_id": str(folder / name)})
    levels.insert(2, {**levels[2], "name": "L2", "layer": 1, "layers_of": "L3"})
    RDEsmConfig(levels=levels, residual_directions=[16, 16, 16], backbones_in_checkpoint=False).save_pretrained(
        folder / "config"
    )
    model = load_family(folder / "config")
    for buffer in model.projections.buffers():
        buffer.copy_(torch.randn_like(buffer) / buffer.shape[0] ** 0.5)
    dims = list(model.config.nested_dims.values())
    sizes = [wide - narrow for narrow, wide in pairwise([0, *dims])]
    rows = torch.randn(500, dims[-1], dtype=torch.float64) @ torch.randn(dims[-1], dims[-1], dtype=torch.float64)
    weights = [1 / place for place in range(1, len(dims) + 1)]
    install_whitening(model, fit_whitening(moments_of_rows(rows, sizes), weights), of="proteins")
    with torch.inference_mode():
        output = model(torch.tensor(IDS))
    expected = {"output": output.last_hidden_state, "whitened": model.whiten(output.last_hidden_state)}
    save_checkpoint(model, folder / "bases", backbones=False)
    save_checkpoint(model, folder / "full", backbones=True, max_shard_size=60_000)
    tensors = {
        level: {"weight": torch.randn(2, width), "bias": torch.randn(2), "mean": torch.randn(width)}
        for level, width in WIDTHS.items()
    }
    for form in ("bases", "full"):
        headed = RDEsmForSequenceClassification.from_pretrained(folder / form, num_labels=2).eval()
        for level, head in tensors.items():
            headed.set_head(level, **head)
            with torch.inference_mode():
                expected[f"logits {level}"] = headed(torch.tensor(IDS), level=level).logits
        save_checkpoint(headed, folder / f"{form}-heads", backbones=None)
    save_file(expected, folder / "expected.safetensors")
    (folder / "writer").write_text(transformers.__version__, encoding="utf-8")


def read(results: Path, folder: Path) -> None:
    import torch
    import transformers
    from safetensors.torch import load_file
    from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(1)
    stored = load_file(folder / "expected.safetensors")
    expected, white = stored["output"], stored["whitened"]
    worst: dict[str, float] = {}
    for form in ("bases", "full"):
        source = str(folder / form)
        assert AutoTokenizer.from_pretrained(source, trust_remote_code=True)("MK")["input_ids"] == [0, 20, 15, 2]
        for level, width in WIDTHS.items():
            model = AutoModel.from_pretrained(source, trust_remote_code=True, level=level)
            with torch.inference_mode():
                found = model(torch.tensor(IDS))
            difference = float((found.last_hidden_state - expected[..., :width]).abs().max())
            # Divided by deviations of about eight, whitened numbers are no larger.
            difference = max(difference, float((found.nested(level, whiten=True) - white[..., :width]).abs().max()))
            headed = AutoModelForSequenceClassification.from_pretrained(
                f"{source}-heads", trust_remote_code=True, level=level
            )
            with torch.inference_mode():
                logits = headed(torch.tensor(IDS)).logits
            # Logits are sums of as many numbers as a level is wide, and of order ten.
            difference = max(difference, float((logits - stored[f"logits {level}"]).abs().max()) / 10)
            worst[form] = max(worst.get(form, 0.0), difference)
    cell = {"writer": (folder / "writer").read_text(encoding="utf-8"), "reader": transformers.__version__, **worst}
    with results.open("a", encoding="utf-8") as file:
        file.write(json.dumps(cell) + "\n")
    # Releases arrange the same float32 sums differently: some units in the last place of numbers of order four.
    if max(worst.values()) > 1e-5:
        raise SystemExit(f"{cell['reader']} does not compute what {cell['writer']} wrote: {worst}")


def table(results: Path) -> None:
    cells = [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]
    readers = list(dict.fromkeys(cell["reader"] for cell in cells))
    print("largest difference of any level, bases only / full")
    print("| written by | " + " | ".join(f"read by {reader}" for reader in readers) + " |")
    print("|---" * (len(readers) + 1) + "|")
    for writer in dict.fromkeys(cell["writer"] for cell in cells):
        row = {cell["reader"]: cell for cell in cells if cell["writer"] == writer}
        shown = (f"{row[r]['bases']:.1e} / {row[r]['full']:.1e}" if r in row else "-" for r in readers)
        print(f"| {writer} | " + " | ".join(shown) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("write", "read", "table"), help="what this process does")
    parser.add_argument("paths", nargs="+", type=Path, help="FOLDER, RESULTS FOLDER [...], or RESULTS")
    args = parser.parse_args()
    if args.what == "write":
        write(*args.paths)
    elif args.what == "read":
        for folder in args.paths[1:]:
            read(args.paths[0], folder)
    else:
        table(*args.paths)


if __name__ == "__main__":
    main()
