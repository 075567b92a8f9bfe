# %% [markdown]
# # Where in the cell? Annotating proteins by what their nearest neighbours are called
#
# 500 eukaryotic proteins come with the compartment that they were seen in (the test set of DeepLoc, Almagro Armenteros
# et al. 2017). Three quarters are the annotated database; the others play the new proteome: each gets the label of its
# nearest neighbour, and how far that is to be relied on (Littmann et al. 2021).
#
#     python scripts/examples/label_transfer.py
#
# It opens as a notebook too (the cells are marked `# %%`). Needs `pip install ".[search,plots]"` in the clone.

# %%
import csv
import os
import random
from collections import Counter
from pathlib import Path

import matplotlib

from rd_hf import RDEsmConfig
from rd_hf.data.fasta import read_fasta
from rd_hf.embedding import EmbeddingOptions, JobSettings, run_job

from rd_hf.search import SearchSettings, run_search  # isort: skip

matplotlib.use("Agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).parent if "__file__" in globals() else Path("scripts/examples")
MODEL = os.environ.get("RD_HF_MODEL", str(HERE.parents[1] / "hub_configs" / "rd-esm2-mini"))
OUTPUT = Path(os.environ.get("RD_HF_OUTPUT", "examples_output"))
PROTEINS = int(os.environ.get("RD_HF_PROTEINS", "500"))  # all that have a label
LEVELS = list(RDEsmConfig.from_pretrained(MODEL).nested_dims)[-3:]

# %% [markdown]
# Their headers read `>Q8NFJ6 Cell.membrane-M test`: id, and compartment with M, S or U for membrane, soluble, unknown.

# %%
carried = HERE.parents[1] / "rd_hf" / "data" / "examples" / "proteins_1000.fasta.gz"
proteins = [record for record in read_fasta(carried) if record.description.endswith(" test")][:PROTEINS]
compartment = {record.id: record.description.split()[1].rpartition("-")[0] for record in proteins}
random.Random(0).shuffle(proteins)
known, new = proteins[len(proteins) // 4 :], proteins[: len(proteins) // 4]
OUTPUT.mkdir(parents=True, exist_ok=True)
for name, records in (("known", known), ("new", new)):
    text = "".join(f">{record.id}\n{record.sequence}\n" for record in records)
    (OUTPUT / f"{name}.fasta").write_text(text, encoding="utf-8")
labels = OUTPUT / "compartments.tsv"
labels.write_text("".join(f"{record.id}\t{compartment[record.id]}\n" for record in known), encoding="utf-8")

# %% [markdown]
# Both are embedded once, at the largest level; the smaller ones are its first dimensions. The same in a shell:
#
#     rd-hf embed --model hub_configs/rd-esm2-mini --input examples_output/known.fasta --output examples_output/known

# %%
for name in ("known", "new"):
    options = EmbeddingOptions(long="truncate")
    run_job(JobSettings(MODEL, (str(OUTPUT / f"{name}.fasta"),), str(OUTPUT / name), options), show_progress=False)

# %% [markdown]
#     rd-hf search examples_output/known --input examples_output/new --level 2.7M -k 1 \
#         --labels examples_output/compartments.tsv --output examples_output/hits_2.7M.tsv

# %%
usual, count = Counter(compartment[record.id] for record in known).most_common(1)[0]
chance = sum(compartment[record.id] == usual for record in new) / len(new)
print(f"{len(new)} new proteins, {len(known)} known; calling all {usual}: {chance:.2f} right")
answers = {}
for level in LEVELS:
    hits = OUTPUT / f"hits_{level}.tsv"
    run_search(
        SearchSettings(str(OUTPUT / "new"), str(OUTPUT / "known"), str(hits), k=1, level=level, labels=str(labels))
    )
    with open(hits.with_name(f"{hits.stem}.labels.tsv"), newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    found = sorted(
        ((float(row["reliability"]), compartment[row["query_id"]] == row["label"]) for row in rows), reverse=True
    )
    answers[level] = [right for _, right in found]
    half = answers[level][: len(found) // 2]
    print(
        f"{level}: {sum(answers[level]) / len(found):.2f} right, {sum(half) / len(half):.2f} of the half with the most "
        f"reliable labels (0.5 / (0.5 + distance) of at least {found[len(half) - 1][0]:.3f})"
    )

# %%
figure, axis = plt.subplots(figsize=(5.5, 3.6), layout="constrained")
for level in LEVELS:
    right = answers[level]
    shares = range(5, len(right) + 1)
    axis.plot([100 * n / len(right) for n in shares], [sum(right[:n]) / n for n in shares], label=level)
axis.axhline(chance, color="grey", linestyle=":", label=f"all {usual}")
axis.set_xlabel("new proteins annotated, most reliable first (%)")
axis.set_ylabel("share that is right")
axis.legend()
figure.savefig(OUTPUT / "label_transfer.png", dpi=90)
print(f"picture: {OUTPUT / 'label_transfer.png'}")
