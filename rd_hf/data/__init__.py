"""Input of any kind in, as clean records that are all accounted for; token-budget batches of them out."""
