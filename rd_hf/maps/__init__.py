"""A page to look at: the proteins of an embedding folder in two dimensions, level by level."""
