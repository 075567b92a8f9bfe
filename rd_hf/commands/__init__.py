"""The commands of ``rd-hf``: arguments and words, one file each."""
