"""What a search costs: time and memory for many rows, and compute against recall for a progressive one.

    python scripts/benchmarks/search.py rows --rows 1000000 --width 1280
    python scripts/benchmarks/search.py bytes --rows 1000000 --width 320
    python scripts/benchmarks/search.py table --model hub_configs/rd-esm2-mini --data domains.fasta.gz

``rows`` writes synthetic embeddings to a folder, searches them in a process of its own a way, and prints the seconds
(by the clock, and of a core, which tell more where others use the machine) and the peak of each process' memory
(VmHWM) as Markdown. The floor is one reading of the rows, which is printed too.

``bytes`` does so with the same rows in float32 and as int8 in blocks, and shortlists by signs, and prints milliseconds
a query as the median of several runs in turn, whitened by the rows; what is kept of them is made before.

``table`` embeds the proteins at the model's smallest and largest level and searches for some of them among the rest,
progressively with shortlists of several sizes, each with an empty cache. Compute is counted in parameters times
residues of all backbones that ran, in shares of that for all proteins at the largest level; recall is against an exact
search at the largest level.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

REPOSITORY = Path(__file__).resolve().parents[2]
# Run as a file, it finds the package and the other benchmarks beside it; so imports stand below this.
# ruff: noqa: E402
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "scripts")]

from benchmarks.resident import resident_mb
from rd_hf.data.fasta import read_fasta
from rd_hf.data.records import FastaRecord
from rd_hf.data.residues import clean_sequence
from rd_hf.embedding import EmbeddingOptions, JobSettings, run_job
from rd_hf.embedding.columns import to_arrow
from rd_hf.embedding.folder import OutputFolder
from rd_hf.embedding.options import INT8
from rd_hf.embedding.part_file import write_part
from rd_hf.embedding.quantization import described_grid, grid_of
from rd_hf.embedding.storage import columns_of, described, format_of
from rd_hf.search import SearchSettings, SearchSummary, run_search
from rd_hf.search.database import Database

PART_ROWS = 16384
LEVELS = {"small": 4, "medium": 2, "large": 1}  # the width's share of each


def write_folder(
    path: Path,
    vectors: Iterator[np.ndarray],
    nested_dims: dict[str, int],
    level: str | None = None,
    ids: list[str] | None = None,
    fingerprint: str = "synthetic",
    **options: object,
) -> Path:
    """A finished folder of an embedding job, as ``rd-hf embed`` would have written it, from made-up rows.

    Args:
        path: a new folder.
        vectors: one array a file, (rows, width) float32.
        nested_dims: width of each level of the model.
        level: of the vectors; by default the largest.
        ids: of all rows; by default ``r1`` and so on.
        fingerprint: of the model that it is said to come from.
        **options: fields of the job other than the usual.
    """
    folder = OutputFolder(path)
    folder.claim()
    level = level or list(nested_dims)[-1]
    width = nested_dims[level]
    parts: list[dict[str, object]] = []
    done = 0
    chosen = {name: str(options[name]) for name in ("layout", "output_dtype") if name in options}
    stored = EmbeddingOptions(**chosen)  # type: ignore[arg-type]
    held = columns_of(stored, {level: width}, nested_dims)
    grid: np.ndarray | None = None
    for index, values in enumerate(vectors):
        rows = len(values)
        if grid is None and stored.output_dtype == INT8:
            # As a fit would store it, of the first file's rows.
            grid = grid_of(values.mean(axis=0), values.std(axis=0))
        names = [f"r{done + row + 1}" for row in range(rows)] if ids is None else ids[done : done + rows]
        columns = {
            "source": pa.array(["synthetic"] * rows),
            "record": pa.array(np.arange(done + 1, done + rows + 1), pa.int64()),
            "id": pa.array(names, pa.string()),
            "length": pa.array(np.full(rows, 100), pa.int32()),
            **{one.name: to_arrow(list(values), one.width, stored, one.first, grid) for one in held},
        }
        file = folder.part_path(index)
        with file.open("wb") as handle:
            write_part(handle, columns, held, stored, {})
        sizes = {"first_record": done + 1, "records": rows, "written": rows, "rejected": 0}
        # Not the file's content but enough of a name for it: nothing here is damaged on purpose.
        sha256 = f"{path.name}-{index}"
        parts.append({"file": file.name, "sha256": sha256, "bytes": file.stat().st_size, **sizes})
        done += rows
    job = {"inputs": ["synthetic"], "levels": [level], "pooling": "mean", "normalize": False, **options}
    columns = {f"{name}_column": None for name in ("sequence", "id", "positions")}
    model = {"name": "synthetic", "revision": None, "fingerprint": fingerprint, "nested_dims": nested_dims}
    folder.write_manifest(
        {
            "format": format_of(stored),
            "status": "complete",
            "model": model,
            "job": job | columns,
            "columns": described(held),
            "parts": parts,
            **({} if grid is None else {"grid": described_grid(grid)}),
        }
    )
    folder.leave()
    return path


def families(rows: int, width: int, seed: int) -> Iterator[np.ndarray]:
    """Rows that are neighbours as proteins are: families of 50 about centres, spread over directions of falling weight,
    beside a mean that is large in some channels, in order of nothing; (rows, width) float32 a file."""
    # The centres are the same for every seed: queries are of the same families as the database.
    centres = max(1, 1_000_000 // 50)
    scale = (1 / np.sqrt(1 + np.arange(width))).astype(np.float32)
    mean = np.zeros(width, np.float32)
    mean[:: max(1, width // 4)] = 2
    generator = np.random.default_rng(seed)
    for start in range(0, rows, PART_ROWS):
        count = min(PART_ROWS, rows - start)
        family = generator.integers(0, centres, count)
        values = generator.standard_normal((count, width), dtype=np.float32) * scale
        for place, number in enumerate(family):
            values[place] += scale * np.random.default_rng(int(number)).standard_normal(width, dtype=np.float32)
        yield values + mean


def measure(settings: dict[str, object]) -> None:
    """One search in this process; prints its seconds, recall and peak."""
    summary = run_search(SearchSettings(**settings), show_progress=False)  # type: ignore[arg-type]
    recall = None if summary.recall is None else [summary.recall.first, summary.recall.all]
    cpu = time.process_time()
    print(json.dumps({"seconds": summary.seconds, "cpu": cpu, "recall": recall, "peak": resident_mb("VmHWM")}))


def rows_benchmark(args: argparse.Namespace) -> None:
    """Time and memory of each way of searching many rows."""
    # Not at the top: what it imports would count as memory of the searches.
    from benchmarks.common import answer_of

    dims = {level: args.width // share for level, share in LEVELS.items()}
    with tempfile.TemporaryDirectory(dir=args.folder) as temporary:
        place = Path(temporary)
        kept = args.keep or place
        database, queries = kept / "database", kept / "queries"
        for path, rows, seed in ((database, args.rows, 1), (queries, args.queries, 2)):
            if not path.exists():
                write_folder(path, families(rows, args.width, seed), dims)
        size = sum(path.stat().st_size for path in database.glob("*.parquet"))
        started, computing = time.perf_counter(), time.process_time()
        for _ in Database(database).chunks("large"):
            pass
        print(
            f"{Database(database).rows:,} rows of {args.width:,} float32 ({size / 1e9:.1f} GB of Parquet), "
            f"{Database(queries).rows:,} queries, k = 10; "
            f"reading the rows once: {time.perf_counter() - started:.0f} s, "
            f"{time.process_time() - computing:.0f} of a core\n"
        )
        funnel = {"shortlist_level": "small", "shortlist": 200}
        ways: list[tuple[str, dict[str, object]]] = [
            ("exact, cosine", {}),
            ("exact, cosine, whitened by the database", {"whiten": "database"}),
            ("exact, euclidean", {"metric": "euclidean"}),
            (f"funnel, 200 candidates at {dims['small']} dimensions", funnel),
            (f"ivf, 200 candidates at {dims['small']} dimensions, index made", {**funnel, "index": "ivf"}),
            (f"ivf, 200 candidates at {dims['small']} dimensions, index kept", {**funnel, "index": "ivf"}),
        ]
        print(
            "| search | seconds | seconds of a core | peak memory, MB | recall of the nearest | of the ten nearest |\n"
            "|---|---|---|---|---|---|",
            flush=True,
        )
        for name, chosen in ways:
            settings = {"queries": str(queries), "database": str(database), "output": str(place / "hits.parquet")}
            settings["whiten"] = "none"
            command = [sys.executable, __file__, "measure", json.dumps({**settings, **chosen})]
            answer = answer_of(command)
            shares = [f"{share:.4f}" for share in answer["recall"] or []] or ["exact", "exact"]
            spent = f"{answer['seconds']:.0f} | {answer['cpu']:.0f}"
            print(f"| {name} | {spent} | {answer['peak']:,.0f} | {' | '.join(shares)} |", flush=True)


def bytes_benchmark(args: argparse.Namespace) -> None:
    """Bytes and milliseconds of searches in float32, int8 and signs."""
    dims = {level: args.width // share for level, share in LEVELS.items()}
    block = dims["large"] - dims["medium"]
    signs = {"index": "binary", "recall_sample": 0}
    ways: list[tuple[str, str, int, dict[str, object]]] = [
        ("float32, exact", "floats", 4 * args.width, {}),
        ("int8, exact", "bytes", args.width, {}),
        *(
            (
                f"{size} by the signs of {'the last block' if of == 'block' else 'all'}, int8",
                "bytes",
                args.width + (block if of == "block" else args.width) // 8,
                {**signs, "signs": of, "shortlist": size},
            )
            for of in ("block", "all")
            for size in (200, 500)
        ),
    ]
    with tempfile.TemporaryDirectory(dir=args.folder) as temporary:
        place = args.keep or Path(temporary)
        stored = {"floats": {}, "bytes": {"layout": "blocks", "output_dtype": "int8"}}
        made: list[tuple[str, int, int, dict[str, str]]] = [(n, args.rows, 1, how) for n, how in stored.items()]
        for name, rows, seed, how in [*made, ("queries", args.queries, 2, {})]:
            if not (place / name).exists():
                write_folder(place / name, families(rows, args.width, seed), dims, **how)  # type: ignore[arg-type]
        spent: dict[str, list[tuple[float, float]]] = {}
        found: dict[str, tuple[dict[int, list[int]], SearchSummary]] = {}
        # The first round makes what later ones find, and is not counted.
        for turn in range(args.repeats + 1):
            for name, folder, _, chosen in ways:
                settings = SearchSettings(
                    str(place / "queries"),
                    str(place / folder),
                    str(Path(temporary) / "hits.parquet"),
                    whiten="database",
                    **chosen,  # type: ignore[arg-type]
                )
                started, computing = time.perf_counter(), time.process_time()
                found[name] = _found(settings)
                if turn:
                    seconds = time.perf_counter() - started, time.process_time() - computing
                    spent.setdefault(name, []).append(seconds)
        exact, queries = found[ways[0][0]]
        print(
            f"{queries.rows:,} rows of {args.width:,}, {queries.queries:,} queries together, k = 10, medians of "
            f"{args.repeats} runs in turn\n\n| search | bytes a protein | MB read | ms a query | of a core | nearest "
            "found | ten nearest found |\n|---|---|---|---|---|---|---|"
        )
        for name, _, size, _ in ways:
            hits, summary = found[name]
            times = 1000 * np.median(spent[name], axis=0) / summary.queries
            cells = [f"{size:,}", f"{summary.bytes_read / 1e6:,.0f}", *(f"{one:.1f}" for one in times)]
            shares = _recall(hits, exact)
            print(f"| {name} | {' | '.join(cells)} | {shares[0]:.4f} | {shares[1]:.4f} |", flush=True)


def table_benchmark(args: argparse.Namespace) -> None:
    """Compute against recall of a progressive search on real proteins."""
    from rd_hf.embedding.checkpoint import resolve

    levels = list(resolve(args.model).nested_dims)
    small, large = levels[0], levels[-1]
    with tempfile.TemporaryDirectory(dir=args.folder) as temporary:
        place = Path(temporary)
        records = _drawn(args.data, args.proteins, args.queries)
        files = {"database": records[args.queries :], "queries": records[: args.queries]}
        for name, some in files.items():
            text = "".join(f">{one.description}\n{one.sequence}\n" for one in some)
            (place / f"{name}.fasta").write_text(text, encoding="utf-8")
        seconds: dict[str, float] = {}
        for name, source, level in (
            ("small", "database", small),
            ("large", "database", large),
            ("q", "queries", large),
        ):
            job = JobSettings(
                args.model, (str(place / f"{source}.fasta"),), str(place / name), EmbeddingOptions(levels=(level,))
            )
            seconds[name] = run_job(job, show_progress=False).seconds["embed"]
        residues = sum(len(clean_sequence(one.sequence)) for one in files["database"])
        cost = {level: _parameters(args.model, level) for level in levels}
        whole = residues * sum(cost.values())
        queries, database = str(place / "q"), str(place / "small")
        exact = _found(
            SearchSettings(queries, str(place / "large"), str(place / "exact.parquet"), k=args.k, whiten="none")
        )
        print(
            f"{len(files['database']):,} proteins ({residues:,} residues) of {Path(args.data).name}, {args.queries:,} "
            f"queries, k = {args.k}, cosine; {small} embedded in {seconds['small']:.0f} s, {large} in "
            f"{seconds['large']:.0f} s\n\n| search | proteins with {large} | compute | recall of the nearest | "
            f"of the {args.k} nearest |\n|---|---|---|---|---|"
        )
        only_small = _found(
            SearchSettings(queries, database, str(place / "s.parquet"), k=args.k, level=small, whiten="none")
        )
        rows = [(f"{small} alone", 0, residues * cost[small], only_small[0])]
        for size in args.shortlists:
            found, summary = _found(
                SearchSettings(
                    queries,
                    database,
                    str(place / "p.parquet"),
                    k=args.k,
                    level=large,
                    shortlist=size,
                    cache=str(place / f"cache-{size}"),
                    whiten="none",
                )
            )
            paid = residues * cost[small] + summary.residues * sum(cost.values())
            rows.append((f"progressive, {size:,} candidates", summary.computed, paid, found))
        rows.append((f"{large} for all", len(files["database"]), whole, exact[0]))
        for name, proteins, paid, found in rows:
            nearest, all_ = _recall(found, exact[0])
            print(f"| {name} | {proteins:,} | {paid / whole:.1%} | {nearest:.4f} | {all_:.4f} |")


def _drawn(data: Path, proteins: int, queries: int) -> list[FastaRecord]:
    """Queries and then proteins, drawn by seed."""
    records = list(read_fasta(data))
    chosen = np.random.default_rng(0).permutation(len(records))[: proteins + queries]
    return [records[place] for place in chosen]


def _parameters(model: str, level: str) -> int:
    """Numbers in the matrices of one backbone's layers, which each residue is multiplied with."""
    config = json.loads((Path(model) / "config.json").read_text(encoding="utf-8"))
    (backbone,) = (entry["backbone"] for entry in config["levels"] if entry["name"] == level)
    width, inner = backbone["hidden_size"], backbone["intermediate_size"]
    return int(backbone["num_hidden_layers"] * (4 * width * width + 2 * width * inner))


def _found(settings: SearchSettings) -> tuple[dict[int, list[int]], SearchSummary]:
    """Records found for each query, nearest first."""
    with contextlib.redirect_stderr(io.StringIO()):
        summary = run_search(settings, show_progress=False)
    return _hits(settings.output), summary


def _hits(path: str | Path) -> dict[int, list[int]]:
    """Records found for each query, nearest first, of a search's output."""
    found: dict[int, list[int]] = {}
    hits = pq.read_table(path)
    for query, record in zip(hits["query_record"].to_pylist(), hits["record"].to_pylist(), strict=True):
        found.setdefault(query, []).append(record)
    return found


def _recall(found: dict[int, list[int]], exact: dict[int, list[int]]) -> tuple[float, float]:
    """Share of the nearest, and of all nearest, that were found."""
    first = [wanted[0] in found[query] for query, wanted in exact.items()]
    every = [record in found[query] for query, wanted in exact.items() for record in wanted]
    return float(np.mean(first)), float(np.mean(every))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where temporary files go (default: the system's)")
    what = parser.add_subparsers(dest="what", required=True)
    rows = what.add_parser("rows", help="time and memory for many rows")
    rows.add_argument("--rows", type=int, default=1_000_000)
    rows.add_argument("--width", type=int, default=1280)
    rows.add_argument("--queries", type=int, default=1000)
    rows.add_argument("--keep", type=Path, help="folder to leave the rows in, or where an earlier run left them")
    few = what.add_parser("bytes", help="bytes and time in float32, int8 and signs")
    few.add_argument("--rows", type=int, default=1_000_000)
    few.add_argument("--width", type=int, default=320)
    few.add_argument("--queries", type=int, default=200)
    few.add_argument("--repeats", type=int, default=3)
    few.add_argument("--keep", type=Path, help="folder to leave the rows in, or where an earlier run left them")
    table = what.add_parser("table", help="compute against recall of a progressive search")
    table.add_argument("--model", default=str(REPOSITORY / "hub_configs" / "rd-esm2-mini"))
    table.add_argument("--data", type=Path, required=True, help="FASTA")
    table.add_argument("--proteins", type=int, default=2000)
    table.add_argument("--queries", type=int, default=20)
    table.add_argument("--k", type=int, default=10)
    table.add_argument("--shortlists", type=int, nargs="+", default=[10, 20, 50, 100, 200])
    one = what.add_parser("measure", help="one search, in this process")
    one.add_argument("settings", type=json.loads)
    args = parser.parse_args(argv)
    if args.what == "measure":
        measure(args.settings)
    elif args.what == "bytes":
        bytes_benchmark(args)
    elif args.what == "rows":
        rows_benchmark(args)
    else:
        table_benchmark(args)


if __name__ == "__main__":
    main()
