"""Load a fitted model the way a user does and show that its embedding is nested.

python scripts/quickstart_check.py MODEL_FOLDER EMBEDDINGS_FOLDER
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from pathlib import Path

# Ubiquitin and insulin's B chain: two lengths, so that there is padding; and one masked residue.
SEQUENCES = [
    "MQIFVKTLTGKTITLEVEPSDTIENVKAKIQDKEGIPPDQQRLIFAGKQLEDGRTLSDYNIQKESTLHLVLRLRGG",
    "FVNQHLCGSH<mask>VEALYLVCGERGFFYTPKT",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="folder that rd-hf fit wrote")
    parser.add_argument("fasta", type=Path, help="the sequences that rd-hf embed read")
    parser.add_argument("embeddings", type=Path, help="folder that rd-hf embed wrote")
    check(parser.parse_args())


def check(args: argparse.Namespace) -> None:
    """Print what is in the two folders; exit with a message where it is not as it should be."""
    # Imported here, so that --help and typing errors are answered at once.
    import pyarrow.parquet as pq
    import torch
    from datasets import Dataset, disable_progress_bars
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging

    from rd_hf.data.sources import read_records
    from rd_hf.embedding import Embedder

    logging.disable_progress_bar()
    disable_progress_bars()

    model = AutoModel.from_pretrained(args.model, trust_remote_code=True)
    print(
        f"{'level':>8} {'width':>6} {'selected components':>20} {'held-out R2':>12} {'masked-LM loss, validation':>27}"
    )
    levels = zip(
        json.loads((args.model / "fit_report.json").read_text(encoding="utf-8")), model.config.levels, strict=True
    )
    for fitted, level in levels:
        selected = f"{fitted['selected_components']} of {fitted['components']}" if fitted["components"] else "(copied)"
        held = f"{fitted['heldout']['r2']:.4f}" if fitted["heldout"] else "-"
        loss = level.get("pretraining")
        shown = f"{loss['validation_loss']:.4f} nats (unigram {loss['unigram_entropy']:.4f})" if loss else "-"
        print(f"{level['name']:>8} {fitted['nested_width']:>6} {selected:>20} {held:>12} {shown:>27}")
    tokenizer = AutoTokenizer.from_pretrained(args.model, trust_remote_code=True)
    tokens = tokenizer(SEQUENCES, padding=True, return_tensors="pt")
    nested = True
    with torch.no_grad():
        widest = {level: model(**tokens, level=level) for level in model.config.nested_dims}
    for small, large in itertools.combinations(widest, 2):
        equal = torch.equal(widest[large].nested(small), widest[small].last_hidden_state)
        nested &= equal
        width = model.config.nested_dims[small]
        print(f"torch.equal(embedding at {large}[..., :{width}], embedding at {small}): {equal}")

    shards = sorted(args.embeddings.glob("*.parquet"))
    rows = sum(pq.read_metadata(shard).num_rows for shard in shards)
    print(f"{rows} embedded proteins in {', '.join(map(str, shards))}")
    print(pq.read_schema(shards[0]).remove_metadata())

    records = [
        {"id": record.id, "sequence": record.sequence} for record in itertools.islice(read_records(args.fasta), 100)
    ]
    mapped = Dataset.from_list(records).map(Embedder(str(args.model)), batched=True).with_format("torch")
    own = args.embeddings.parent / "datasets_map.parquet"
    mapped.to_parquet(own)
    job = pq.read_table(shards[0], columns=["id", "embedding"]).slice(0, len(records))
    assert job["id"].to_pylist() == mapped["id"][:]
    there, here = torch.tensor(job["embedding"].to_pylist()), torch.as_tensor(mapped["embedding"][:])
    apart = float(((there - here).norm(dim=1) / here.norm(dim=1)).max())
    print(f"datasets.map on the first {len(records)} of them: {own}, within {apart:.0e} of rd-hf embed (relative)")
    # Other batches, other order of float32 additions: 1e-6 at these widths; 1e-4 would be a mistake.
    nested &= apart < 1e-4
    print(f"figure of the fit: {args.model / 'fit_report.png'}")
    if not nested:
        sys.exit("the embedding is not nested, or datasets.map and rd-hf embed disagree")


if __name__ == "__main__":
    main()
