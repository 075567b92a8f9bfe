"""Progressive search: the database holds a small level, the larger backbones run for shortlisted proteins alone.

What they compute is kept, each protein under the hash of its sequence, so that the next query pays for what is new:

    CACHE/level-<hash of model, level and options>/<hash of the proteins within>.parquet     key, embedding

Each file is a chunk that was computed together, and appears whole or not at all: a search that was killed goes on
after its last chunk, and two searches can share a cache.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rd_hf.data.records import InputError
from rd_hf.data.residues import RejectedSequenceError, clean_sequence
from rd_hf.data.sources import is_there, read_records
from rd_hf.embedding import Embedder, EmbeddingOptions
from rd_hf.embedding.checkpoint import Checkpoint
from rd_hf.embedding.columns import finish
from rd_hf.embedding.quantization import dequantize
from rd_hf.files import FolderError, replacing
from rd_hf.search.database import UNKNOWN, Chunk, Database, plain

# Residues of a chunk: a minute or so of a large backbone on a GPU, and what a kill costs at most.
CHUNK_RESIDUES = 1 << 18
_KEY = "key"
# A vector and its first dimensions computed in another batch differ by some 1e-6; what is stored in half precision,
# or computed in it, by its last digits. Another sequence, even by one residue of a thousand, differs by more.
_SAME, _SAME_HALF = 1e-4, 3e-2


@dataclass(slots=True)
class CandidateEmbedder:
    """Embeds proteins of a database, from the inputs that it was made from, at a ``level`` that it does not hold.

    The model's fingerprint is the database's. Proteins are counted that were computed so far, or found in the folder
    ``cache``, and residues of the former.
    """

    database: Database
    level: str
    model: Checkpoint
    sources: tuple[str, ...]
    cache: Path
    device: str | None = None
    computed: int = 0
    reused: int = 0
    residues: int = 0
    _embedder: Embedder | None = field(default=None, repr=False)

    @property
    def options(self) -> EmbeddingOptions:
        """As the database was made, at the larger level."""
        return plain(self.database.options, levels=(self.level,), width=None)

    @property
    def folder(self) -> Path:
        """Where this level of this model is kept."""
        options = asdict(self.options)
        del options["batch_tokens"]
        what = json.dumps([self.database.model.fingerprint, options], sort_keys=True)
        return self.cache / f"level-{hashlib.sha256(what.encode()).hexdigest()[:32]}"

    def chunks(self, records: np.ndarray) -> Iterator[Chunk]:
        """Yield the rows of ascending records at the larger level, from the cache or computed now; each record once.

        An InputError if the inputs are not those that the database was made from, or cannot be embedded.
        """
        whitening = self.database.whitening
        sequences = self._sequences(records)
        small = self._stored(records)
        owners: dict[str, list[int]] = {}
        for place, sequence in enumerate(sequences):
            owners.setdefault(_key(sequence), []).append(place)

        def chunk(keys: list[str], vectors: np.ndarray) -> Chunk:
            places = np.array([place for key in keys for place in owners[key]])
            rows = np.repeat(np.arange(len(keys)), [len(owners[key]) for key in keys])
            order = np.argsort(places)
            places, chosen = places[order], vectors[rows[order]]
            self._check(records[places], chosen, small[places])
            return Chunk(records[places], chosen if whitening is None else whitening(chosen))

        missing = set(owners)
        for keys, vectors in self._cached(missing):
            missing.difference_update(keys)
            self.reused += len(keys)
            yield chunk(keys, vectors)
        lacking = {key: sequences[owners[key][0]] for key in owners if key in missing}
        for keys in _in_chunks(lacking):
            texts = [lacking[key] for key in keys]
            vectors = self._compute(texts)
            self._keep(keys, vectors)
            self.computed += len(keys)
            self.residues += sum(map(len, texts))
            yield chunk(keys, vectors)

    def _sequences(self, records: np.ndarray) -> list[str]:
        """Read the cleaned sequences of ascending records."""
        wanted: dict[int, tuple[str, int]] = {}
        for numbers, ids, lengths in self.database.names(records):
            for place in np.flatnonzero(np.isin(numbers, records)):
                wanted[int(numbers[place])] = (ids[int(place)].as_py(), int(lengths[place]))
        found: dict[int, str] = {}
        number = 0
        for source in self.sources:
            if source == "-":
                raise InputError(self._unlike("standard input cannot be read again"))
            if not is_there(source):
                raise InputError(self._unlike(f"{source} is not there"))
            for record in read_records(source, *self.database.input_columns):
                number += 1
                if number not in wanted:
                    continue
                name, length = wanted[number]
                try:
                    sequence = clean_sequence(record.letters())
                except RejectedSequenceError as error:
                    raise InputError(self._unlike(f"{source} record {record.number}: {error}")) from error
                # What was converted from stored embeddings may not know its proteins' lengths.
                if record.id != name or length not in (len(sequence), UNKNOWN):
                    there = f"{source} record {record.number} is {record.id!r} of {len(sequence):,} residues"
                    raise InputError(self._unlike(f"{there}, where {self.database.path} has {name!r} of {length:,}"))
                found[number] = sequence
                if len(found) == len(wanted):
                    return [found[int(record)] for record in records]
        raise InputError(self._unlike(f"record {min(wanted.keys() - found.keys()):,} is not in {self.sources[-1]}"))

    def _unlike(self, what: str) -> str:
        return f"{what}: name the inputs that {self.database.path} was made from with --database-input, or embed again"

    def _stored(self, records: np.ndarray) -> np.ndarray:
        """(records, width) float32: what the database holds of ascending records."""
        level = list(self.database.levels)[-1]
        return np.concatenate([chunk.vectors for chunk in self.database.chunks(level, records, as_stored=True)])

    def _check(self, records: np.ndarray, vectors: np.ndarray, stored: np.ndarray) -> None:
        """Raise unless the first dimensions are those stored: else these are not the proteins that were embedded."""
        options = self.database.options
        first = finish(vectors, stored.shape[1], options, grid=self.database.grid)
        first = dequantize(first, self.database.grid).astype(np.float32)
        half = options.dtype != "float32" or options.output_dtype != "float32"
        off = np.linalg.norm(first - stored, axis=1) > (_SAME_HALF if half else _SAME) * np.linalg.norm(stored, axis=1)
        if off.any():
            record = int(records[np.flatnonzero(off)[0]])
            raise InputError(self._unlike(f"record {record:,} has another sequence there than in {self.database.path}"))

    def _compute(self, sequences: list[str]) -> np.ndarray:
        """(sequences, width) float32 at the larger level."""
        if self._embedder is None:
            options = asdict(self.options)
            del options["levels"]
            self._embedder = Embedder(
                self.model.name,
                level=self.level,
                revision=self.model.revision,
                device=self.device,
                one_pass=self.database.model.one_pass,
                backbones=self.database.model.backbones,
                **options,
            )
        return np.stack(self._embedder.embed(sequences)["embedding"])

    def _keep(self, keys: list[str], vectors: np.ndarray) -> None:
        column = pa.FixedSizeListArray.from_arrays(vectors.reshape(-1), vectors.shape[1])
        table = pa.table({_KEY: pa.array(keys, pa.string()), "embedding": column})
        name = hashlib.sha256("\n".join(keys).encode()).hexdigest()[:32]
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with replacing(self.folder / f"{name}.parquet") as temporary:
                pq.write_table(table, temporary, compression="none")
        except OSError as error:
            raise InputError(f"{self.cache} cannot be made ({error.strerror}): name another --cache") from error
        except FolderError as error:
            raise InputError(f"{error} (or another --cache)") from error

    def _cached(self, wanted: set[str]) -> Iterator[tuple[list[str], np.ndarray]]:
        """Keys that are in the cache, with their vectors, each key once: what was found is no longer wanted."""
        width = self.database.model.nested_dims[self.level]
        for path in sorted(self.folder.glob("*.parquet")):
            try:
                keys = pq.read_table(path, columns=[_KEY], memory_map=True).column(_KEY).to_pylist()
                places = [place for place, key in enumerate(keys) if key in wanted]
                if not places:
                    continue
                column = pq.read_table(path, columns=["embedding"], memory_map=True).column("embedding")
                vectors = column.combine_chunks().flatten().to_numpy().reshape(-1, width)[places]
            except (pa.ArrowException, OSError, KeyError, ValueError) as error:
                raise InputError(f"{path} is damaged ({error}): delete it, it will be computed again") from error
            yield [keys[place] for place in places], vectors


def _in_chunks(sequences: dict[str, str]) -> list[list[str]]:
    """Keys of sequences in chunks of like lengths, longest first."""
    chunks: list[list[str]] = []
    residues = 0
    for key in sorted(sequences, key=lambda key: (-len(sequences[key]), key)):
        residues += len(sequences[key])
        if not chunks or residues > CHUNK_RESIDUES:
            chunks.append([])
            residues = len(sequences[key])
        chunks[-1].append(key)
    return chunks


def _key(sequence: str) -> str:
    return hashlib.sha256(sequence.encode()).hexdigest()
