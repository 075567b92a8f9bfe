"""One search from files to a file: queries in groups, hits written as they are found."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from rd_hf.data.labels import Cells, read_labels
from rd_hf.data.records import InputError, Say
from rd_hf.data.remote import is_folder, is_remote
from rd_hf.devices import check_device
from rd_hf.embedding import JobSettings, run_job
from rd_hf.embedding.checkpoint import Checkpoint, resolve
from rd_hf.embedding.columns import finish
from rd_hf.embedding.folder import OutputFolder
from rd_hf.files import explain_errors
from rd_hf.search.approximate import ApproximateIndex, open_index
from rd_hf.search.database import Chunk, Database, OnRows, plain, regrouped
from rd_hf.search.funnel import RecallSample, SearchPlan, ShortQueries, plan_search
from rd_hf.search.labels import hits_table, labelled, predictions_table, transfer
from rd_hf.search.neighbours import NOBODY, Hits, nearest, need_faiss, score
from rd_hf.search.progressive import CandidateEmbedder
from rd_hf.search.settings import SearchSettings, SearchSummary, labels_path
from rd_hf.search.whitening import find_whitening
from rd_hf.tables import table_writer

# Queries searched together, in one reading of the database: as many as their vectors and candidates allow.
_QUERIES = 16384
_QUERY_BYTES = 128 << 20
_CANDIDATES = 1 << 18


def run_search(settings: SearchSettings, report: Say | None = None, show_progress: bool = True) -> SearchSummary:
    """Find each query's nearest neighbours and write them to ``settings.output``.

    The columns are query_record, query_id, rank (from 1), record, id, similarity or distance, and level; with labels
    also labels, and a second file (``labels_path(output)``) has query_record, query_id, label, reliability (see
    :mod:`rd_hf.search.labels`) and neighbours that have it. A query with no neighbour has one row in each, whose cells
    are empty but for its record, its id and the level. Memory does not grow with the rows of either side.

    Args:
        report: called with sentences that a user should know on the way; by default printed on standard error.
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
        queries, plan = _open_queries(settings, database, stack, report, show_progress)
        with explain_errors(Path(settings.output).parent):
            Path(settings.output).parent.mkdir(parents=True, exist_ok=True)
        cache = Path(settings.cache) if settings.cache else database.path / ".search"
        running = _Search(settings, database, queries, plan, cache, report, show_progress)
        running.prepare()
        return running.run(started)


def _open_queries(
    settings: SearchSettings, database: Database, stack: ExitStack, report: Say, show_progress: bool
) -> tuple[Database, SearchPlan]:
    """Open the queries as a folder of embeddings, a temporary one where they are sequences, and plan the search."""
    if Path(settings.queries).is_dir() or (is_remote(settings.queries) and is_folder(settings.queries)):
        queries = Database(settings.queries)
        _check_comparable(settings, database, queries)
        if settings.model is not None:
            _model(settings, database)
        plan = plan_search(settings, database, queries.levels)
        held, asked = database.levels.get(plan.level), queries.levels[plan.level]
        if held not in (None, asked):
            raise InputError(
                f"{database.path} holds {held:,} dimensions of level {plan.level} and {queries.path} {asked:,}: embed "
                f"the queries with --width {held}, or give a smaller --level"
            )
    else:
        checkpoint = _model(settings, database)
        plan = plan_search(settings, database, checkpoint.nested_dims)
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="rd_hf-queries-"))
        held = database.levels.get(plan.level)
        width = None if held == database.model.nested_dims[plan.level] else held
        job = JobSettings(
            model=checkpoint.name,
            inputs=(settings.queries,),
            output=folder,
            options=plain(database.options, levels=(plan.level,), width=width),
            revision=checkpoint.revision,
            device=settings.device,
            one_pass=checkpoint.one_pass,
            backbones=checkpoint.backbones,
        )
        rejected = run_job(job, report=report, show_progress=show_progress).rejected
        if rejected:
            first = next(OutputFolder(folder).rejects())
            report(
                f"{settings.queries}: {rejected:,} records could not be embedded and have no hits, the first of them "
                f"record {first.record} ({first.id or 'no id'}): {first.reason}"
            )
        queries = Database(folder)
    if not queries.rows:
        raise InputError(f"{settings.queries} holds no query that could be embedded: see the reasons above")
    return queries, plan


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


def _check_comparable(settings: SearchSettings, database: Database, queries: Database) -> None:
    """Raise InputError for folders whose vectors cannot be compared."""
    if not queries.model.is_of(database.model.fingerprint, database.model.backbones):
        raise InputError(
            f"{database.path} was made with {_which(database.model)} and {queries.path} with {_which(queries.model)}: "
            "embeddings of two models cannot be compared, nor exact ones with those of one pass, so embed one of them "
            "again"
        )
    for name in ("pooling", "whiten", *(["normalize"] if settings.metric == "euclidean" else [])):
        one, other = getattr(database.options, name), getattr(queries.options, name)
        if one != other:
            differ = f"{database.path} was made with {name} {one}, {queries.path} with {other}"
            raise InputError(f"{differ}: embed the queries as the database was")


def _which(model: Checkpoint) -> str:
    return f"{model.name}{' in one pass' if model.one_pass else ''} ({model.fingerprint[:19]})"


@dataclass(slots=True)
class _Search:
    """One search in progress.

    ``labels`` are of the database's proteins, where they are transferred; ``allowed`` the ascending records among which
    neighbours are sought, None for all; ``larger`` computes the level that the database lacks.
    """

    settings: SearchSettings
    database: Database
    queries: Database
    plan: SearchPlan
    cache: Path
    report: Say
    show_progress: bool
    labels: Cells | None = None
    allowed: np.ndarray | None = None
    index: ApproximateIndex | None = None
    larger: CandidateEmbedder | None = None

    def prepare(self) -> None:
        """Find what both sides are whitened by as they are read, the labelled proteins, and the model of a level."""
        settings, database, plan = self.settings, self.database, self.plan
        find_model = partial(_model, settings, database)
        with self._bar("statistics") as on_rows:
            database.whitening = self.queries.whitening = find_whitening(
                settings, database, plan.level, find_model, self.cache, self.report, on_rows
            )
        if settings.labels:
            (self.labels,) = read_labels(settings.labels, settings.label_column).values()
            self.allowed, note = labelled(database, self.labels, settings.labels)
            if note:
                self.report(note)
        if plan.progressive:
            sources = settings.sequences or database.inputs
            self.larger = CandidateEmbedder(database, plan.level, find_model(), sources, self.cache, settings.device)

    def run(self, started: float) -> SearchSummary:
        """Search one group of queries after the other, write their hits, and sum up."""
        settings, plan, database, larger = self.settings, self.plan, self.database, self.larger
        # What a shortlist misses at a level that the database lacks would take computing all of it.
        sampled = settings.recall_sample if plan.candidates and not plan.progressive else 0
        sample, short = RecallSample.draw(self.queries.rows, sampled), ShortQueries(settings.k)
        done = hits = predicted = 0
        width = self.queries.levels[plan.level]
        size = max(1, min(_QUERIES, _QUERY_BYTES // (4 * width), _CANDIDATES // max(1, plan.candidates)))
        with ExitStack() as files:
            write = files.enter_context(table_writer(Path(settings.output)))
            write_labels = files.enter_context(table_writer(labels_path(settings.output))) if self.labels else None
            for chunk in regrouped(self.queries.chunks(plan.level), size):
                ids, found = self.queries.ids_of(chunk.records), self._search(chunk)
                sample.add(done, chunk, found)
                done += len(chunk.records)
                hits += short.add(ids, found)
                table, neighbours = hits_table(
                    chunk.records, ids, found, database.ids_of, settings.metric, plan.level, self.labels
                )
                write(table)
                if write_labels is not None:
                    predictions = [transfer(one, settings.k) for one in neighbours]
                    predicted += sum(map(len, predictions))
                    write_labels(predictions_table(chunk.records, ids, predictions))
        bytes_read = database.bytes_read  # without what the recall takes
        return SearchSummary(
            queries=done,
            rows=database.rows if self.allowed is None else len(self.allowed),
            hits=hits,
            level=plan.level,
            metric=settings.metric,
            shortlist=plan.shortlist(settings.index, settings.signs),
            recall=sample.recall(lambda chunk: self._exact(chunk, "recall")) if sampled else None,
            computed=larger.computed if larger else 0,
            reused=larger.reused if larger else 0,
            residues=larger.residues if larger else 0,
            predictions=None if self.labels is None else predicted,
            seconds=time.perf_counter() - started,
            whitening=None if database.whitening is None else str(database.whitening),
            short=str(short) or None,
            bytes_read=bytes_read,
        )

    @contextmanager
    def _bar(self, name: str, total: int | None = None) -> Iterator[OnRows]:
        """Show the progress of one reading of the rows; yields what is called with the number of rows read."""
        total = self.database.rows if total is None else total
        hidden = None if self.show_progress else True
        with tqdm(total=total, desc=name, unit="row", disable=hidden, leave=False, unit_scale=True) as bar:
            yield bar.update

    def _search(self, queries: Chunk) -> Hits:
        """Hits of a group of queries."""
        settings, plan = self.settings, self.plan
        if not plan.candidates:
            return self._exact(queries, "search")
        with self._bar("shortlist") as on_rows:
            # The first dimensions, as the database holds them.
            options = plain(self.database.options)
            cut = finish(queries.vectors, self.database.levels[plan.shortlist_level], options)
            candidates = self._candidates(cut, self._own(queries), on_rows)
        wanted = np.unique(candidates[candidates != NOBODY])
        if not len(wanted):
            return Hits.none(len(cut), settings.k)
        name, total = ("rescore", None) if self.larger is None else (f"level {plan.level}", len(wanted))
        with self._bar(name, total) as on_rows:
            rows = self.larger.chunks(wanted) if self.larger else self.database.chunks(plan.level, wanted)
            return score(rows, queries.vectors, candidates, settings.k, settings.metric, on_rows)

    def _own(self, queries: Chunk) -> np.ndarray | None:
        """The queries' own records, which are no neighbours, where a database is searched against itself."""
        return queries.records if self.queries.content == self.database.content else None

    def _exact(self, queries: Chunk, name: str) -> Hits:
        """Hits among all rows."""
        with self._bar(name) as on_rows:
            rows = self.database.chunks(self.plan.level, self.allowed)
            metric, own = self.settings.metric, self._own(queries)
            return nearest(rows, queries.vectors, self.settings.k, metric, own, on_rows)

    def _candidates(self, queries: np.ndarray, own: np.ndarray | None, on_rows: OnRows) -> np.ndarray:
        """(queries, candidates) int64 records, for queries at the shortlist's level."""
        settings, plan, database = self.settings, self.plan, self.database

        def compare(queries: np.ndarray, own: np.ndarray | None) -> np.ndarray:
            rows = database.chunks(plan.shortlist_level, self.allowed)
            return nearest(rows, queries, plan.candidates, settings.metric, own, on_rows).records

        if settings.index == "exact":
            return compare(queries, own)
        if self.index is None:
            first = None
            if settings.index == "binary":
                below = [width for width in database.levels.values() if width < queries.shape[1]]
                first = max(below, default=0) if settings.signs == "block" else 0
            self.index = open_index(
                database, plan.shortlist_level, settings.metric, settings.index, self.cache, self.report, on_rows, first
            )
        found, short = self.index.candidates(queries, plan.candidates, own, self.allowed)
        if not len(short):
            return found
        candidates = np.full((len(queries), plan.candidates), NOBODY)
        candidates[:, : found.shape[1]] = found
        candidates[short] = compare(queries[short], None if own is None else own[short])
        return candidates
