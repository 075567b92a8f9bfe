"""The funnel: candidates at a small level or from an approximate index, scored at a larger one; and what that costs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

from rd_hf.data.records import InputError
from rd_hf.search.approximate import Approximate, open_index
from rd_hf.search.database import Database, keep
from rd_hf.search.labels import SHOWN, some
from rd_hf.search.neighbours import NOBODY, Hits, nearest
from rd_hf.search.settings import Recall, SearchSettings

# Candidates a neighbour, where an approximate index is asked for without a number.
_CANDIDATES = 10
SEED = 0


@dataclass(frozen=True, slots=True)
class Plan:
    """How one search goes.

    Attributes:
        level: at which hits are scored.
        shortlist_level: that picks candidates; ``level`` itself where an approximate index does.
        candidates: a query; 0 where every row is scored.
        progressive: whether the database lacks ``level``, which is then computed for the candidates.
    """

    level: str
    shortlist_level: str
    candidates: int = 0
    progressive: bool = False

    def shortlist(self, index: str) -> str | None:
        """How candidates are picked, in words."""
        if not self.candidates:
            return None
        return f"{self.candidates:,} candidates a query at level {self.shortlist_level} ({index})"


def plan(settings: SearchSettings, database: Database, queries_hold: dict[str, int]) -> Plan:
    """Which levels pick and score.

    Args:
        settings: the search.
        database: to search in.
        queries_hold: levels that the queries hold (those of the model, where they are sequences yet).

    Raises:
        InputError: a level is unknown or not held, or the choices do not fit together.
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
    progressive = level not in database.levels
    approximate = settings.index != "exact"
    small = settings.shortlist_level
    if progressive:
        small = small or both[-1]
        if settings.shortlist is None:
            raise InputError(
                f"{database.path} holds levels up to {list(database.levels)[-1]}, not {level}: give --shortlist N to "
                f"compute {level} for the N nearest of each query, or a --level that it holds"
            )
    elif approximate:
        small = small or level
    elif (small is None) != (settings.shortlist is None):
        raise InputError("a funnel needs both --shortlist-level and --shortlist: give the other one too")
    if small is None:
        return Plan(level, level)
    if small not in database.levels:
        raise InputError(
            f"{database.path} holds levels up to {list(database.levels)[-1]}: no --shortlist-level {small}"
        )
    if known[small] > known[level] or (small == level and not approximate):
        raise InputError(f"--shortlist-level {small} is not smaller than level {level}: choose a smaller one")
    return Plan(level, small, settings.shortlist or _CANDIDATES * settings.k, progressive)


class Picker:
    """Picks candidates for blocks of queries, opening an approximate index once."""

    def __init__(
        self,
        settings: SearchSettings,
        database: Database,
        plan: Plan,
        cache: Path,
        allowed: np.ndarray | None,
        report: Callable[[str], None],
    ) -> None:
        self.settings, self.database, self.plan = settings, database, plan
        self.cache, self.allowed, self.report = cache, allowed, report
        self._index: Approximate | None = None

    def pick(self, queries: np.ndarray, own: np.ndarray | None, on_rows: Callable[[int], object]) -> np.ndarray:
        """(queries, candidates) int64 records, ``NOBODY`` where the database has fewer.

        Args:
            queries: (queries, width) float32 at the shortlist's level.
            own: (queries,) record to leave out for each.
            on_rows: told the rows of each block that was read.
        """
        settings, plan = self.settings, self.plan

        def compare(queries: np.ndarray, own: np.ndarray | None) -> np.ndarray:
            rows = keep(self.database.blocks(plan.shortlist_level), self.allowed)
            return nearest(rows, queries, plan.candidates, settings.metric, own, on_rows).records

        if settings.index == "exact":
            return compare(queries, own)
        if self._index is None:
            self._index = open_index(
                self.database, plan.shortlist_level, settings.metric, settings.index, self.cache, self.report, on_rows
            )
        found, short = self._index.candidates(queries, plan.candidates, own, self.allowed)
        if not len(short):
            return found
        candidates = np.full((len(queries), plan.candidates), NOBODY)
        candidates[:, : found.shape[1]] = found
        candidates[short] = compare(queries[short], None if own is None else own[short])
        return candidates


@dataclass(slots=True)
class Sample:
    """Queries drawn before a search, on which its shortlist is then held against an exact search.

    Attributes:
        chosen: ascending numbers of the queries, from 0.
        queries: their vectors, as they came by.
        own: their own records.
        found: records that the search found for them.
    """

    chosen: np.ndarray
    queries: list[np.ndarray]
    own: list[np.ndarray]
    found: list[np.ndarray]

    @classmethod
    def draw(cls, queries: int, size: int) -> Sample:
        """``size`` of so many queries, the same at each call."""
        chosen = np.random.default_rng(SEED).choice(queries, size=min(size, queries), replace=False)
        return cls(np.sort(chosen), [], [], [])

    def take(self, first: int, queries: np.ndarray, own: np.ndarray, hits: Hits) -> None:
        """Keep what belongs to the sample of a block of queries, which begins with number ``first``."""
        mine = self.chosen[(self.chosen >= first) & (self.chosen < first + len(queries))] - first
        self.queries.append(queries[mine])
        self.own.append(own[mine])
        self.found.append(hits.records[mine])

    def recall(self, exact: Callable[[np.ndarray, np.ndarray], Hits]) -> Recall | None:
        """Search the sample again with a function of its vectors and own records, and compare.

        Queries that have no neighbour to be found are left out; None where that is all of them.
        """
        wanted = exact(np.concatenate(self.queries), np.concatenate(self.own)).records
        found = np.concatenate(self.found)
        there = wanted != NOBODY
        asked = int(there[:, 0].sum())
        if not asked:
            return None
        hit = there & (wanted[:, :, None] == found[:, None, :]).any(axis=2)
        return Recall(asked, float(hit[:, 0].sum() / asked), float(hit.sum() / there.sum()))


@dataclass(slots=True)
class Short:
    """Queries that found fewer than k neighbours, as they come by; in words by ``str``, which is empty without any.

    Attributes:
        k: neighbours asked for.
        fewer, none: how many queries have fewer, and of those none.
        fewer_ids, none_ids: ids of the first few.
    """

    k: int
    fewer: int = 0
    none: int = 0
    fewer_ids: list[str] = field(default_factory=list)
    none_ids: list[str] = field(default_factory=list)

    def take(self, ids: pa.StringArray, hits: Hits) -> int:
        """Look at a block of queries; how many hits there are."""
        counts = (hits.records != NOBODY).sum(axis=1)
        fewer, none = np.flatnonzero(counts < self.k), np.flatnonzero(counts == 0)
        self.fewer += len(fewer)
        self.none += len(none)
        for names, places in ((self.fewer_ids, fewer), (self.none_ids, none)):
            names += ids.take(pa.array(places[: SHOWN - len(names)])).to_pylist()
        return int(counts.sum())

    def __str__(self) -> str:
        if not self.fewer:
            return ""
        said = f"fewer than {self.k:,} hits for {self.fewer:,} queries ({some(self.fewer_ids, self.fewer)})"
        return said + (f", none at all for {self.none:,} ({some(self.none_ids, self.none)})" if self.none else "")
