"""Nucleotide sequences among proteins: every base is also an amino acid's letter, so somebody has to say it.

A record is taken for one if it has at least :data:`MIN_LETTERS` letters, all four bases are among them, and 95 % are
``A C G T U N``, the rest IUPAC's codes for several bases. A natural protein with these properties would be one in
4^-50; linkers and repeats of few letters (poly-A, GAGAGA, DNA-like T-A-T-A) lack a base. Shorter records (primers,
peptides) are judged together, by the same rule and only if nine tenths of their letters obey it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from rd_hf.data.records import FastaRecord, InputError, Say, Source

MIN_LETTERS = 50
# The verdict comes after so many records, or at the end: before the first part of a job is computed.
LOOKED_AT = 1000
_BASES = "ACGTUN"
_ALPHABET = frozenset(_BASES + "RYSWKMBDHV")
_FOUR = frozenset("ACGT")
_NEVER = re.compile("[EFILPQJOXZ]", re.IGNORECASE | re.ASCII)
_SHARE, _SHORT_SHARE = 0.95, 0.9


def _bases(letters: str) -> frozenset[str] | None:
    """The bases that cleaned letters consist of, None where they are no nucleotides'."""
    found = frozenset(letters)
    if not found <= _ALPHABET or sum(map(letters.count, _BASES)) < _SHARE * len(letters):
        return None
    return frozenset("T" if base == "U" else base for base in found & set(_BASES))


@dataclass(slots=True)
class _Counts:
    """Counts records, and those that are taken for nucleotides."""

    records: int = 0
    long: int = 0
    short: int = 0
    short_letters: int = 0
    short_bases: set[str] = field(default_factory=set)
    all_short_letters: int = 0

    def add(self, sequence: str) -> None:
        self.records += 1
        # Nearly every protein has such a letter among its first: the rest of the rule is not needed then.
        never = _NEVER.search(sequence) is not None
        letters = sequence if never else sequence.upper().replace("-", "").replace(".", "").rstrip("*")
        bases = _bases(letters) if letters and not never else None
        if len(letters) >= MIN_LETTERS:
            self.long += bases is not None and bases >= _FOUR
            return
        self.all_short_letters += len(letters)
        if bases is not None:
            self.short += 1
            self.short_letters += len(letters)
            self.short_bases |= bases

    @property
    def nucleotides(self) -> int:
        enough = self.short_letters >= max(MIN_LETTERS, _SHORT_SHARE * self.all_short_letters)
        return self.long + self.short * (enough and self.short_bases >= _FOUR)


def watch_nucleotides(
    source: Source, records: Iterable[FastaRecord], say: Say | None, strict: bool = False
) -> Iterator[FastaRecord]:
    """Pass records on and say once, with counts, if some look like nucleotides; with ``strict`` an InputError."""
    counts = _Counts()
    reported = False

    def report() -> bool:
        if counts.nucleotides == 0:
            return False
        sentence = (
            f"{source}: {counts.nucleotides:,} of the first {counts.records:,} records look like nucleotide sequences "
            "(A, C, G, T, U, N only), which are embedded as if they were proteins: translate them first"
        )
        if strict:
            raise InputError(sentence.replace("are embedded", "would be embedded") + ", or leave --strict away")
        if say is not None:
            say(sentence)
        return True

    for record in records:
        if not reported:
            counts.add(record.sequence)
            reported = counts.records % LOOKED_AT == 0 and report()
        yield record
    if not reported:
        report()
