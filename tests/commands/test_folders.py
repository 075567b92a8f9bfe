"""Over all commands: foreign files are the same bytes after a run that is refused, fails, or ends in a subfolder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from studies import ablate, blocks, frontier

from rd_hf.commands import (
    embed,
    evaluate_dms,
    evaluate_residues,
    fit,
    import_published,
    train,
)
from tests.conftest import EXAMPLE_FASTA, REPOSITORY
from tests.embedding.test_folder import snapshot

ASSAY = REPOSITORY / "tests" / "evaluation" / "data" / "BCHB_CHLTE_Tsuboyama_2023_2KRU.csv"
FASTA = ">a\nMKTAYIAKQR\n>b\nMKTAYIAKQRQISFVK\n>bad\nMK*T\n"
Main = Callable[[list[str]], int | str | None]
# What each asks for beside --output.
COMMANDS: dict[str, tuple[Main, Sequence[str]]] = {
    "embed": (embed.main, ["--model", "MODEL", "--input", "FASTA"]),
    "fit": (fit.main, ["--config", "MODEL", "--input", str(EXAMPLE_FASTA), "--num-sequences", "30"]),
    "import": (import_published.main, ["--weights", "NOWHERE", "--level", "35M"]),
    "evaluate_dms": (evaluate_dms.main, ["--model", "MODEL", "--assays", str(ASSAY)]),
    "frontier": (frontier.main, ["--model", "MODEL", "--assays", str(ASSAY)]),
    "evaluate_residues": (evaluate_residues.main, ["--model", "MODEL", "--secondary-structure", "NOWHERE"]),
    "train": (train.main, ["--model", "MODEL", "--input", str(ASSAY), "--target", "DMS_score"]),
    "ablate": (ablate.main, ["--model", "MODEL", "--assays", str(ASSAY), "--input", str(EXAMPLE_FASTA)]),
    "blocks": (blocks.main, ["--model", "MODEL", "--secondary-structure", "NOWHERE"]),
}
# Names that some command writes, sweeps, reads or removes, beside any others.
TELLING = (
    *("config.json", "README.md", "vocab.txt", "model.safetensors", "model.fp16.safetensors", "fit_report.png"),
    *("manifest.json", "_manifest.json", "rejects.tsv", "embeddings-000000.parquet", "report.md", "results.parquet"),
    *(".job/lock", ".job/000000.json", ".job/rd_hf.json", ".fit/settings.json", ".fit/moments-0000-0000.safetensors"),
    *(".rd_hf/rd_hf.json", "cache/states-0.safetensors", "runs/0.parquet", "notes.tmp", ".notes.tmp", "cache.tmp/x"),
    *("training.json", "out_of_fold.parquet", "training_levels.png", ".train/rd_hf.json", ".train/lock"),
    *("modeling_rd_esm.py", "win_rates.png", "frontier.parquet", "blocks.parquet", "spectra.png", "proteins.tmp"),
)
NAMES = st.sampled_from(TELLING) | st.text(
    st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=20
)
FILES = st.dictionaries(
    NAMES.filter(lambda name: name not in (".", "..")),
    st.binary(max_size=40) | st.sampled_from([b"{}", b'{"model_type": "esm"}', b"PAR1", b"a\tb\n"]),
    min_size=1,
    max_size=6,
)


def fill(folder: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        path = folder / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        except OSError:  # a file where a folder is wanted, or a name that this disk does not take
            continue


def run(name: str, output: Path, model: Path, fasta: Path) -> int:
    main, arguments = COMMANDS[name]
    places = {"MODEL": str(model), "FASTA": str(fasta), "NOWHERE": str(fasta.parent / "nowhere")}
    status = main([*(places.get(argument, argument) for argument in arguments), "--output", str(output)])
    return 0 if status in (0, None) else 1


@pytest.mark.parametrize("name", COMMANDS)
def test_a_folder_of_foreign_files_is_refused_unchanged(name: str, tiny_checkpoint: Path) -> None:
    @settings(max_examples=25, deadline=None, derandomize=True)
    @given(FILES)
    def check(files: dict[str, bytes]) -> None:
        with TemporaryDirectory() as scratch:
            folder = Path(scratch) / "theirs"
            folder.mkdir()
            fill(folder, files)
            (Path(scratch) / "p.fasta").write_text(FASTA)
            before = snapshot(Path(scratch))
            if len(before) > 2:
                assert run(name, folder, tiny_checkpoint, Path(scratch) / "p.fasta") == 1
                assert snapshot(Path(scratch)) == before

    check()


@pytest.mark.parametrize(("name", "fails"), [("embed", False), ("embed", True), ("fit", False), ("import", True)])
def test_a_run_in_a_fresh_subfolder_changes_nothing_outside_it(
    name: str, fails: bool, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "theirs"
    fill(folder, dict.fromkeys(TELLING, b"{}"))
    fasta = tmp_path / "p.fasta"
    if fails:
        # A gzip that breaks off: told from the first byte, and of no use.
        fasta.write_bytes(b"\x1f\x8b\x08\x00broken")
    else:
        fasta.write_text(FASTA)
    before = snapshot(tmp_path)
    status = run(name, folder / "fresh" / "out", tiny_checkpoint, fasta)
    assert status == int(fails)
    after = snapshot(tmp_path)
    outside = {key: content for key, content in after.items() if not key.startswith(str(Path("theirs") / "fresh"))}
    assert outside == before
    assert fails or len(after) > len(before) + 3
