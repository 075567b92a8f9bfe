#!/usr/bin/env bash
# The main job, offline, from a fresh clone: fit bases on 1,000 real proteins, save, load, embed, check, plot.
# Everything it makes lies in quickstart_output/; run it again to start over.
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh" plots
export HF_HUB_OFFLINE=1
output=quickstart_output
sequences=rd_hf/data/examples/proteins_1000.fasta.gz
rm -rf "$output"
echo "== 1. fit bases (accelerate) =="
rd-hf fit --config hub_configs/rd-esm2-mini --input "$sequences" --output "$output/model"
echo "== 2. embed a FASTA file into Parquet =="
rd-hf embed --model "$output/model" --input "$sequences" --output "$output/embeddings"
echo "== 3. load as a user does, and check =="
python scripts/quickstart_check.py "$output/model" "$sequences" "$output/embeddings"
