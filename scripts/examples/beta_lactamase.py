# %% [markdown]
# # Which mutations does TEM-1 beta-lactamase survive?
#
# TEM-1 makes bacteria resistant to ampicillin. Stiffler et al. (2015) measured the fitness of nearly all of its single
# mutants. Here an eighth of that scan goes from CSV to a predicted ranking: embed every variant once, at three levels
# of one nested model, and rank each by a probe that has never seen it.
#
#     python scripts/examples/beta_lactamase.py
#
# It opens as a notebook too (the cells are marked `# %%`). Needs `pip install ".[eval]"` in the clone.

# %%
import csv
import os
from pathlib import Path

import matplotlib
import numpy as np
from scipy.stats import spearmanr
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import KFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from rd_hf import Embedder, RDEsmConfig
from rd_hf.data.fasta import read_fasta

matplotlib.use("Agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).parent if "__file__" in globals() else Path("scripts/examples")
MODEL = os.environ.get("RD_HF_MODEL", str(HERE.parents[1] / "hub_configs" / "rd-esm2-mini"))
OUTPUT = Path(os.environ.get("RD_HF_OUTPUT", "examples_output"))
VARIANTS = int(os.environ.get("RD_HF_VARIANTS", "625"))  # all that are carried
LEVELS = list(RDEsmConfig.from_pretrained(MODEL).nested_dims)[-3:]

# %% [markdown]
# A variant is written as the wild type's residue, its position (from 1) and the new residue: `H24C`.

# %%
wild_type = next(iter(read_fasta(HERE / "data" / "BLAT_ECOLX.fasta"))).sequence
with open(HERE / "data" / "BLAT_ECOLX_part.csv", newline="", encoding="utf-8") as file:
    rows = list(csv.DictReader(file))[:VARIANTS]
mutants = [row["mutant"] for row in rows]
measured = np.array([float(row["DMS_score"]) for row in rows])
positions = [int(mutant[1:-1]) for mutant in mutants]
sequences = []
for mutant, position in zip(mutants, positions, strict=True):
    assert wild_type[position - 1] == mutant[0], f"{mutant} is not a mutant of this sequence"
    sequences.append(wild_type[: position - 1] + mutant[-1] + wild_type[position:])

# %% [markdown]
# One pass of the largest level gives all three: the smaller ones are its first dimensions. Of each variant we keep the
# embedding of the mutated residue, which has seen the whole sequence, and the mean over all residues.

# %%
embedded = Embedder(MODEL, level=LEVELS, pooling="residue")({"sequence": sequences})
features = {}
for level in LEVELS:
    residues = [np.array(one) for one in embedded[f"embedding_{level}"]]
    site = [one[position - 1] for one, position in zip(residues, positions, strict=True)]
    features[level] = np.array(
        [np.concatenate([here, one.mean(axis=0)]) for here, one in zip(site, residues, strict=True)]
    )

# %% [markdown]
# Ridge regression. Every variant is predicted by a probe that was fitted on the other four fifths, its strength chosen
# inside of them.

# %%
folds = KFold(5, shuffle=True, random_state=0)
predicted, spearman = {}, {}
for level in LEVELS:
    probe = make_pipeline(StandardScaler(), RidgeCV(alphas=np.logspace(-1, 5, 13)))
    predicted[level] = cross_val_predict(probe, features[level], measured, cv=folds)
    spearman[level] = spearmanr(predicted[level], measured).statistic
    print(f"{level}: Spearman {spearman[level]:.2f} over {len(rows)} unseen variants")

# %% [markdown]
# The ranking: what each level would have us make first, and where the measurement puts it among all of them.

# %%
place = {int(index): rank for rank, index in enumerate(np.argsort(-measured), 1)}
for level in LEVELS:
    best = [int(index) for index in np.argsort(-predicted[level])[:5]]
    print(f"{level} ranks first: " + ", ".join(f"{mutants[index]} (measured: {place[index]})" for index in best))

# %%
figure, axes = plt.subplots(1, len(LEVELS), figsize=(10, 3.4), sharey=True, layout="constrained")
for axis, level in zip(axes, LEVELS, strict=True):
    axis.scatter(predicted[level], measured, s=9, alpha=0.6, color="tab:blue", edgecolors="none")
    axis.set_title(f"{level}: Spearman {spearman[level]:.2f}")
    axis.set_xlabel("predicted fitness")
axes[0].set_ylabel("measured fitness (Stiffler et al. 2015)")
OUTPUT.mkdir(parents=True, exist_ok=True)
figure.savefig(OUTPUT / "beta_lactamase.png", dpi=90)
print(f"picture: {OUTPUT / 'beta_lactamase.png'}")
