"""The funnel: which level picks candidates and which one scores them, and what that misses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from rd_hf.data.records import InputError
from rd_hf.embedding.options import BINARY
from rd_hf.search.database import Chunk, Database, joined
from rd_hf.search.labels import Tally
from rd_hf.search.neighbours import NOBODY, Hits
from rd_hf.search.settings import Recall, SearchSettings

# Candidates per neighbour, where an approximate index is asked for without a number.
_CANDIDATES = 10
SEED = 0


@dataclass(frozen=True, slots=True)
class SearchPlan:
    """The levels of one search: ``level`` scores hits, ``shortlist_level`` picks candidates.

    They are one where an approximate index picks. There are no ``candidates`` where every row is scored. Where the
    search is ``progressive``, the database lacks ``level``, which is computed for the candidates.
    """

    level: str
    shortlist_level: str
    candidates: int = 0
    progressive: bool = False

    def shortlist(self, index: str, signs: str) -> str | None:
        """How candidates are picked, in words."""
        if not self.candidates:
            return None
        how = index if index != "binary" else f"signs of {'its block' if signs == 'block' else 'all dimensions'}"
        return f"{self.candidates:,} candidates per query at level {self.shortlist_level} ({how})"


def plan_search(settings: SearchSettings, database: Database, queries_hold: dict[str, int]) -> SearchPlan:
    """Choose the levels that pick and score, where the queries hold these levels (of the model, if they are sequences).

    An InputError if a level is unknown or not held, or the choices do not fit together.
    """
    both = [level for level in database.levels if level in queries_hold]
    level = settings.level or both[-1]
    known = database.model.nested_dims
    for asked in (level, settings.shortlist_level):
        if asked is not None and asked not in known:
            raise InputError(f"{database.model.name} has no level {asked!r}; its levels are {', '.join(known)}")
    if level not in queries_hold:
        raise InputError(
            f"{settings.queries} holds levels up to {list(queries_hold)[-1]}, not {level}: embed the queries with "
            f"--level {level}, or give the sequences"
        )
    holds = f"{database.path} holds levels up to {list(database.levels)[-1]}"
    progressive = level not in database.levels
    approximate = settings.index != "exact"
    small = settings.shortlist_level
    if progressive:
        small = small or both[-1]
        if database.options.output_dtype == BINARY:
            raise InputError(
                f"{holds}, as signs alone, which do not tell whether sequences are those that it was made of: to have "
                f"level {level} computed for a shortlist, embed the database in float32 or float16"
            )
        if settings.shortlist is None:
            raise InputError(
                f"{holds}, not {level}: give --shortlist N to compute {level} for the N nearest of each query, or a "
                "--level that it holds"
            )
    elif approximate:
        small = small or level
    elif (small is None) != (settings.shortlist is None):
        raise InputError("a funnel needs both --shortlist-level and --shortlist: give the other one too")
    if small is None:
        return SearchPlan(level, level)
    if small not in database.levels:
        raise InputError(f"{holds}: no --shortlist-level {small}")
    if known[small] > known[level] or (small == level and not approximate):
        raise InputError(f"--shortlist-level {small} is not smaller than level {level}: choose a smaller one")
    return SearchPlan(level, small, settings.shortlist or _CANDIDATES * settings.k, progressive)


@dataclass(slots=True)
class RecallSample:
    """Queries drawn before a search, on which its shortlist is compared with an exact search afterwards.

    ``chosen`` are their ascending numbers, from 0; ``queries`` and what was ``found`` are kept as they come by.
    """

    chosen: np.ndarray
    queries: list[Chunk] = field(default_factory=list)
    found: list[np.ndarray] = field(default_factory=list)

    @classmethod
    def draw(cls, queries: int, size: int) -> RecallSample:
        """``size`` of so many queries, the same at each call."""
        return cls(np.sort(np.random.default_rng(SEED).choice(queries, size=min(size, queries), replace=False)))

    def add(self, first: int, queries: Chunk, hits: Hits) -> None:
        """Keep what belongs to the sample of a group of queries, which begins with number ``first``."""
        end = first + len(queries.records)
        mine = self.chosen[(self.chosen >= first) & (self.chosen < end)] - first
        self.queries.append(Chunk(queries.records[mine], queries.vectors[mine]))
        self.found.append(hits.records[mine])

    def recall(self, exact: Callable[[Chunk], Hits]) -> Recall | None:
        """Search the sample again by ``exact``, and compare; None where no query has a neighbour to be found."""
        wanted, found = exact(joined(self.queries)).records, np.concatenate(self.found)
        there = wanted != NOBODY
        asked = int(there[:, 0].sum())
        if not asked:
            return None
        hit = there & (wanted[:, :, None] == found[:, None, :]).any(axis=2)
        return Recall(asked, float(hit[:, 0].sum() / asked), float(hit.sum() / there.sum()))


@dataclass(slots=True)
class ShortQueries:
    """Counts the queries that found fewer than k neighbours; in words by ``str``, which is empty without any."""

    k: int
    fewer: Tally = field(default_factory=Tally)
    none: Tally = field(default_factory=Tally)

    def add(self, ids: pa.StringArray, hits: Hits) -> int:
        """Look at a group of queries; returns how many hits there are."""
        counts = (hits.records != NOBODY).sum(axis=1)
        self.fewer.add(ids, counts < self.k)
        self.none.add(ids, counts == 0)
        return int(counts.sum())

    def __str__(self) -> str:
        if not self.fewer.count:
            return ""
        words = f"fewer than {self.k:,} hits for {self.fewer.count:,} queries ({self.fewer})"
        return words + (f", none at all for {self.none.count:,} ({self.none})" if self.none.count else "")
