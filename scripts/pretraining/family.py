"""Members of the mini families. Imports nothing heavy, so that ``--help`` can name them at once."""

from __future__ import annotations

from rd_hf.families import Member

FAMILIES = {
    "esm2": {name: Member(name, "", width, 6, 4) for name, width in (("0.3M", 64), ("1.2M", 128), ("2.7M", 192))},
    # A pair: enough for a chain of its own, and for one that begins or ends with ESM-2.
    "esmc": {name: Member(name, "", width, 6, 4) for name, width in (("C0.3M", 64), ("C1.3M", 128))},
}
