"""A device or an attention that is not there is one sentence, from every command and class that takes its name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from studies import frontier

from rd_hf.commands import embed as embed_command
from rd_hf.commands import evaluate_dms
from rd_hf.commands import search as search_command
from rd_hf.data.records import InputError
from rd_hf.devices import check_device, check_device_is_there, parse_device
from rd_hf.embedding import Embedder, EmbeddingOptions, JobSettings, run_job
from rd_hf.evaluation.families import Family

ABSENT = "meta" if torch.cuda.is_available() else "cuda"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What a command says on standard error as it refuses."""

    def called(main: Callable[[list[str]], int], *arguments: object) -> str:
        capsys.readouterr()
        assert main([str(argument) for argument in arguments]) == 1
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        return said

    return called


@pytest.fixture
def fasta(tmp_path: Path) -> Path:
    path = tmp_path / "in.fasta"
    path.write_text(">a\nMKTAYIAKQR\n>b\nMAGWLLK\n")
    return path


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("gpu", "'gpu' names no device: give cpu, cuda, cuda:1"),
        ("", "'' names no device"),
        ("cuda:x", "'cuda:x' names no device"),
        ("meta", "holds no numbers"),
        pytest.param(
            "cuda",
            "device cuda cannot be used here (Torch not compiled with CUDA enabled): this machine has cpu",
            marks=pytest.mark.skipif(torch.version.cuda is not None, reason="torch knows CUDA here"),
        ),
        ("cuda:99", "device cuda:99 cannot be used here"),
        ("xpu", "device xpu cannot be used here"),
        ("hpu", "device hpu cannot be used here"),
    ],
)
def test_a_device_is_named_with_what_there_is(name: str, sentence: str) -> None:
    with pytest.raises(InputError) as refused:
        check_device(name)
    assert sentence in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_device_that_is_there_is_one() -> None:
    assert check_device("cpu") == torch.device("cpu")
    # A worker of a cluster may have what this machine has not.
    assert parse_device("cuda:3") == torch.device("cuda", 3)


def test_an_embedder_counts_gpus_and_leaves_them_alone(monkeypatch: pytest.MonkeyPatch, tiny_checkpoint: Path) -> None:
    """A process that used one could not be forked, as datasets' map does."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch, "empty", lambda *_, **__: pytest.fail("a GPU was used"))
    assert check_device_is_there("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(
        InputError, match=r"device cuda:2 cannot be used here \(there is no such GPU\): this machine has"
    ):
        Embedder(tiny_checkpoint, device="cuda:2")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(
        InputError, match=r"device cuda cannot be used here \(torch sees no GPU\): this machine has cpu"
    ):
        Embedder(tiny_checkpoint, device="cuda")


@pytest.mark.parametrize("device", ["gpu", ABSENT])
def test_every_command_says_it_before_it_reads_or_writes(
    run: Callable[..., str], tiny_checkpoint: Path, fasta: Path, tmp_path: Path, device: str
) -> None:
    model, output = ("--model", tiny_checkpoint, "--device", device), tmp_path / "out"
    said = [
        run(embed_command.main, *model, "--input", fasta, "--output", output),
        run(search_command.main, *model, "--input", fasta, tmp_path, "--output", f"{output}.tsv"),
        run(evaluate_dms.main, *model, "--assays", assay(tmp_path), "--output", output),
        run(frontier.main, *model, "--assays", assay(tmp_path), "--output", output),
    ]
    assert all(f"{device!r} names no device" in line or f"device {device}" in line for line in said), said
    assert not (output / ".job").exists()
    # At once, not at first use.
    with pytest.raises(InputError, match="device"):
        Embedder(tiny_checkpoint, device=device)
    with pytest.raises(InputError, match="device"):
        Family.load(str(tiny_checkpoint), device=device)
    with pytest.raises(InputError, match="device"):
        Family.chain(["a=b"], device=device)
    with pytest.raises(InputError, match="device"):
        run_job(JobSettings(str(tiny_checkpoint), (str(fasta),), str(tmp_path / "out"), device=device))


def assay(folder: Path) -> Path:
    path = folder / "assay.csv"
    path.write_text("mutant,mutated_sequence,DMS_score\nM1A,AKT,1\nK2A,MAT,2\nT3A,MKA,3\n")
    return path


@pytest.mark.parametrize("attention", ["flash_attention_2", "flash_attention_3", "nonsense"])
def test_an_attention_that_is_not_installed_is_one_sentence(
    run: Callable[..., str], tiny_checkpoint: Path, fasta: Path, tmp_path: Path, attention: str
) -> None:
    arguments = ("--model", tiny_checkpoint, "--input", fasta, "--output", tmp_path / "out", "--device", "cpu")
    assert attention.replace("_attention_", "")[:5] in run(
        embed_command.main, *arguments, "--attn-implementation", attention
    )
    with pytest.raises(InputError, match=attention):
        Embedder(tiny_checkpoint, device="cpu", attn_implementation=attention).embed(["MKT"])


def test_no_positions_are_a_sentence_before_anything_is_read(
    run: Callable[..., str], tiny_checkpoint: Path, fasta: Path, tmp_path: Path
) -> None:
    arguments = ("--model", tiny_checkpoint, "--input", fasta, "--output", tmp_path / "out")
    sentence = "none are named: give --positions, or a table with --positions-column"
    assert sentence in run(embed_command.main, *arguments, "--pooling", "positions")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="none are named"):
        JobSettings("m", ("i",), "o", EmbeddingOptions(pooling="positions"))
    with pytest.raises(InputError, match="no positions asked for"):
        Embedder(tiny_checkpoint, pooling="positions", device="cpu").embed(["MKT"])


def test_a_job_that_could_embed_nothing_fails_with_the_reasons(
    run: Callable[..., str], tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bad.fasta"
    path.write_text(">a\nMK*T\n>b\nMK*T\n>\n\n>d\nM1\n>e\nM2\n>f\nMKT?\n")
    arguments = ["--model", tiny_checkpoint, "--input", path, "--output", tmp_path / "out", "--device", "cpu"]
    said = run(embed_command.main, *arguments)
    assert said == (
        f"rd-hf embed: error: none of the 6 records could be embedded, so that {tmp_path / 'out'} is empty: record 1 "
        "(a): stop codon '*' inside the sequence (position 3 of 4); record 3 (no id): no residues; record 4 (d): '1' "
        f"is not a residue (position 2 of 2); {tmp_path / 'out' / '_rejects.tsv'} has the reason of each\n"
    )
    assert run(embed_command.main, *arguments) == said, "and so does the same command again"
    path.write_text(">a\nMK*T\n>b\nMKT\n")
    assert embed_command.main([str(each) for each in (*arguments[:5], tmp_path / "some")]) == 0
    said = capsys.readouterr().out
    assert f"what was rejected is in {tmp_path / 'some' / '_rejects.tsv'}, first record 1 (a): stop codon" in said
