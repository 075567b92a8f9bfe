"""The card: what it says of licences and backbones, that nothing in a config breaks it, and that edits are kept."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi, ModelCard, constants

from rd_hf.commands.push import main as push_command
from rd_hf.hub import push_folder, save_checkpoint
from rd_hf.hub.card import GENERATED, is_generated, render_card
from rd_hf.hub.checkpoint import make_card, write_card
from rd_hf.hub.push import plan_push
from tests.conftest import random_model
from tests.embedding.test_folder import snapshot
from tests.hub.server import FakeHub

PRETRAINING = {
    "sequences": 9, "residues_seen": 90, "longest_crop": 256, "validation_loss": 2.6, "unigram_entropy": 2.9,
}  # fmt: skip


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(random_model([32, 48]), tmp_path_factory.mktemp("card") / "model", backbones=True)


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A checkpoint of one's own to spoil."""
    return Path(shutil.copytree(saved, tmp_path / "model"))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with FakeHub() as hub:
        monkeypatch.setattr("rd_hf.hub.push.HfApi", lambda token: HfApi(endpoint=hub.endpoint, token=hub.token))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        yield hub


def edit(path: Path) -> str:
    """What a user changes: front matter, a paragraph, a figure in a table."""
    text = path.read_text()
    text = text.replace("license: unknown\n", "license: apache-2.0\nlanguage: en\n")
    text = text.replace("## Use", "Mine.\n\n## Use")
    path.write_text(text)
    return text


# -- whose text it is --------------------------------------------------------------------------------------------


def test_a_generated_card_is_known_for_whichever_repo_and_an_edited_one_is_not(folder: Path) -> None:
    text = (folder / "README.md").read_text()
    assert is_generated(text)
    assert is_generated(make_card(folder, repo_id="me/other")[0])
    assert is_generated(text.replace("\n", "\r\n"))
    # As transformers' own push_to_hub sets the name.
    assert is_generated(text.replace("your-name/model", "me/again"))
    assert not is_generated(edit(folder / "README.md"))
    assert not is_generated(text.replace(" (text ", " (text 0"))
    assert not is_generated("# Mine\n")


def test_a_dry_run_changes_nothing_and_shows_the_card_with_the_edits(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(folder / "README.md")
    before = snapshot(folder)
    assert push_command(["--model", str(folder), "--repo-id", "me/nested", "--dry-run", "--license", "mit"]) == 0
    said = capsys.readouterr().out
    assert snapshot(folder) == before
    for words in ("license: apache-2.0\nlanguage: en", "Mine.", 'name = "me/nested"', "# nested\n"):
        assert words in said
    assert "README.md has edits (or is an earlier version's) and is kept with them; move it elsewhere" in said


@pytest.mark.parametrize("kind", ["generated", "edited", "own", "absent"])
def test_a_push_that_fails_changes_nothing(
    folder: Path, kind: str, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder / "README.md"
    if kind == "edited":
        edit(path)
    if kind == "own":
        path.write_text("# Mine\n")
    if kind == "absent":
        path.unlink()
    before = snapshot(folder)
    wrong = HfApi(endpoint=hub.endpoint, token="hf_wrong")
    monkeypatch.setattr("rd_hf.hub.push.HfApi", lambda token: wrong)
    with pytest.raises(OSError, match="401"):
        push_folder(folder, "me/nested")
    assert snapshot(folder) == before


@pytest.mark.parametrize("kind", ["generated", "edited", "own"])
def test_what_arrives_is_the_card_that_the_dry_run_showed(folder: Path, kind: str, hub: FakeHub) -> None:
    if kind == "edited":
        edit(folder / "README.md")
    if kind == "own":
        (folder / "README.md").write_text("---\nlicense: mit\n---\n# Mine\n")
    shown = plan_push(folder, "me/nested").card
    before = snapshot(folder)
    push_folder(folder, "me/nested", check=False)
    repo = hub.repos["me/nested"]
    arrived = repo.commits[repo.refs["main"]]
    assert arrived["README.md"].decode() == shown
    assert ("your-name" in shown, "Mine" in shown) == (False, kind != "generated")
    assert set(arrived) - {".gitattributes"} == set(plan_push(folder, "me/nested").files)
    assert snapshot(folder) == before


def test_saving_again_keeps_edits_and_says_so(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    edited = edit(folder / "README.md")
    save_checkpoint(random_model([32, 48], seed=1), folder, backbones=True)
    assert (folder / "README.md").read_text() == edited
    assert "README.md has edits" in caplog.text
    (folder / "README.md").unlink()
    assert GENERATED in write_card(folder)


def test_a_repo_that_is_there_keeps_its_visibility_or_the_push_is_refused(folder: Path, hub: FakeHub) -> None:
    """Asked for a private repo, nothing is put into a public one."""
    push_folder(folder, "me/nested", check=False)
    before = dict(hub.repos["me/nested"].refs)
    with pytest.raises(ValueError, match=r"me/nested is there already and is public: .* nothing was pushed"):
        push_folder(folder, "me/nested", check=False, private=True)
    assert hub.repos["me/nested"].refs == before


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"---\nlicense: [mit\n---\n# Mine\n", "what stands between its first two --- is no YAML"),
        (b"---\n- a\n- list\n---\n", "what stands between its first two --- is no YAML"),
        (b"---\nx: " + b"[" * 1200 + b"\n---\n", "what stands between its first two --- is no YAML"),
        ("# Modèle\n".encode("latin-1"), "is no text in UTF-8"),
    ],
)
def test_a_card_that_cannot_be_read_is_named(
    folder: Path, content: bytes, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "README.md").write_bytes(content)
    assert push_command(["--model", str(folder), "--repo-id", "me/nested", "--dry-run"]) == 1
    complaint = capsys.readouterr().err
    assert f"README.md{':' if 'YAML' in said else ''} {said}" in complaint
    assert complaint.count("\n") == 1


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("config.json", lambda f: f["levels"][0].update(pretraining="long ago")),
        ("config.json", lambda f: f["levels"][0].update(pretraining={**PRETRAINING, "sequences": "many"})),
        ("config.json", lambda f: f.update(bases={"num_sequences": 3, "num_residues": "many"})),
        ("config.json", lambda f: f.update(bases={"num_sequences": 3, "data": 5})),
        ("fit_report.json", lambda f: f.append({"level": "L1", "training": {"r2": "good"}})),
        ("fit_report.json", lambda f: f.append("L1")),
    ],
)
def test_a_config_or_report_of_which_no_card_can_be_made_is_named(
    folder: Path, file: str, change: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    path = folder / file
    fields = json.loads(path.read_text()) if path.exists() else []
    change(fields)
    path.write_text(json.dumps(fields))
    assert push_command(["--model", str(folder), "--repo-id", "me/nested", "--dry-run"]) == 1
    complaint = capsys.readouterr().err
    assert f"no card can be made of {folder / 'config.json'} and {folder / 'fit_report.json'}" in complaint
    assert complaint.count("\n") == 1


# -- what it says ------------------------------------------------------------------------------------------------


def card_of(levels: list[dict[str, Any]], full: bool = True, **settings: Any) -> ModelCard:
    config = random_model([32, 48, 64][: len(levels)]).config
    for entry, more in zip(config.levels, levels, strict=True):
        entry.update(more)
    return ModelCard(render_card(config, repo_id="me/x", full=full, **settings))


@pytest.mark.parametrize(
    ("licenses", "full", "license"),
    [
        (("mit", "mit"), True, "mit"),
        (("mit", None), True, "unknown"),
        ((None, None), True, "unknown"),
        (("mit", "cambrian"), True, "other"),
        (("apache-2.0", "apache-2.0"), True, "other"),
        (("mit", None), False, "mit"),
    ],
)
def test_the_licence_of_a_repo_is_that_of_all_that_it_holds(
    licenses: tuple[str | None, ...], full: bool, license: str
) -> None:
    card = card_of([{"license": one} for one in licenses], full)
    assert card.data.license == license
    assert card.data.license_name == ("mixed" if license == "other" else None)
    for level, one in zip(("L0", "L1"), licenses, strict=True):
        assert f"| {level} | in this repo | {one or 'not stated'} |" in card.text


MEAN = [
    "mit | yours | x",
    "mit\n\n# Evil\n",
    "<script>alert(1)</script>",
    "![x](https://evil/x.png)",
    "{{ 7 * 7 }}",
    'a: "b"\n---\n',
    "x" * 9999,
    "\x1b[31m\u202e",
]


@pytest.mark.parametrize("text", MEAN)
def test_no_text_of_others_breaks_out_of_its_place(text: str) -> None:
    """Of a licence, a file of the training data, a commit, statistics, a recipe."""

    def lines(text: str) -> tuple[int, list[int], dict[str, Any]]:
        card = card_of([{}, {"license": text, "repo_id": "lab/x", "revision": text}], full=False)
        tables = [line.replace(r"\|", "").count("|") for line in card.text.splitlines() if line.startswith("|")]
        assert "<script>" not in card.text
        assert not re.search(r"[^\\]\]\(https://evil", card.text)
        assert "\u202e" not in card.text
        assert len(card.text) < 20_000
        return len(card.text.splitlines()), tables, card.data.to_dict()

    assert lines(text) == lines("plain")
    config = random_model([32, 48]).config
    render = partial(render_card, config, repo_id="me/x", full=True)
    counts = []
    for value in ("plain", text):
        recipe = dict.fromkeys(("num_sequences", "regression", "seed", "imported_from"), value)
        config.bases = {**recipe, "data": [value], "fitted_on": {value: "raw"}}
        config.whitening = {"weights": [1.0, 1.0], "of": value}
        card = render(report=[{"level": "L1", "components": value, "selected_components": value}])
        assert "<script>" not in card.replace("`<script>", "")
        counts.append(card.count("\n"))
    assert counts[0] == counts[1]


@pytest.mark.parametrize("name", ['a "quoted" one', "two\nlines", "модель"])
def test_a_folders_name_does_not_break_the_example(saved: Path, tmp_path: Path, name: str) -> None:
    folder = Path(shutil.copytree(saved, tmp_path / name))
    (folder / "README.md").unlink()
    code = write_card(folder).split("```python\n")[1].split("```")[0]
    compile(code, "the card's example", "exec")
    assert is_generated((folder / "README.md").read_text())


def test_only_the_levels_that_were_trained_from_scratch_are_called_so() -> None:
    mixed = card_of([{"pretraining": PRETRAINING}, {"pretraining": PRETRAINING}, {"repo_id": "facebook/x"}]).text
    assert "L0, L1 of these levels do not have ESM-2's own weights: their backbones are small models" in mixed
    assert "These are not ESM-2's own weights" not in mixed
    assert "The backbones of L0, L1 were trained on crops of up to 256 tokens" in mixed
    assert "- ESM-2 backbones were trained on sequences of up to 1,022 residues" in mixed
    whole = card_of([{"pretraining": PRETRAINING}] * 2).text
    assert "These are not ESM-2's own weights: they are small models" in whole
    assert "- Backbones were trained on crops of up to 256 tokens" in whole
    assert "trained on sequences of up to 1,022" not in whole
    other = card_of([{"pretraining": PRETRAINING}, {"pretraining": {**PRETRAINING, "longest_crop": 512}}]).text
    assert "The backbones of L1 were trained on crops of up to 512 tokens" in other
