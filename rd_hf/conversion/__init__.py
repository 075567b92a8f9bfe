"""To and from what others write: raw embeddings into nested ones, nested ones into files that other tools read."""
