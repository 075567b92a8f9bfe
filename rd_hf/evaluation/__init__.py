"""Does bigger win? Probes of nested embeddings, their baselines, and intervals that can be trusted.

A run goes through these modules in order: `assays` (read and check), `embeddings` (one forward pass a variant,
cached), `representations` (every contender as an affine map of the same pooled states), `splits` and `probe`
(nested cross-validation in closed form), `runs` (one row a fold), `statistics`, `report` and `plots`.
"""
