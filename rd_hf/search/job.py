"""One search from files to a file: queries in blocks, hits written as they are found."""

from __future__ import annotations

import csv
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from rd_hf.data.records import InputError
from rd_hf.devices import check_device
from rd_hf.embedding import EmbeddingOptions, JobSettings, run_job
from rd_hf.embedding.checkpoint import Checkpoint, resolve
from rd_hf.embedding.folder import OutputFolder
from rd_hf.files import explain_errors
from rd_hf.search.database import Block, Database, keep
from rd_hf.search.funnel import Picker, Plan, Sample, Short, plan
from rd_hf.search.labels import labelled, predictions_table, read_labels, transfer
from rd_hf.search.neighbours import NOBODY, Hits, nearest, need_faiss, score
from rd_hf.search.output import TableWriter
from rd_hf.search.progressive import CandidateEmbedder
from rd_hf.search.settings import SearchSettings, SearchSummary, labels_path
from rd_hf.search.whitening import BlockWhitening, whitened, whitening

# Queries searched together, each time in one pass of the database: as many as their vectors and candidates allow.
_QUERIES = 16384
_QUERY_BYTES = 128 << 20
_CANDIDATES = 1 << 18


@dataclass(slots=True)
class _Bars:
    """Progress of the passes over the database."""

    shown: bool
    rows: int

    def pass_(self, stack: ExitStack, name: str, total: int | None = None) -> Callable[[int], object]:
        """A bar for one pass; returns what to tell the rows."""
        bar = stack.enter_context(
            tqdm(
                total=self.rows if total is None else total,
                desc=name,
                unit="row",
                disable=None if self.shown else True,
                leave=False,
                unit_scale=True,
            )
        )
        return bar.update


def search(
    settings: SearchSettings, report: Callable[[str], None] | None = None, show_progress: bool = True
) -> SearchSummary:
    """Find each query's nearest neighbours and write them to ``settings.output``.

    The columns are query_record, query_id, rank (from 1), record, id, similarity or distance, and level; with labels
    also the neighbours' labels, and a second file ``<output>.labels.<suffix>`` has query_record, query_id, label,
    reliability (see :mod:`rd_hf.search.labels`) and neighbours that have it. A query with no neighbour has one row in
    each, whose cells are empty but for its record, its id and the level. Memory does not grow with the rows of either
    side.

    Args:
        settings: the search.
        report: told in sentences what a user should know on the way; by default printed on standard error.
        show_progress: whether bars are shown (where standard error is a terminal).

    Raises:
        InputError: something cannot be used as given; the message is one sentence that names it and the mend.
        FolderError: the output cannot be written.
    """
    started = time.perf_counter()
    report = report or (lambda text: tqdm.write(text, file=sys.stderr))
    need_faiss()
    if settings.device is not None:
        check_device(settings.device)
    database = Database(settings.database)
    if not database.rows:
        raise InputError(f"{settings.database} holds no protein: embed some first")
    with ExitStack() as stack:
        queries, aim = _open_queries(settings, database, stack, report, show_progress)
        with explain_errors(Path(settings.output).parent):
            Path(settings.output).parent.mkdir(parents=True, exist_ok=True)
        bars = _Bars(show_progress, database.rows)
        cache = Path(settings.cache) if settings.cache else database.path / ".search"
        with ExitStack() as passes:
            on_rows = bars.pass_(passes, "statistics")
            by = whitening(settings, database, aim.level, lambda: _model(settings, database), cache, report, on_rows)
        database.transform = queries.transform = by
        return _Run(settings, database, queries, aim, by, cache, report, bars).run(started)


def _open_queries(
    settings: SearchSettings, database: Database, stack: ExitStack, report: Callable[[str], None], show_progress: bool
) -> tuple[Database, Plan]:
    """The queries as a folder of embeddings, made for the occasion where they are sequences, and the plan."""
    if Path(settings.queries).is_dir():
        queries = Database(settings.queries)
        _same_space(settings, database, queries)
        if settings.model is not None:
            _model(settings, database)
        aim = plan(settings, database, queries.levels)
        if queries.levels[aim.level] != database.levels.get(aim.level, queries.levels[aim.level]):
            raise InputError(
                f"{database.path} holds {database.levels[aim.level]:,} dimensions of level {aim.level} and "
                f"{queries.path} {queries.levels[aim.level]:,}: embed the queries with --width "
                f"{database.levels[aim.level]}, or give a smaller --level"
            )
    else:
        checkpoint = _model(settings, database)
        aim = plan(settings, database, checkpoint.nested_dims)
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="rd_hf-queries-"))
        held = database.levels.get(aim.level)
        width = None if held == database.model.nested_dims[aim.level] else held
        options = asdict(database.options) | {"levels": (aim.level,), "width": width, "output_dtype": "float32"}
        job = JobSettings(
            model=checkpoint.name,
            inputs=(settings.queries,),
            output=folder,
            options=EmbeddingOptions(**options),
            revision=checkpoint.revision,
            device=settings.device,
            one_pass=checkpoint.one_pass,
            backbones=checkpoint.backbones,
        )
        summary = run_job(job, report=report, show_progress=show_progress)
        if summary.rejected:
            _tell_rejects(settings, Path(folder), summary.rejected, report)
        queries = Database(folder)
    if not queries.rows:
        raise InputError(f"{settings.queries} holds no query that could be embedded: see the reasons above")
    return queries, aim


def _model(settings: SearchSettings, database: Database) -> Checkpoint:
    """The model that the database was made with, as it can be loaded now."""
    name = settings.model or database.model.name
    revision = settings.revision or (None if settings.model else database.model.revision)
    try:
        found = resolve(name, revision, database.model.one_pass, database.model.backbones)
    except InputError as error:
        if settings.model:
            raise
        raise InputError(f"{error}; {database.path} was made with it: say with --model where it is now") from error
    if not found.is_of(database.model.fingerprint, database.model.backbones):
        raise InputError(
            f"{database.path} was made with {_which(database.model)}, not with {_which(found)}: embeddings of two "
            "models cannot be compared, so give --model (and --revision) as it was, or embed the database again"
        )
    return found


def _same_space(settings: SearchSettings, database: Database, queries: Database) -> None:
    """Refuse to compare what cannot be compared."""
    if not queries.model.is_of(database.model.fingerprint, database.model.backbones):
        raise InputError(
            f"{database.path} was made with {_which(database.model)} and {queries.path} with {_which(queries.model)}: "
            "embeddings of two models cannot be compared, nor exact ones with those of one pass, so embed one of them "
            "again"
        )
    names = ["pooling", "whiten", *(["normalize"] if settings.metric == "euclidean" else [])]
    for name in names:
        one, other = getattr(database.options, name), getattr(queries.options, name)
        if one != other:
            raise InputError(
                f"{database.path} was made with {name} {one}, {queries.path} with {other}: embed the queries as the "
                "database was"
            )


def _which(model: Checkpoint) -> str:
    return f"{model.name}{' in one pass' if model.one_pass else ''} ({model.fingerprint[:19]})"


def _tell_rejects(settings: SearchSettings, folder: Path, count: int, report: Callable[[str], None]) -> None:
    with OutputFolder(folder).rejects_path.open(newline="", encoding="utf-8") as handle:
        first = next(csv.DictReader(handle, dialect="excel-tab"))
    report(
        f"{settings.queries}: {count:,} records could not be embedded and have no hits, the first of them record "
        f"{first['record']} ({first['id'] or 'no id'}): {first['reason']}"
    )


@dataclass(slots=True)
class _Run:
    """One search in hand."""

    settings: SearchSettings
    database: Database
    queries: Database
    plan: Plan
    by: BlockWhitening | None
    cache: Path
    report: Callable[[str], None]
    bars: _Bars

    def run(self, started: float) -> SearchSummary:
        """Search block by block of the queries, write, and sum up."""
        settings, aim = self.settings, self.plan
        itself = self.queries.content == self.database.content
        labels = read_labels(settings.labels, settings.label_column) if settings.labels else None
        allowed = None
        if labels is not None:
            having = labelled(self.database, labels, str(settings.labels))
            allowed = having.records
            if having.note:
                self.report(having.note)
        picker = Picker(settings, self.database, aim, self.cache, allowed, self.report)
        larger = self._larger() if aim.progressive else None
        # What a shortlist misses at a level that the database lacks would take computing all of it.
        sampled = settings.recall_sample if aim.candidates and not aim.progressive else 0
        sample = Sample.draw(self.queries.rows, sampled)
        done = hits = predicted = 0
        short = Short(settings.k)
        with ExitStack() as files:
            writer = files.enter_context(TableWriter(settings.output))
            second = files.enter_context(TableWriter(labels_path(settings.output))) if labels is not None else None
            for block in self._query_blocks():
                own = block.records if itself else None
                found = self._search(block.vectors, own, allowed, picker, larger)
                sample.take(done, block.vectors, block.records, found)
                done += len(block.records)
                table, each = self._table(block, found, labels)
                hits += short.take(block.ids, found)
                writer.write(table)
                if second is not None:
                    predictions = [transfer(one, settings.k) for one in each]
                    predicted += sum(map(len, predictions))
                    second.write(predictions_table(block.records, block.ids, predictions))
        recall = None
        if len(sample.chosen):
            recall = sample.recall(
                lambda vectors, own: self._exact(vectors, own if itself else None, allowed, "recall")
            )
        return SearchSummary(
            queries=done,
            rows=self.database.rows if allowed is None else len(allowed),
            hits=hits,
            level=aim.level,
            metric=settings.metric,
            shortlist=aim.shortlist(settings.index),
            recall=recall,
            computed=larger.computed if larger else 0,
            reused=larger.reused if larger else 0,
            residues=larger.residues if larger else 0,
            predictions=predicted if labels is not None else None,
            seconds=time.perf_counter() - started,
            whitening=self.by.words if self.by else None,
            short=str(short) or None,
        )

    def _larger(self) -> CandidateEmbedder:
        settings = self.settings
        checkpoint = _model(settings, self.database)
        return CandidateEmbedder(
            self.database,
            self.plan.level,
            checkpoint.name,
            checkpoint.revision,
            settings.sequences or self.database.inputs,
            self.cache,
            settings.device,
        )

    def _query_blocks(self) -> Iterator[Block]:
        """The queries at the scoring level, cut for memory."""
        width = self.queries.levels[self.plan.level]
        size = min(_QUERIES, _QUERY_BYTES // (4 * width), _CANDIDATES // max(1, self.plan.candidates))
        held: list[Block] = []
        for block in self.queries.blocks(self.plan.level, with_ids=True):
            held.append(block)
            while sum(len(one.records) for one in held) >= size > 0:
                whole = _joined(held)
                yield _cut(whole, 0, size)
                held = [_cut(whole, size, None)]
        if held and len(held[0].records):
            yield _joined(held)

    def _search(
        self,
        queries: np.ndarray,
        own: np.ndarray | None,
        allowed: np.ndarray | None,
        picker: Picker,
        larger: CandidateEmbedder | None,
    ) -> Hits:
        settings, aim = self.settings, self.plan
        if not aim.candidates:
            return self._exact(queries, own, allowed, "search")
        with ExitStack() as stack:
            on_rows = self.bars.pass_(stack, "shortlist")
            candidates = picker.pick(_at(queries, self.database, aim.shortlist_level), own, on_rows)
        wanted = np.unique(candidates[candidates != NOBODY])
        if not len(wanted):
            return Hits.none(len(queries), settings.k)
        with ExitStack() as stack:
            if larger is not None:
                on_rows = self.bars.pass_(stack, f"level {aim.level}", len(wanted))
                computed = (whitened(block, self.by) for block in larger.blocks(wanted))
                return score(computed, queries, candidates, settings.k, settings.metric, on_rows)
            rows = self.database.blocks(aim.level, wanted=wanted)
            on_rows = self.bars.pass_(stack, "rescore")
            return score(rows, queries, candidates, settings.k, settings.metric, on_rows)

    def _exact(self, queries: np.ndarray, own: np.ndarray | None, allowed: np.ndarray | None, name: str) -> Hits:
        with ExitStack() as stack:
            on_rows = self.bars.pass_(stack, name)
            rows = keep(self.database.blocks(self.plan.level), allowed)
            return nearest(rows, queries, self.settings.k, self.settings.metric, own, on_rows)

    def _table(
        self, block: Block, found: Hits, labels: dict[str, tuple[str, ...]] | None
    ) -> tuple[pa.Table, list[list[tuple[float, tuple[str, ...]]]]]:
        """Hits of a block of queries as rows, and each query's neighbours as label transfer takes them."""
        cosine = self.settings.metric == "cosine"
        there = found.records != NOBODY
        there[:, 0] = True  # A row for each query, though it may be an empty one.
        query, rank = np.nonzero(there)
        records = found.records[query, rank]
        empty = records == NOBODY
        closeness = found.closeness[query, rank]
        unique, place = np.unique(records[~empty], return_inverse=True)
        places = np.zeros(len(records), np.int64)
        places[~empty] = place
        ids = self.database.ids(unique).take(pa.array(places, mask=empty))
        scores = closeness if cosine else -closeness
        columns: dict[str, Any] = {
            "query_record": pa.array(block.records[query], pa.int64()),
            "query_id": block.ids.take(pa.array(query)),  # type: ignore[union-attr]
            "rank": pa.array(rank + 1, pa.int32(), mask=empty),
            "record": pa.array(records, pa.int64(), mask=empty),
            "id": ids,
            "similarity" if cosine else "distance": pa.array(scores, pa.float32(), mask=empty),
            "level": pa.DictionaryArray.from_arrays(
                pa.array(np.zeros(len(query), np.int8)), pa.array([self.plan.level])
            ).cast(pa.string()),
        }
        each: list[list[tuple[float, tuple[str, ...]]]] = [[] for _ in block.records]
        if labels is not None:
            names = [None if name is None else labels[name] for name in ids.to_pylist()]
            columns["labels"] = pa.array(names, pa.list_(pa.string()))
            for asked, near, known in zip(query, closeness.astype(np.float64), names, strict=True):
                if known is not None:
                    each[asked].append((float(1 - near if cosine else -near), known))
        return pa.table(columns), each


def _at(queries: np.ndarray, database: Database, level: str) -> np.ndarray:
    """Queries at a smaller level: the first dimensions, as the database holds them."""
    cut = np.ascontiguousarray(queries[:, : database.levels[level]])
    if not database.options.normalize:
        return cut
    length = np.linalg.norm(cut, axis=1, keepdims=True)
    return cut / np.where(length > 0, length, 1)


def _joined(blocks: list[Block]) -> Block:
    ids = pa.concat_arrays([block.ids for block in blocks])
    return Block(
        np.concatenate([block.records for block in blocks]), np.concatenate([block.vectors for block in blocks]), ids
    )


def _cut(block: Block, start: int, stop: int | None) -> Block:
    ids = block.ids
    assert ids is not None
    length = (len(block.records) if stop is None else stop) - start
    return Block(block.records[start:stop], block.vectors[start:stop], ids.slice(start, length))
