"""Ways to spoil a file, each a function of a seeded generator: what disks, editors, other tools and ill will do."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

# Values that no reader expects; names of other files are added by the case.
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2.5, 7, 10**9, 10**30, 1e308, -0.0, float("nan"), float("inf")),
    *("", "x", "os", "a\0b", "\ud800", "9" * 5000, "nan", "../..", "float64", "owner/name"),
    *([], {}, [None], [[]], {"x": None}, ["x"], [0], [-1], [10**12], {"0": {"0": []}}),
)
DEEP = 50_000


def _places(content: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of everything in a JSON value."""
    pairs = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    return [path, *(place for key, value in pairs for place in _places(value, (*path, key)))]


def spoil_json(text: str, chance: random.Random, elsewhere: list[str]) -> tuple[str, str]:
    """A JSON text with one thing wrong.

    Args:
        text: the whole file.
        chance: the generator.
        elsewhere: names of files outside of the folder.

    Returns:
        The new text, and what was done.
    """
    way = chance.choices(("value", "delete", "twice", "deep", "text"), (12, 3, 1, 2, 2))[0]
    if way == "text":
        return spoil_text(text, chance, elsewhere)
    content = json.loads(text)
    place = chance.choice(_places(content)[1:])
    holder = content
    for key in place[:-1]:
        holder = holder[key]
    name = ".".join(map(str, place))
    if way == "delete":
        del holder[place[-1]]
        return json.dumps(content), f"{name} deleted"
    old = holder[place[-1]]
    if way == "value":
        # Where the old value is of the kind, one that a reader may take: numbers just beside, other files' names.
        near: list[Any] = [old + 1, old - 1, 2 * old, -old] if isinstance(old, int | float) else [[old], {"x": old}]
        pool = [*VALUES, *near, *(elsewhere * 4 if isinstance(old, str) else elsewhere)]
        holder[place[-1]] = chance.choice(pool)
        return json.dumps(content), f"{name} was {_short(old)}, is {_short(holder[place[-1]])}"
    mark = "@@mark@@"
    holder[place[-1]] = mark
    new = "[" * DEEP + "]" * DEEP if way == "deep" else f"{json.dumps(old)}, {json.dumps(str(place[-1]))}: null"
    return json.dumps(content).replace(json.dumps(mark), new), f"{name} {way}"


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) < 90 else f"{shown[:87]}..."


def spoil_text(text: str, chance: random.Random, elsewhere: list[str]) -> tuple[str, str]:
    """A text with one stretch of it replaced by something, or cut."""
    start = chance.randrange(len(text) + 1)
    stop = chance.choice((start, min(len(text), start + chance.randrange(1, 20)), len(text)))
    odd = ("", "\0", "\ufeff", "\x1a", '"', "\t", "\r", "\n\n", ";", "é\u202e", "NaN", "1e999")
    put = chance.choice((*odd, "x" * 20_000, "[" * DEEP, "9" * 5000, *elsewhere))
    return text[:start] + put + text[stop:], f"characters {start} to {stop} became {_short(put)}"


def spoil_bytes(data: bytes, chance: random.Random, elsewhere: list[str]) -> tuple[bytes, str]:
    """Some bits flipped (anywhere, or where a format keeps what it says of itself), a stretch lost, or the end."""
    way = chance.choice(("flip", "head", "tail", "flip", "head", "tail", "cut", "zeros", "gone", "longer", "other"))
    fresh = bytearray(data)
    if way in ("flip", "head", "tail"):
        span = len(fresh) if way == "flip" else min(len(fresh), 400)
        for _ in range(chance.choice((1, 3, 20))):
            place = chance.randrange(span)
            fresh[place if way != "tail" else -1 - place] ^= 1 << chance.randrange(8)
    elif way == "cut":
        del fresh[chance.randrange(len(fresh)) :]
    elif way == "zeros":
        start = chance.randrange(len(fresh))
        fresh[start : start + 500] = bytes(len(fresh[start : start + 500]))
    elif way == "longer":
        fresh += bytes(chance.randbytes(1000))
    else:
        fresh = bytearray() if way == "gone" else bytearray(chance.choice((b"{}", b"\x89HDF\r\n\x1a\n", b"PAR1PAR1")))
    return bytes(fresh), way


def spoil_safetensors(path: Path, chance: random.Random, elsewhere: list[str]) -> str:
    """The header of a file of weights, which says where each tensor lies, or its bytes."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    way = chance.choice(("header", "header", "bytes", "size"))
    if way == "bytes":
        fresh, what = spoil_bytes(data, chance, elsewhere)
        path.write_bytes(fresh)
        return what
    if way == "size":
        path.write_bytes(struct.pack("<Q", chance.choice((0, size + 8, 10**12, 2**63))) + data[8:])
        return "size of the header"
    header, what = spoil_json(data[8 : 8 + size].decode(), chance, elsewhere)
    encoded = header.encode("utf-8", "surrogatepass")
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + data[8 + size :])
    return what


def spoil_h5(path: Path, chance: random.Random, elsewhere: list[str]) -> str:
    """One dataset of an h5 file replaced, or its bytes."""
    if chance.random() < 0.5:
        fresh, what = spoil_bytes(path.read_bytes(), chance, elsewhere)
        path.write_bytes(fresh)
        return what
    with h5py.File(path, "a") as file:
        name = chance.choice(list(file))
        way = chance.choice(list(H5_WAYS))
        old = file[name][()]
        if way != "attribute":
            del file[name]
        H5_WAYS[way](file, name, old, chance, elsewhere)
    return f"{name}: {way}"


def _h5_dtype(file: h5py.File, name: str, old: np.ndarray, chance: random.Random, elsewhere: list[str]) -> None:
    file[name] = old.astype(chance.choice(("c8", "i4", "?", "S8", "f2", "f8")))


def _h5_shape(file: h5py.File, name: str, old: np.ndarray, chance: random.Random, elsewhere: list[str]) -> None:
    shapes: list[Any] = [old[:-1], old[None, None], old[0], old[:0], h5py.Empty("f4"), np.zeros((0, len(old)), "f4")]
    file[name] = chance.choice(shapes)


def _h5_huge(file: h5py.File, name: str, old: np.ndarray, chance: random.Random, elsewhere: list[str]) -> None:
    file.create_dataset(name, (10**9, len(old)), "f4", chunks=chance.choice((None, (64, len(old)))))


def _h5_elsewhere(file: h5py.File, name: str, old: np.ndarray, chance: random.Random, elsewhere: list[str]) -> None:
    file.create_dataset(name, old.shape, "f4", external=[(chance.choice(elsewhere), 0, old.nbytes)])


def _h5_virtual(file: h5py.File, name: str, old: np.ndarray, chance: random.Random, elsewhere: list[str]) -> None:
    layout = h5py.VirtualLayout(old.shape, "f4")
    layout[:] = h5py.VirtualSource(chance.choice(elsewhere), "r0", old.shape)
    file.create_virtual_dataset(name, layout)


def _h5_link(file: h5py.File, name: str, old: np.ndarray, chance: random.Random, elsewhere: list[str]) -> None:
    file[name] = chance.choice((h5py.ExternalLink(chance.choice(elsewhere), "/r0"), h5py.SoftLink("/none"), file["/"]))


def _h5_attribute(file: h5py.File, name: str, old: np.ndarray, chance: random.Random, elsewhere: list[str]) -> None:
    values = (np.bytes_(b"\xff"), 7, h5py.Empty("S1"), ["a", "b"], np.zeros(3), "", "a\tb\n", file.ref)
    file[name].attrs["original_id"] = chance.choice(values)


H5_WAYS: dict[str, Callable[..., None]] = {
    "dtype": _h5_dtype,
    "shape": _h5_shape,
    "huge": _h5_huge,
    "external": _h5_elsewhere,
    "virtual": _h5_virtual,
    "link": _h5_link,
    "attribute": _h5_attribute,
}


def spoil_npy(path: Path, chance: random.Random, elsewhere: list[str]) -> str:
    """A matrix of another dtype or shape, a header that lies, or its bytes."""
    way = chance.choice(("bytes", "dtype", "shape", "header", "header"))
    matrix = np.load(path)
    if way == "bytes":
        fresh, what = spoil_bytes(path.read_bytes(), chance, elsewhere)
        path.write_bytes(fresh)
        return what
    if way == "dtype":
        kind = chance.choice(("c8", "i8", "?", "U3", "f2", ">f4", "M8[s]", "O"))
        np.save(path, matrix.astype(kind), allow_pickle=True)
        return f"dtype {kind}"
    if way == "shape":
        np.save(path, chance.choice((matrix[:-1], matrix[:, :-1], matrix[None], matrix[0], matrix[:0], matrix[:, :0])))
        return "shape"
    shape = chance.choice(("(10000000000, 32)", "(-1, 32)", "('a', 32)", "()", "(1" + "0" * 30 + ", 32)", "[12, 32]"))
    descr = chance.choice(("'<f4'", "'<f4'", "'|O'", "[('a', '<f4')]", "'x'", "None", "((((((1,),),),),)"))
    header = f"{{'descr': {descr}, 'fortran_order': {chance.choice(('False', 'None'))}, 'shape': {shape}, }}\n"
    encoded = header.encode()
    path.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(encoded)) + encoded + matrix.tobytes())
    return header.strip()


def spoil_parquet(path: Path, chance: random.Random, elsewhere: list[str]) -> str:
    """A column of another type, with gaps, twice, not there; or its bytes."""
    if chance.random() < 0.4:
        fresh, what = spoil_bytes(path.read_bytes(), chance, elsewhere)
        path.write_bytes(fresh)
        return what
    table = pq.read_table(path)
    place = chance.randrange(table.num_columns)
    name, column = table.column_names[place], table.column(place).to_pylist()
    way = chance.choice(("other", "gap", "gone", "twice", "named", "none", "last"))
    if way == "other":
        kinds: list[list[Any]] = [
            [str(value) for value in column],
            [b"\xff" for _ in column],
            [number for number, _ in enumerate(column)],
            [[value] for value in column],
            [{"x": 1} for _ in column],
            [[float(number)] * number for number, _ in enumerate(column)],
            [[[0.0] * 32, [0.0] * 31] for _ in column],
            [float("nan") for _ in column],
            [True for _ in column],
            [None for _ in column],
        ]
        table = table.set_column(place, name, pa.array(chance.choice(kinds)))
    elif way == "gap":
        column[chance.randrange(len(column))] = None
        table = table.set_column(place, name, pa.array(column, table.schema.field(place).type))
    elif way == "gone":
        table = table.remove_column(place)
    elif way == "twice":
        table = table.append_column(name, table.column(place))
    elif way == "named":
        names = [*table.column_names]
        names[place] = chance.choice(("x", "", "a.b", "ID", "sequence", names[0]))
        table = table.rename_columns(names)
    else:
        table = table[:0] if way == "none" else table[:-1]
    pq.write_table(table, path)
    return f"{name}: {way}"


def spoil_pt(path: Path, chance: random.Random, elsewhere: list[str]) -> str:
    """Another thing in place of the tensors, or its bytes."""
    if chance.random() < 0.5:
        fresh, what = spoil_bytes(path.read_bytes(), chance, elsewhere)
        path.write_bytes(fresh)
        return what
    ones = torch.ones(32)
    odd: list[Any] = [ones.to_sparse(), ones.int(), ones[:3], ones.sum(), torch.zeros(0, 32), ones.expand(10**10, 32)]
    odd += [torch.quantize_per_tensor(ones, 0.1, 0, torch.qint8), torch.ones(32, device="meta"), "x", None, [1.0]]
    value = chance.choice(odd)
    layers: list[Any] = [{2: value}, {"2": value}, {2: value, "x": ones}, {}, value, [value], {None: value}]
    chosen = chance.choice(layers)
    torch.save(chance.choice(({"mean_representations": chosen}, {"mean_representations": chosen}, chosen)), path)
    return "another content"


def spoil(path: Path, chance: random.Random, elsewhere: list[str]) -> str:
    """Spoil a file as its kind can be.

    Returns:
        What was done, in words.
    """
    data = path.read_bytes()
    # The file may be a link to one that other cases share.
    path.unlink()
    path.write_bytes(data)
    by_suffix = {".h5": spoil_h5, ".npy": spoil_npy, ".parquet": spoil_parquet, ".pt": spoil_pt}
    by_suffix[".safetensors"] = spoil_safetensors
    if path.suffix in by_suffix:
        return by_suffix[path.suffix](path, chance, elsewhere)
    text = path.suffix not in (".faiss",)
    if not text or chance.random() < 0.15:
        fresh, what = spoil_bytes(data, chance, elsewhere)
        path.write_bytes(fresh)
        return what
    how = spoil_json if path.suffix == ".json" else spoil_text
    words, what = how(data.decode(), chance, elsewhere)
    path.write_bytes(words.encode("utf-8", "surrogatepass"))
    return what
