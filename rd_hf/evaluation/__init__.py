"""Does bigger win? Probes of nested embeddings, their baselines, and intervals that can be trusted.

Each command is one function of `options`: `dms`, `residues` and `homology_runs`, in the `frame` that all share. They
read inputs (`assays`, `tasks`, `homology`), run backbones once (`families`, `embeddings`), map the same states to every
contender (`representations`, `treatments`), judge it (`probe`, `homology`, `statistics`), and write tables and figures
(`report`, `homology_report`, `tables`, `plots`).
"""
