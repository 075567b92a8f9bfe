"""Compressions and encodings are told by content; what holds no text is refused by name."""

from __future__ import annotations

import io
import lzma
import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from rd_hf.data.records import InputError
from rd_hf.data.sources import read_records
from tests.data.cases import COMPRESSIONS, ENCODINGS, RECORDS, REFUSED_FILES, TABLE, TEXT, Case


def pairs(path: Path | str) -> list[tuple[str, str]]:
    return [(record.id, record.problem or record.sequence) for record in read_records(path)]


@pytest.mark.parametrize("name", ["a.fasta", "a.csv"])
@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("kind", ["none", *COMPRESSIONS])
def test_text_is_read_whatever_its_compression_and_encoding(
    tmp_path: Path, kind: str, encoding: str, name: str
) -> None:
    mark, codec = ENCODINGS[encoding]
    data = (mark + (TEXT if name == "a.fasta" else TABLE)).encode(codec)
    path = tmp_path / name
    path.write_bytes(COMPRESSIONS.get(kind, bytes)(data))
    assert pairs(path) == RECORDS


@pytest.mark.parametrize("compress", COMPRESSIONS.values(), ids=COMPRESSIONS)
class TestEachCompression:
    def test_streams_end_to_end_and_in_one_another_are_one_text(
        self, tmp_path: Path, compress: Callable[[bytes], bytes]
    ) -> None:
        first, second = TEXT[:20].encode(), TEXT[20:].encode()
        path = tmp_path / "a.fasta"
        path.write_bytes(compress(first) + compress(second))
        assert pairs(path) == RECORDS
        path.write_bytes(COMPRESSIONS["xz"](compress(TEXT.encode())))
        assert pairs(path) == RECORDS

    def test_standard_input_may_be_compressed(
        self, monkeypatch: pytest.MonkeyPatch, compress: Callable[[bytes], bytes]
    ) -> None:
        raw = io.BufferedReader(io.BytesIO(compress(TEXT.encode())))  # type: ignore[arg-type]
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(raw))
        assert pairs("-") == RECORDS

    @pytest.mark.parametrize("name", ["a.fasta", "a.csv", "a.jsonl"])
    def test_a_stream_that_is_cut_or_followed_by_something_else_is_damaged(
        self, tmp_path: Path, compress: Callable[[bytes], bytes], name: str
    ) -> None:
        lines = {
            "a.fasta": [f">r{number}\nMK{number}\n" for number in range(30000)],
            "a.csv": ["sequence\n", *(f"MK{number}\n" for number in range(30000))],
            "a.jsonl": [f'{{"sequence": "MK{number}"}}\n' for number in range(30000)],
        }[name]
        whole = compress("".join(lines).encode())
        path = tmp_path / name
        # Cut in the middle, cut in the last bytes, and a plain file joined to a compressed one.
        for data in (whole[: len(whole) // 2], whole[:-3], whole + b">lost\nMK\n"):
            path.write_bytes(data)
            with pytest.raises(InputError, match=rf"{name} is damaged after (record|line) \d+ .*fetch the file again"):
                pairs(path)

    def test_a_table_is_known_by_the_suffix_before(self, tmp_path: Path, compress: Callable[[bytes], bytes]) -> None:
        suffixes = {"gzip": ".gz", "bzip2": ".bz2", "xz": ".xz", "zstd": ".zst", "lz4": ".lz4"}
        kind = next(kind for kind, one in COMPRESSIONS.items() if one is compress)
        path = tmp_path / f"a.csv{suffixes[kind]}"
        path.write_bytes(compress(TABLE.encode()))
        assert pairs(path) == RECORDS


@pytest.mark.parametrize("kind", ["gzip", "xz", "zstd", "lz4"])
def test_what_comes_before_the_damage_is_read(tmp_path: Path, kind: str) -> None:
    # bzip2 compresses 900 kB at a time, all or nothing.
    draw = random.Random(0)
    sequences = ["".join(draw.choices("LAGVSERTIDPKQNFYMHWC", k=200)) for _ in range(3000)]
    data = COMPRESSIONS[kind]("".join(f">r\n{sequence}\n" for sequence in sequences).encode())
    path = tmp_path / "a.fasta"
    path.write_bytes(data[: len(data) * 2 // 3])
    found = []
    with pytest.raises(InputError, match="is damaged after record"):
        found.extend(record.sequence for record in read_records(path))
    assert len(found) > 1000
    assert found == sequences[: len(found)]


def test_padding_between_xz_streams_is_none_of_the_text(tmp_path: Path) -> None:
    path = tmp_path / "a.fasta.xz"
    path.write_bytes(lzma.compress(TEXT[:20].encode()) + bytes(8) + lzma.compress(TEXT[20:].encode()) + bytes(4))
    assert pairs(path) == RECORDS


@pytest.mark.parametrize("kind", ["gzip", "bzip2", "xz"])
def test_a_flipped_bit_is_damage(tmp_path: Path, kind: str) -> None:
    # Frames of zstd and lz4 carry a checksum only on request.
    data = bytearray(COMPRESSIONS[kind](TEXT.encode() * 100))
    data[len(data) // 2] ^= 16
    path = tmp_path / "a.fasta"
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"is damaged after"):
        pairs(path)


@pytest.mark.parametrize("name", ["a.fasta", "a.csv"])
@pytest.mark.parametrize("case", REFUSED_FILES, ids=lambda case: case.what)
def test_what_holds_no_text_is_refused_by_name(tmp_path: Path, case: Case, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(case.value)
    with pytest.raises(InputError, match=re.escape(f"{path} {case.reason}")):
        pairs(path)


@pytest.mark.parametrize("text", ["PAR1,sequence\nx,MK\n", "BZh9,sequence\nx,MK\n", "LZIP,sequence\nx,MK\n"])
def test_a_table_may_begin_with_the_letters_of_a_mark(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text(text)
    assert pairs(path) == [("1", "MK")]


def test_a_pipe_that_brings_a_byte_at_a_time_is_read_too(monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow(io.RawIOBase):
        def __init__(self, data: bytes) -> None:
            self.rest = data

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
            buffer[: len(self.rest[:1])] = self.rest[:1]
            count, self.rest = len(self.rest[:1]), self.rest[1:]
            return count

    for data in (TEXT.encode(), TEXT.encode("utf-16"), *(one(TEXT.encode()) for one in COMPRESSIONS.values())):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BufferedReader(Slow(data))))
        assert pairs("-") == RECORDS


def test_closed_standard_input_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(InputError, match="standard input is closed"):
        pairs("-")
