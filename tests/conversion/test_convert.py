"""``rd-hf convert``: raw embeddings as tools leave them, to what a run from the sequences gives, without a backbone."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from rd_hf.commands.convert import main
from rd_hf.commands.embed import main as embed
from rd_hf.data.batching import collate
from rd_hf.data.fasta import read_fasta
from rd_hf.embedding.folder import OutputFolder
from rd_hf.model.configuration_rd_esm import RDEsmConfig
from rd_hf.model.modeling_rd_esm import RDEsmModel
from tests.conftest import backbone_settings
from tests.embedding.conftest import content_hashes, parts, random_fasta, read

# Of a vector's largest number. The same sums are taken in another order: measured 2e-7 to 2e-6.
TOLERANCE = 1e-5
LEVELS = ("L0", "L1", "L2")
COUNT = 30


@dataclass(frozen=True)
class Raw:
    """What a user has: states of each backbone by level and protein, and nested embeddings from the sequences."""

    model: Path
    ids: list[str]
    states: dict[str, list[np.ndarray]]  # (residues, width) each
    first: dict[str, list[np.ndarray]]  # of cls
    folder: Path

    def means(self, level: str) -> list[np.ndarray]:
        return [rows.mean(axis=0, dtype=np.float64).astype(np.float32) for rows in self.states[level]]


@pytest.fixture(scope="module")
def raw(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Raw:
    folder = tmp_path_factory.mktemp("raw")
    fasta = random_fasta(folder / "p.fasta", COUNT, longest=40)
    # Neither a bad record nor names that h5 has no room for: those are looked at one by one below.
    fasta.write_text(fasta.read_text().replace("MK*T", "MKT"))
    model = RDEsmModel.from_pretrained(tiny_checkpoint)
    states: dict[str, list[np.ndarray]] = {level: [] for level in LEVELS}
    first: dict[str, list[np.ndarray]] = {level: [] for level in LEVELS}
    records = list(read_fasta(fasta))
    for record in records:
        ids, mask = collate([record.sequence])
        with torch.inference_mode():
            found = model(ids, mask, output_backbone_states=True).backbone_states
        for level, state in zip(LEVELS, found, strict=True):
            states[level].append(state[0, 1:-1].numpy())
            first[level].append(state[0, 0].numpy())
    for pooling in ("mean", "cls", "residue"):
        job = ["--model", str(tiny_checkpoint), "--input", str(fasta), "--pooling", pooling, "--quiet", "--output"]
        assert embed([*job, str(folder / pooling)]) == 0
    return Raw(tiny_checkpoint, [record.id for record in records], states, first, folder)


@pytest.fixture
def convert(capsys: pytest.CaptureFixture[str], raw: Raw) -> Callable[..., str]:
    """Run the command; what it said, or the sentence that it ended with."""

    def run(*arguments: object, model: Path | None = None) -> str:
        capsys.readouterr()
        status = main(["--model", str(model or raw.model), *map(str, arguments)])
        said = capsys.readouterr()
        # Random bases were fitted on nothing, which is noticed.
        lines = [line for line in said.err.splitlines() if not line.startswith("the mean of the embeddings")]
        if status:
            assert len(lines) == 1, said.err
        return lines[0] if status else said.out

    return run


@pytest.fixture(autouse=True)
def no_backbone(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(self: RDEsmModel, index: int, *args: Any, **kwargs: Any) -> Any:
        raise AssertionError(f"backbone {index} was loaded")

    monkeypatch.setattr(RDEsmModel, "_load_backbone", refused)


def largest_difference(converted: Path, scratch: Path) -> float:
    """Between rows of the same id, each of its own largest number."""
    theirs = dict(zip(read(scratch)["id"].to_pylist(), read(scratch)["embedding"].to_pylist(), strict=True))
    table = read(converted)
    assert sorted(table["id"].to_pylist()) == sorted(theirs)
    worst = 0.0
    for one, value in zip(table["id"].to_pylist(), table["embedding"].to_pylist(), strict=True):
        mine, other = np.array(value), np.array(theirs[one])
        assert mine.shape == other.shape
        worst = max(worst, np.abs(mine - other).max() / np.abs(other).max())
    return worst


def write_h5(path: Path, ids: list[str], values: list[np.ndarray]) -> Path:
    with h5py.File(path, "w") as file:
        for one, value in zip(ids, values, strict=True):
            file[one] = value
    return path


def shuffled(ids: list[str], values: list[np.ndarray], seed: int) -> tuple[list[str], list[np.ndarray]]:
    order = np.random.default_rng(seed).permutation(len(ids))
    return [ids[place] for place in order], [values[place] for place in order]


def write_inputs(kind: str, raw: Raw, folder: Path, pooling: str) -> list[Path]:
    """Raw embeddings as a tool writes them, each level in an order of its own."""
    values = {
        level: {"mean": raw.means(level), "cls": raw.first[level], "residue": raw.states[level]}[pooling]
        for level in LEVELS
    }
    paths: list[Path] = []
    for seed, level in enumerate(LEVELS):
        ids, mine = shuffled(raw.ids, values[level], seed)
        path = folder / f"{level}.{kind}"
        if kind == "h5":
            write_h5(path, ids, mine)
        elif kind == "hashed.h5":  # as biotrainer
            with h5py.File(path, "w") as file:
                for number, (one, value) in enumerate(zip(ids, mine, strict=True)):
                    file.create_dataset(f"{number:064x}", data=value).attrs["original_id"] = one
        elif kind == "npy":
            np.save(path, np.stack(mine))
            # With the file's suffix, and without.
            beside = path.with_suffix(".ids.txt") if seed % 2 else Path(f"{path}.ids.txt")
            beside.write_text("\n".join(ids) + "\n")
        elif kind == "parquet":
            pq.write_table(pa.table({"id": ids, "raw": [value.tolist() for value in mine]}), path, row_group_size=7)
        elif kind == "fixed.parquet":
            depth = pa.list_(pa.float32(), mine[0].shape[-1])
            column = pa.array([value.tolist() for value in mine], depth if pooling != "residue" else pa.list_(depth))
            pq.write_table(pa.table({"Entry": ids, "raw": column}), path)
        else:  # fair-esm's extract.py: the last layer and another
            path = folder / level
            path.mkdir()
            for one, rows, cls in zip(raw.ids, raw.states[level], raw.first[level], strict=True):
                content: dict[str, Any] = {"label": one}
                for layer in (1, 2):
                    scale = 1.0 if layer == 2 else 3.0
                    tensors = torch.from_numpy(rows) * scale
                    if pooling == "mean":
                        content.setdefault("mean_representations", {})[layer] = tensors.mean(dim=0)
                    elif pooling == "cls":
                        content.setdefault("bos_representations", {})[layer] = torch.from_numpy(cls) * scale
                    else:
                        content.setdefault("representations", {})[layer] = tensors
                torch.save(content, path / f"{one}.pt")
        paths.append(path)
    return paths


@pytest.mark.parametrize("pooling", ["mean", "cls", "residue"])
@pytest.mark.parametrize("kind", ["h5", "hashed.h5", "npy", "parquet", "fixed.parquet", "pt"])
def test_it_is_a_run_from_the_sequences(
    convert: Callable[..., str], raw: Raw, tmp_path: Path, kind: str, pooling: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So few that every level is read in several goes, back and forth where its order is another.
    monkeypatch.setattr("rd_hf.conversion.convert._CHUNK_BYTES", 4 * (32 + 48 + 64) * 7)
    monkeypatch.setattr("rd_hf.conversion.convert._CHUNK_MATRICES", 7)
    monkeypatch.setattr("rd_hf.conversion.raw._BATCH_ROWS", 4)
    if (kind, pooling) == ("npy", "residue"):
        pytest.skip("a matrix has a row a protein")
    inputs = write_inputs(kind, raw, tmp_path, pooling)
    said = convert(
        *("--input", *reversed(inputs), "--output", tmp_path / "out", "--pooling", pooling, "--part-records", 8)
    )
    assert f"{COUNT} proteins: {COUNT} written, 0 rejected\n4 parts" in said
    assert largest_difference(tmp_path / "out", raw.folder / pooling) <= TOLERANCE
    lengths = read(tmp_path / "out")["length"].to_pylist()
    assert (None in lengths) == (pooling != "residue"), "a mean does not tell how many residues it is of"


def test_rows_a_residue_are_averaged_where_means_are_wanted(
    convert: Callable[..., str], raw: Raw, tmp_path: Path
) -> None:
    inputs = [write_h5(tmp_path / f"{level}.h5", raw.ids, raw.states[level]) for level in LEVELS]
    convert("--input", *inputs, "--output", tmp_path / "out", "--level", "L0", "L2")
    (tmp_path / "two").mkdir()
    for path in parts(tmp_path / "out"):
        table = pq.read_table(path)
        prefix = np.array(table["embedding_L2"].to_pylist())[:, :32]
        assert np.array_equal(prefix, np.array(table["embedding_L0"].to_pylist()))
        pq.write_table(
            table.rename_columns([n.replace("_L2", "") for n in table.column_names]), tmp_path / "two" / path.name
        )
    assert largest_difference(tmp_path / "two", raw.folder / "mean") <= TOLERANCE


def test_one_table_with_a_column_a_backbone_and_several_files_a_level(
    convert: Callable[..., str], raw: Raw, tmp_path: Path
) -> None:
    columns = {level: [value.tolist() for value in raw.means(level)] for level in LEVELS}
    for number, part in enumerate((slice(0, 11), slice(11, None))):
        table = pa.table({"id": raw.ids[part], **{level: values[part] for level, values in columns.items()}})
        pq.write_table(table, tmp_path / f"{number}.parquet")
    convert("--input", tmp_path / "0.parquet", tmp_path / "1.parquet", "--output", tmp_path / "out")
    assert read(tmp_path / "out")["id"].to_pylist() == raw.ids
    assert largest_difference(tmp_path / "out", raw.folder / "mean") <= TOLERANCE


def test_a_smaller_level_needs_its_own_backbones_only(convert: Callable[..., str], raw: Raw, tmp_path: Path) -> None:
    inputs = write_inputs("h5", raw, tmp_path, "mean")
    convert("--input", *inputs[:2], "--output", tmp_path / "out")
    table = read(tmp_path / "out")
    whole = dict(zip(read(raw.folder / "mean")["id"].to_pylist(), read(raw.folder / "mean")["embedding"], strict=True))
    for one, value in zip(table["id"].to_pylist(), table["embedding"].to_pylist(), strict=True):
        assert np.allclose(value, whole[one].as_py()[:48], rtol=0, atol=TOLERANCE * np.abs(value).max())
    assert "those of L0 are missing" in convert("--input", inputs[1], "--output", tmp_path / "none")


def test_stopped_and_started_again_it_writes_the_same_and_notices_other_values(
    convert: Callable[..., str], raw: Raw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = write_inputs("parquet", raw, tmp_path, "mean")
    job = ("--input", *inputs, "--part-records", 4, "--output")
    convert(*job, tmp_path / "whole")
    original, written = OutputFolder.write_entry, 0

    def interrupted(self: OutputFolder, entry: Any) -> None:
        nonlocal written
        written += 1
        if written == 4:
            raise KeyboardInterrupt
        original(self, entry)

    monkeypatch.setattr(OutputFolder, "write_entry", interrupted)
    assert "interrupted" in convert(*job, tmp_path / "out")
    assert "8 parts, 3 of them from an earlier run" in convert(*job, tmp_path / "out")
    assert content_hashes(tmp_path / "out") == content_hashes(tmp_path / "whole")
    ids, values = shuffled(raw.ids, raw.means("L1"), 1)
    place = ids.index(pq.read_table(inputs[0])["id"].to_pylist()[0])
    values[place] = values[place] + 1
    pq.write_table(pa.table({"id": ids, "raw": [value.tolist() for value in values]}), inputs[1])
    assert "the input has changed since" in convert(*job, tmp_path / "out")


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_wrong_things_are_one_sentence(convert: Callable[..., str], raw: Raw, tmp_path: Path) -> None:
    good = write_inputs("h5", raw, tmp_path, "mean")
    number = iter(range(100))

    def said(*inputs: object, options: tuple[object, ...] = ()) -> str:
        output = tmp_path / f"out{next(number)}"
        text = convert("--input", *inputs, "--output", output, *options)
        assert text.startswith("rd-hf convert: error: ")
        assert not parts(output)
        return text

    odd = write_h5(tmp_path / "odd.h5", raw.ids, [np.zeros(77, np.float32) for _ in raw.ids])
    assert f"{odd} is 77 wide, which no backbone of this model is: they are 32 (L0), 48 (L1), 64 (L2)" in said(odd)
    assert f"{good[0]} is 32 wide, which level L1 of this model is" in said(f"L1={good[0]}", good[1])
    missing = write_h5(tmp_path / "missing.h5", raw.ids[:-2], raw.means("L1")[:-2])
    text = said(good[0], missing)
    assert "2 ids of level L0 are not among those of level L1 ('r28', ...)" in text
    more = write_h5(tmp_path / "more.h5", [*raw.ids, "new"], [*raw.means("L1"), raw.means("L1")[0]])
    assert "1 ids of level L1 are not among those of level L0 ('new', ...)" in said(good[0], more)
    twice = tmp_path / "twice.h5"
    with h5py.File(twice, "w") as file:
        for key, one in (("x", "r1"), ("y", "r1"), ("z", "r2")):
            file.create_dataset(key, data=np.zeros(32, np.float32)).attrs["original_id"] = one
    assert f"{twice} (level L0) has 1 ids more than once ('r1', ...)" in said(twice)
    assert "no such file or folder" in said(tmp_path / "absent.h5")
    (tmp_path / "text.h5").write_text("no h5")
    assert "text.h5 is no readable h5 file" in said(tmp_path / "text.h5")
    with h5py.File(tmp_path / "empty.h5", "w"):
        pass
    assert "empty.h5 holds no dataset" in said(tmp_path / "empty.h5")
    ragged = write_h5(tmp_path / "ragged.h5", raw.ids, [*raw.means("L1")[:-1], np.zeros(5, np.float32)])
    assert f"{ragged}: {raw.ids[-1]} is of shape (5,) where (48,) is wanted" in said(good[0], ragged)
    assert "is of shape (32,) where (residues, 32) is wanted for --pooling residue" in said(
        *good, options=("--pooling", "residue")
    )
    uneven = [write_h5(tmp_path / f"u{level}.h5", raw.ids, raw.states[level]) for level in LEVELS[:1]]
    uneven.append(write_h5(tmp_path / "u1.h5", raw.ids, [rows[1:] for rows in raw.states["L1"]]))
    assert "differs in its number of residues from level to level" in said(*uneven, options=("--pooling", "residue"))
    np.save(tmp_path / "m.npy", np.zeros((3, 32), np.float32))
    assert "m.npy has no ids beside it" in said(tmp_path / "m.npy")
    (tmp_path / "two.txt").write_text("a\nb\n")
    text = said(tmp_path / "m.npy", options=("--ids", tmp_path / "two.txt"))
    assert "m.npy has 3 rows, but" in text
    assert "names 2 ids" in text
    np.save(tmp_path / "o.npy", np.array([Bomb(tmp_path / "bang")], dtype=object), allow_pickle=True)
    assert "o.npy is no readable .npy file of numbers" in said(tmp_path / "o.npy")
    (tmp_path / "pt").mkdir()
    assert "holds no .pt file" in said(tmp_path / "pt")
    (tmp_path / "pt" / "a.pt").write_bytes(pickle.dumps({"mean_representations": Bomb(tmp_path / "bang")}))
    assert "a.pt is no .pt file of plain tensors" in said(tmp_path / "pt")
    torch.save({"mean_representations": {2: Bomb(tmp_path / "bang")}}, tmp_path / "pt" / "a.pt")
    assert "a.pt is no .pt file of plain tensors" in said(tmp_path / "pt")
    assert not (tmp_path / "bang").exists(), "nothing that came along was run"
    torch.save({"mean_representations": {1: torch.zeros(32)}}, tmp_path / "pt" / "a.pt")
    assert "holds layers 1, and the bases take the last, 2: extract it with --repr_layers 2" in said(tmp_path / "pt")
    pq.write_table(pa.table({"who": ["a"], "raw": [[0.0] * 32]}), tmp_path / "c.parquet")
    assert "c.parquet has no column 'of ids'; its columns are who, raw" in said(tmp_path / "c.parquet")
    pq.write_table(pa.table({"id": ["a"], "raw": ["text"]}), tmp_path / "d.parquet")
    assert "d.parquet has no rows of lists of floating-point numbers" in said(tmp_path / "d.parquet")
    column = pa.array([None, [0.0] * 32], pa.list_(pa.float32()))
    pq.write_table(pa.table({"id": ["a", "b"], "raw": column}), tmp_path / "e.parquet")
    assert "e.parquet (raw): a has no embedding" in said(tmp_path / "e.parquet")


def test_numbers_that_are_none_are_rejected_and_told(convert: Callable[..., str], raw: Raw, tmp_path: Path) -> None:
    inputs = [write_h5(tmp_path / f"{level}.h5", raw.ids, raw.means(level)) for level in LEVELS]
    with h5py.File(inputs[1], "a") as file:
        file["r7"][3] = np.nan
    assert "29 written, 1 rejected" in convert("--input", *inputs, "--output", tmp_path / "out")
    assert "\tr7\tits raw embeddings are not finite" in (tmp_path / "out" / "_rejects.tsv").read_text()
    assert "r7 cannot be converted" in convert("--input", *inputs, "--output", tmp_path / "strict", "--strict")


def test_embeddings_of_another_layer_are_noticed(
    raw: Raw, mini_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Fitted bases know the mean of what they were fitted on."""
    generator = np.random.default_rng(0)
    for width in (64, 128):
        np.save(tmp_path / f"{width}.npy", generator.normal(size=(20, width)).astype(np.float32))
    (tmp_path / "ids.txt").write_text("\n".join(f"p{number}" for number in range(20)))
    inputs = [str(tmp_path / f"{width}.npy") for width in (64, 128)]
    job = ["--model", str(mini_checkpoint), "--ids", str(tmp_path / "ids.txt"), "--output", str(tmp_path / "out")]
    assert main([*job, "--input", *inputs]) == 0
    assert "the mean of the embeddings of level 0.3M has cosine" in capsys.readouterr().err


def test_without_h5py_it_says_what_to_install(
    convert: Callable[..., str], raw: Raw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (path := tmp_path / "a.h5").write_bytes(b"")
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    assert 'pip install "rd_hf[h5]"' in convert("--input", path, "--output", tmp_path / "out")


def test_a_level_that_is_a_layer_is_not_made_of_stored_states(convert: Callable[..., str], tmp_path: Path) -> None:
    """Tools store what a layer gives, and the level is that under the final norm."""
    settings = backbone_settings(48)
    levels = [
        {"name": "S", "backbone": backbone_settings(32)},
        {"name": "L1", "backbone": settings, "layer": 1, "layers_of": "L2"},
        {"name": "L2", "backbone": settings},
    ]
    RDEsmModel(RDEsmConfig(levels=levels, residual_directions=[16, 16])).save_pretrained(tmp_path / "model")
    words = []
    for level, width in (("S", 32), ("L1", 48), ("L2", 48)):
        np.save(tmp_path / f"{level}.npy", np.zeros((2, width), dtype=np.float32))
        words.append(f"{level}={tmp_path / level}.npy")
    (tmp_path / "ids").write_text("a\nb\n")
    said = convert("--input", *words, "--ids", tmp_path / "ids", "--output", tmp_path / "out", model=tmp_path / "model")
    assert "level L1 is layer 1 of a backbone under its final norm, and stored states of a layer are without it" in said
    said = convert(
        "--input", words[1][3:], "--ids", tmp_path / "ids", "--output", tmp_path / "out", model=tmp_path / "model"
    )
    assert "L1.npy may be of level L1 or L2: write LEVEL=path" in said
