"""From letters to ESM-2 tokens: what happens to every character, stated once.

========================  ==========================================================================
character                 what happens
========================  ==========================================================================
20 standard amino acids   kept
X B Z U O                 kept: ESM-2's vocabulary has a token for each
J (Leu or Ile)            becomes X: ESM-2 has no token for it
lower case                becomes upper case (soft masking, A2M/A3M insertions)
``-`` ``.``               removed: gaps of an alignment, not residues
white space               removed
``*`` at the end          removed, however many: the stop codon of a translation
``*`` elsewhere           rejected: a translation through a stop codon is no protein
anything else             rejected, naming the character and its position (non-ASCII letters too)
no residue left           rejected
========================  ==========================================================================

Rows of an embedding are residues of the *cleaned* sequence. Cleaning happens before any tokenizer
because ``EsmTokenizer`` folds a run of unknown letters into one ``<unk>``, after which rows and
residues no longer line up.
"""

from __future__ import annotations

import re
import string

import numpy as np

from rd_hf.model.pooling_rd_esm import VOCABULARY as VOCABULARY

CLS_ID, PAD_ID, EOS_ID, MASK_ID = (VOCABULARY.index(token) for token in ("<cls>", "<pad>", "<eos>", "<mask>"))
STANDARD_RESIDUES = "LAGVSERTIDPKQNFYMHWC"
RESIDUES = STANDARD_RESIDUES + "XBUZO"

_GAPS = str.maketrans("", "", "-. \t\r\n\v\f")
# Only ASCII letters change case: str.upper() would turn one "ß" into the two residues "SS".
_LETTERS = str.maketrans(string.ascii_lowercase + "J", string.ascii_uppercase.replace("J", "X") + "X")
_NOT_A_RESIDUE = re.compile(f"[^{RESIDUES}]")

# One byte in, one token id out: a hundred times faster than EsmTokenizer on the same letters.
_TOKEN_OF_BYTE = np.full(256, VOCABULARY.index("<unk>"), dtype=np.int64)
for _letter in RESIDUES:
    _TOKEN_OF_BYTE[ord(_letter)] = VOCABULARY.index(_letter)


class RejectedSequenceError(ValueError):
    """A sequence that cannot be embedded; the message is the reason that goes to the rejects file."""


def clean_sequence(sequence: str) -> str:
    """Apply the module's table to one sequence.

    Args:
        sequence: letters as a file has them.

    Returns:
        Upper-case letters of :data:`RESIDUES`, at least one.

    Raises:
        RejectedSequenceError: a character without a residue, a stop inside, or nothing left.
    """
    cleaned = sequence.translate(_GAPS).rstrip("*").translate(_LETTERS)
    if not cleaned:
        raise RejectedSequenceError("no residues")
    odd = _NOT_A_RESIDUE.search(cleaned)
    if odd is not None:
        what = "stop codon '*' inside the sequence" if odd[0] == "*" else f"{odd[0]!r} is not a residue"
        raise RejectedSequenceError(f"{what} (position {odd.start() + 1} of {len(cleaned)})")
    return cleaned


def encode(sequence: str) -> np.ndarray:
    """Token ids of one cleaned sequence, with cls and eos: (length + 2,) int64.

    Raises:
        RejectedSequenceError: a letter that :func:`clean_sequence` would not have let through.
    """
    tokens = np.empty(len(sequence) + 2, dtype=np.int64)
    tokens[0], tokens[-1] = CLS_ID, EOS_ID
    tokens[1:-1] = _TOKEN_OF_BYTE[np.frombuffer(sequence.encode("latin-1", errors="replace"), dtype=np.uint8)]
    if (tokens == VOCABULARY.index("<unk>")).any():
        raise RejectedSequenceError("encode() takes cleaned sequences only; call clean_sequence() first")
    return tokens
