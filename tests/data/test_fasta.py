"""The FASTA reader against the text it was given and against Biopython's own parsers."""

from __future__ import annotations

import gzip
import io
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from rd_hf.data.fasta import read_fasta
from rd_hf.data.records import InputError
from tests.conftest import pearson_records
from tests.data.cases import FASTA_TEXTS, Case

# Anything but line ends; "\x1c" to "\x1e", "\x85" and the like are no line ends to a file, but are to
# str.splitlines, so they are worth having here. Surrogates cannot be written as UTF-8.
header = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n"), max_size=30)
line = st.text("ACDEFGHIKLMNPQRSTVWYacdxXBZUOJ*-.", min_size=1, max_size=40)
record = st.tuples(header, st.lists(line, max_size=4))
line_end = st.sampled_from(["\n", "\r\n", "\r"])
filler = st.lists(st.sampled_from(["", "; a comment", ";", ";>not a record"]), max_size=2)


@st.composite
def files(draw: st.DrawFn) -> tuple[bytes, list[tuple[str, str]]]:
    """A file's bytes and the (header, sequence) pairs in it."""
    records = draw(st.lists(record, min_size=1, max_size=6))
    lines = draw(st.sampled_from([[], ["#2\t1"], ["", "; a comment"]]))
    for head, sequence in records:
        lines += [">" + head]
        for part in sequence:
            lines += draw(filler)
            lines += [part]
        lines += draw(filler)
    end = draw(line_end)
    text = end.join(lines) + draw(st.sampled_from(["", end]))
    content = draw(st.sampled_from([b"", "\ufeff".encode()])) + text.encode()
    if draw(st.booleans()):
        content = gzip.compress(content[:50]) + gzip.compress(content[50:])  # two members, as bgzip writes
    return content, [(head.strip(), "".join(sequence)) for head, sequence in records]


@given(files())
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_record_is_read_as_it_was_written(tmp_path: Path, case: tuple[bytes, list[tuple[str, str]]]) -> None:
    content, expected = case
    path = tmp_path / "any.fasta"
    path.write_bytes(content)
    found = list(read_fasta(path))
    assert [(record.description, record.sequence) for record in found] == expected
    assert [record.number for record in found] == list(range(1, len(expected) + 1))
    assert all(record.id == (record.description.split() or [""])[0] for record in found)


@given(
    st.lists(
        st.tuples(
            st.from_regex(r"[!-:<-~]{1,10}( [ -~]{0,20})?", fullmatch=True), st.lists(line, min_size=1, max_size=4)
        ),
        min_size=1,
        max_size=6,
    ),
    line_end,
)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_biopython_reads_the_same(tmp_path: Path, records: list[tuple[str, list[str]]], end: str) -> None:
    text = end.join(part for head, lines in records for part in (f">{head}", "; a comment", *lines))
    path = tmp_path / "any.fasta"
    path.write_bytes(text.encode())
    reference = pearson_records(io.StringIO(text, newline=None))
    found = list(read_fasta(path))
    assert [record.sequence for record in found] == [str(other.seq) for other in reference]
    assert [record.id for record in found] == [other.id for other in reference]


def test_standard_input_may_be_gzip(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BufferedReader(io.BytesIO(gzip.compress(b">a\nMK\n>b\nML\n")))  # type: ignore[arg-type]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(raw))
    assert [record.sequence for record in read_fasta("-")] == ["MK", "ML"]


def test_bytes_read_are_told_as_they_are_read(tmp_path: Path) -> None:
    path = tmp_path / "many.fasta.gz"
    path.write_bytes(gzip.compress(b"".join(b">r%d\nMKTAY\n" % number for number in range(1000))))
    counts: list[int] = []
    list(read_fasta(path, counts.append))
    assert sum(counts) == path.stat().st_size


def test_a_gzip_cut_short_names_the_file_and_its_last_whole_record(tmp_path: Path) -> None:
    whole = b"".join(b">r%d\nMKTAYIAKQR%d\n" % (number, number) for number in range(20000))
    path = tmp_path / "cut.fasta.gz"
    path.write_bytes(gzip.compress(whole)[:-5000])
    read = []
    with pytest.raises(
        InputError, match=r"cut\.fasta\.gz is damaged after record \d+ .*fetch the file again"
    ) as caught:
        read.extend(read_fasta(path))
    assert f"record {len(read)} " in str(caught.value)
    assert [record.id for record in read] == [f"r{number}" for number in range(len(read))]


@pytest.mark.parametrize(
    "case", [*FASTA_TEXTS, Case("nothing", "", None, "holds no FASTA record")], ids=lambda c: c.what
)
def test_no_line_is_skipped_that_may_be_a_record(tmp_path: Path, case: Case) -> None:
    path = tmp_path / "a.fasta"
    path.write_text(case.value)
    if case.gives is None:
        with pytest.raises(InputError, match=re.escape(f"{path} {case.reason}")):
            list(read_fasta(path))
    else:
        assert [(record.id, record.problem or record.sequence) for record in read_fasta(path)] == case.gives


@example([b"\n", b"\xef\xbb\xbf"])
@example([b" ", b"#", b"MK", b"\n", b">p"])
@given(
    st.lists(st.sampled_from([b">p", b">", b"MK", b"M K>x", b"\n", b"\r", b";c", b"#", b"\xef\xbb\xbf", b" ", b"\xff"]))
)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_lines_that_begin_a_record_are_all_there_or_the_file_is_refused(tmp_path: Path, pieces: list[bytes]) -> None:
    path = tmp_path / "any.fasta"
    content = b"".join(pieces)
    path.write_bytes(content)
    lines = [
        line.removeprefix("\ufeff".encode())
        for line in re.split(b"\r\n|\r|\n", content.removeprefix("\ufeff".encode()))
    ]
    try:
        found = list(read_fasta(path))
    except InputError:
        begins = [line[:1] for line in lines if line.strip() and line[:1] not in (b";", b"#")]
        assert not begins or begins[0] != b">"
        return
    assert len(found) == sum(line.startswith(b">") for line in lines)
    # Each letter of the file is a header's, a comment's, or a record's.
    letters = sum(line.count(b"M") for line in lines if line[:1] not in (b">", b";") and line.lstrip()[:1] != b"#")
    letters += sum(
        line.count(b"M")
        for line in lines[next(i for i, line in enumerate(lines) if line[:1] == b">") :]
        if line[:1] not in (b">", b";") and line.lstrip()[:1] == b"#"
    )
    assert sum(record.sequence.count("M") for record in found) == letters


def test_words_before_the_first_record_are_said_and_refused_when_strict(tmp_path: Path) -> None:
    path = tmp_path / "a.fasta"
    path.write_text("Some header\n>p1\nMK\n")
    said: list[str] = []
    assert len(list(read_fasta(path, say=said.append))) == 1
    assert said == [
        f"{path}: line 1 ('Some header') stands before any '>' and is left out; remove it, or begin it with ';'"
    ]
    with pytest.raises(InputError, match="'Some header'"):
        list(read_fasta(path, strict=True))


@pytest.mark.parametrize(
    "line",
    [
        "LOCUS       NP_000537",
        "ID   P53_HUMAN",
        "1 mktay iakqr",
        "@r1 first",
        "p1\tMKT",
        "Some header >p1",
        "MKT AY\x00",
    ],
)
def test_first_lines_of_other_formats_are_no_words(tmp_path: Path, line: str) -> None:
    path = tmp_path / "a.fasta"
    path.write_text(f"{line}\n>p1\nMK\n")
    with pytest.raises(InputError, match="stands before any '>'"):
        list(read_fasta(path))


def test_a_number_sign_after_the_first_record_is_a_letter_like_others(tmp_path: Path) -> None:
    path = tmp_path / "a.fasta"
    path.write_text(">p1\nMK\n#TA\n")
    assert [record.sequence for record in read_fasta(path)] == ["MK#TA"]


def test_headers_that_are_not_utf_8_stay_distinct_and_it_is_said_once(tmp_path: Path) -> None:
    path = tmp_path / "latin.fasta"
    path.write_bytes(b">a\nMK\n>p\xe5 caf\xe9\nMK\n>p\xe9\nMK\n>\xc3\xa5\nMK\n")
    said: list[str] = []
    found = list(read_fasta(path, say=said.append))
    assert [record.id for record in found] == ["a", r"p\xe5", r"p\xe9", "å"]
    assert found[1].description == r"p\xe5 caf\xe9"
    assert len(said) == 1
    assert f"{path}: from record 2 on, bytes of ids or headers that are not in the file's encoding" in said[0]


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        list(read_fasta(tmp_path / "absent.fasta"))
    with pytest.raises(InputError, match="is a folder; give the files in it"):
        list(read_fasta(tmp_path))
