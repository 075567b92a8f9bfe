"""The commands of ``rd-hf``: arguments and words, one file each.

What takes seconds to import is imported as one runs: --help and a mistyped flag are answered at once.
"""
