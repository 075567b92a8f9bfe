"""Members of the mini family. Imports nothing heavy, so that ``--help`` can name them at once."""

from __future__ import annotations

from rd_hf.families import Member

FAMILY = {name: Member(name, "", width, 6, 4) for name, width in (("0.3M", 64), ("1.2M", 128), ("2.7M", 192))}
