"""`rd-hf`: one name for all commands, quick to answer, the same manners everywhere."""

from __future__ import annotations

import ast
import importlib
import json
import logging
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import rd_hf
from rd_hf.__main__ import COMMANDS, STUDIES, main
from rd_hf.commands import fit, info
from rd_hf.commands._arguments import command
from rd_hf.commands.optional import OPTIONAL
from rd_hf.model.configuration_rd_esm import RD_HF_VERSION, RDEsmConfig
from tests.conftest import EXAMPLE_FASTA, REPOSITORY, environment

HERE = sorted(COMMANDS)
# What makes a command slow to start.
HEAVY = {
    "torch",
    "transformers",
    "numpy",
    "pandas",
    "pyarrow",
    "datasets",
    "accelerate",
    "huggingface_hub",
    "argcomplete",
}


def ended(argv: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Run in this process: exit code, standard output, standard error."""
    try:
        code = main(argv)
    except SystemExit as stop:
        code = int(stop.code or 0)
    return code, *capsys.readouterr()


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = ended(["--help"], capsys)
    assert code == 0
    for name, (_, words) in COMMANDS.items():
        assert re.search(rf"^  {name} .*{re.escape(words)}$", out, re.MULTILINE), name
    assert {"fit", "embed", "info", "push", "import-published", "evaluate dms"} <= set(HERE)


def test_a_command_that_is_not_there_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = ended(["dream"], capsys)
    assert code == 2
    assert "there is no command 'dream'" in err


@pytest.mark.parametrize("study", STUDIES)
def test_a_study_that_was_a_command_says_where_it_runs(study: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = ended(["evaluate", study, "--model", "m"], capsys)
    assert code == 2
    module = importlib.import_module(f"studies.{study}")
    assert module.build_parser().prog in err


@pytest.mark.parametrize("arguments", [["--help"], ["fit", "--help"], ["evaluate", "--help"], ["--version"]])
def test_it_answers_at_once(arguments: list[str]) -> None:
    """Under 0.3 s: what counts is this process's own work (a machine that others share takes as long as it likes)."""
    code = (
        "import sys, resource\nfrom rd_hf.__main__ import main\n"
        "try: main(sys.argv[1:])\nexcept SystemExit: pass\n"
        "used = resource.getrusage(resource.RUSAGE_SELF)\n"
        "modules = {name.partition('.')[0] for name in sys.modules}\n"
        "print(used.ru_utime + used.ru_stime, *modules, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True, env=environment()
    )
    seconds, *modules = done.stderr.split()
    assert not HEAVY & set(modules)
    assert float(seconds) < 0.3


@pytest.mark.parametrize("name", HERE)
def test_each_command_teaches_with_an_example_of_its_own(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = ended([*name.split(), "--help"], capsys)
    assert code == 0
    assert out.startswith(f"usage: rd-hf {name} ")
    description = out.partition("\n\n")[2]
    assert re.search(rf"^ +(\S.* )?rd-hf {name} \S", description, re.MULTILINE), "an example a user can type"
    assert "--quiet" in out
    assert "--verbose" in out


@pytest.mark.parametrize("name", HERE)
def test_examples_name_arguments_that_exist(name: str) -> None:
    """Every option in a command's own examples is one of its parser."""
    module = importlib.import_module(COMMANDS[name][0])
    options = {option for action in module.build_parser()._actions for option in action.option_strings}
    words = (ast.get_docstring(ast.parse(Path(module.__file__ or "").read_text())) or "").replace("\\\n", " ")
    for line in re.findall(rf"(?:rd-hf|rd_hf) {name} (.*)", words):
        # What follows two spaces is a remark.
        for option in re.findall(r"(?<!\S)--[a-z-]+", line.partition("  ")[0]):
            assert option in options, f"rd-hf {name}: {option}"


@pytest.mark.parametrize("words", [["help", "embed"], ["embed", "help"], ["embed", "--model", "m", "-h"]])
def test_help_is_asked_for_in_any_order(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(words, capsys) == ended(["embed", "--help"], capsys)


def test_help_alone_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(["help"], capsys) == ended(["--help"], capsys)
    assert ended(["help", "evaluate"], capsys) == ended(["evaluate", "--help"], capsys)


@pytest.mark.parametrize("name", HERE)
def test_no_flag_is_known_by_its_beginning(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One that is added later would change what a script means."""
    code, out, err = ended([*name.split(), "--verbos"], capsys)
    assert (code, out) == (2, "")
    assert "there is no flag --verbos: did you mean --verbose?" in err
    assert len(err.splitlines()) == 2


@pytest.mark.parametrize("name", HERE)
def test_every_command_runs_as_a_module_too(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["module", "--help"])
    with pytest.raises(SystemExit, match=r"^0$"):
        runpy.run_path(str(REPOSITORY / f"{COMMANDS[name][0].replace('.', '/')}.py"), run_name="__main__")
    assert capsys.readouterr().out == ended([*name.split(), "--help"], capsys)[1]


def test_a_wrong_input_is_one_sentence_that_begins_with_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = ended(["embed", "--model", "nowhere/", "--input", "x.fa", "--output", str(tmp_path / "o")], capsys)
    assert (code, out) == (1, "")
    assert err.startswith("rd-hf embed: error: ")
    assert err.count("\n") == 1


def test_interrupted_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("rd_hf.commands.fit.main", command(fit.build_parser, stop))
    code, _, err = ended(["fit", "--config", "c", "--input", "d", "--output", "o"], capsys)
    assert code == 130
    assert err == "rd-hf fit: interrupted; give the same command again to go on\n"


def test_verbose_shows_the_error_in_full(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, _, err = ended(["info", str(tmp_path), "--verbose"], capsys)
    assert "Traceback" in err
    assert f"rd_hf {rd_hf.__version__}" in err
    assert err.splitlines()[-1].startswith("rd-hf info: error: ")


def test_quiet_prints_nothing(tmp_path: Path) -> None:
    fasta = tmp_path / "one.fasta"
    fasta.write_text(">a\nMKTAYIAKQR\n")
    model = REPOSITORY / "hub_configs" / "rd-esm2-mini"
    command = [sys.executable, "-m", "rd_hf", "embed", "--quiet", "--model", model, "--input", fasta]
    done = subprocess.run(
        [*command, "--output", tmp_path / "out"], capture_output=True, text=True, check=False, env=environment()
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (tmp_path / "out" / "_manifest.json").exists()


def test_quiet_keeps_a_result_that_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was asked for on standard output comes, and nothing else."""
    model = str(REPOSITORY / "hub_configs" / "rd-esm2-mini")
    for words in (["info", model, "--json"], ["info", model], ["push", "-m", model, "--repo-id", "me/x", "--dry-run"]):
        loud, quiet = ended(words, capsys), ended([*words, "--quiet"], capsys)
        assert quiet == loud, words
        assert loud[:2] != (0, ""), words
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("rd_hf.hub.plan.measured_flops", lambda *_, **__: 1e12)
    plan = ["release", "--config", "rd-esm2-35M", "--repo-id", "me/x", "--plan", "--json", "--num-sequences", "20"]
    code, out, _ = ended([*plan, "--quiet"], capsys)
    assert (code, json.loads(out)["verdict"]) == (0, "fits")


def test_a_quiet_fit_draws_no_bars(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = str(REPOSITORY / "hub_configs" / "rd-esm2-mini")
    words = ["fit", "--config", model, "-i", str(EXAMPLE_FASTA), "--num-sequences", "12", "--max-length", "40"]
    assert ended([*words, "-o", str(tmp_path / "quiet"), "--quiet"], capsys) == (0, "", "")
    assert "fitting: 100%" in ended([*words, "-o", str(tmp_path / "loud")], capsys)[2]


def test_a_quiet_evaluation_draws_no_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are drawn on a terminal alone, which a test has none of: what decides it is looked at."""
    from rd_hf.evaluation.progress import progress_bar

    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    assert not progress_bar(range(3), leave=False).disable
    monkeypatch.setenv("TQDM_DISABLE", "1")
    assert progress_bar(range(3)).disable


def test_verbose_speaks_of_this_project_and_no_library_does(tmp_path: Path) -> None:
    fasta = tmp_path / "one.fasta"
    fasta.write_text(">a\nMKTAYIAKQR\n")
    model = REPOSITORY / "hub_configs" / "rd-esm2-mini"
    command = [sys.executable, "-m", "rd_hf", "embed", "--verbose", "-m", model, "-i", fasta, "-o", tmp_path / "out"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment())
    assert all(line.startswith("rd-hf: ") for line in done.stderr.splitlines()), done.stderr
    assert f"model {model}, inputs ['{fasta}']" in done.stderr
    assert f"{model} loaded up to level 2.7M: float32 on " in done.stderr


def test_verbose_says_no_token(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["push", "--verbose", "-m", str(tmp_path), "--repo-id", "me/x", "--token", "hf_secret"]
    code, out, err = ended(words, capsys)
    assert code == 1
    assert "repo_id me/x" in err
    assert "hf_secret" not in out + err


@pytest.mark.parametrize("how", ["--quiet", "--verbose"])
def test_a_command_called_from_a_program_leaves_it_as_loud_as_it_was(
    how: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def loudness() -> tuple[dict[str, str], list[int]]:
        return dict(os.environ), [logging.getLogger(name).level for name in ("transformers", "datasets")]

    before = loudness()
    ended(["info", str(tmp_path), how], capsys)
    assert loudness() == before


def test_a_missing_library_names_the_extra(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def needs(module: str) -> None:
        raise ModuleNotFoundError(f"No module named {module!r}", name=module)

    def info_needs(module: str) -> None:
        monkeypatch.setattr("rd_hf.commands.info.main", command(info.build_parser, lambda _: needs(module)))

    info_needs("matplotlib.figure")
    assert ended(["info", "x"], capsys)[2].endswith(
        'this needs matplotlib, which is not installed: pip install "rd_hf[plots]"\n'
    )
    # What no extra brings is a fault of ours, and shows as one.
    info_needs("rd_hf.nothing")
    with pytest.raises(ModuleNotFoundError):
        main(["info", "x"])


def test_extras_are_those_of_pyproject() -> None:
    text = (REPOSITORY / "pyproject.toml").read_text()
    for package, extra in OPTIONAL.values():
        line = re.search(rf"^{extra} = \[(.*)\]$", text, re.MULTILINE)
        assert line, extra
        assert re.search(rf'"{package}(\[\w+\])?>=', line[1]), package


def test_the_shell_completes(tmp_path: Path) -> None:
    pytest.importorskip("argcomplete")

    def answers(line: str) -> set[str]:
        found = tmp_path / "answers"
        shell = {"_ARGCOMPLETE": "1", "_ARGCOMPLETE_STDOUT_FILENAME": str(found), "_ARGCOMPLETE_IFS": "\n"}
        shell |= {"COMP_LINE": line, "COMP_POINT": str(len(line)), "_ARGCOMPLETE_SUPPRESS_SPACE": "1"}
        subprocess.run([sys.executable, "-m", "rd_hf"], check=True, env={**environment(), **shell})
        return {word.strip() for word in found.read_text().splitlines()}

    assert {"embed", "evaluate", "info"} <= answers("rd-hf e") | answers("rd-hf i")
    assert {"dms", "residues", "homology"} <= answers("rd-hf evaluate ")
    assert {"--group-tokens"} == answers("rd-hf embed --gro")
    assert set() == answers("rd-hf embed --window"), "a former name"
    # Values: names of families and folders, levels of the model or folder that was typed, choices.
    mini = "hub_configs/rd-esm2-mini"
    assert answers("rd-hf fit --config rd-esm2-3B") == {"rd-esm2-3B", "rd-esm2-3B-lossless"}
    assert mini in answers("rd-hf fit --config hub_configs/rd-esm2-m")
    assert answers("rd-hf embed --model rd-esm2-m") == {"rd-esm2-mini"}
    assert answers(f"rd-hf embed -m {mini} --level ") == {"0.3M", "1.2M", "2.7M"}
    folder = tmp_path / "embeddings"
    folder.mkdir()
    (folder / "_manifest.json").write_text('{"model": {"nested_dims": {"S": 1, "L": 2}}}')
    assert answers(f"rd-hf map {folder} --level ") == {"S", "L"}
    assert answers(f"rd-hf search {folder} --shortlist-level ") == {"S", "L"}
    assert answers(f"rd-hf map {tmp_path}/e") == {str(folder)}
    assert answers("rd-hf embed --pooling m") == {"mean", "max"}
    assert answers("rd-hf search --device cu") == {"cuda", "cuda:0", "cuda:1"}
    assert {"model", "none"} <= answers("rd-hf embed --whiten ")
    assert answers("rd-hf search --whiten ") == {"auto", "database", "model", "none"}


def test_how_the_shell_completes_is_said_where_it_is_installed(capsys: pytest.CaptureFixture[str]) -> None:
    assert 'eval "$(register-python-argcomplete rd-hf)"' in ended(["--help"], capsys)[1]


def test_one_version_everywhere(tmp_path: Path) -> None:
    assert rd_hf.__version__ == RD_HF_VERSION
    assert 'version = { attr = "rd_hf.version.__version__" }' in (REPOSITORY / "pyproject.toml").read_text()
    changes = re.search(r"^## \[(\d\S*)\]", (REPOSITORY / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert changes
    assert changes[1] == rd_hf.__version__
    assert f"version: {rd_hf.__version__}" in (REPOSITORY / "CITATION.cff").read_text()


def test_what_is_written_says_which_version_wrote_it(tmp_path: Path) -> None:
    before = RDEsmConfig.from_pretrained(REPOSITORY / "tests" / "model" / "data" / "version_0_1_0")
    assert before.rd_hf_version is None, "written before versions were recorded, and read all the same"
    before.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["rd_hf_version"] == rd_hf.__version__
    assert RDEsmConfig.from_pretrained(tmp_path).rd_hf_version == rd_hf.__version__
    # One that a later version wrote and this one saves again is this one's.
    later = RDEsmConfig.from_pretrained(tmp_path, rd_hf_version="9.0")
    later.save_pretrained(tmp_path)
    assert RDEsmConfig.from_pretrained(tmp_path).rd_hf_version == rd_hf.__version__


def test_public_names_are_there_and_cost_nothing_until_used() -> None:
    code = "import sys, rd_hf; print(len({'torch', 'transformers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment())
    assert done.stdout.strip() == "0"
    for name in rd_hf.__all__:
        assert getattr(rd_hf, name) is not None
    assert dir(rd_hf) == sorted(rd_hf.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        rd_hf.nothing  # noqa: B018


EVERYWHERE = """
import importlib
{first}
import rd_hf
names = dict.fromkeys(rd_hf.__all__)
found = {{name: getattr(rd_hf, name) for name in names}}
star = {{}}
exec("from rd_hf import *", star)
for name in names:
    given = {{}}
    exec(f"from rd_hf import {{name}}", given)
    assert found[name] is getattr(rd_hf, name) is star[name] is given[name], name
    assert isinstance(found[name], str if name == "__version__" else object), name
    assert name == "__version__" or callable(found[name]), name
import rd_hf.search
from rd_hf import search
assert rd_hf.search is search is importlib.import_module("rd_hf.search")
assert rd_hf.run_search is rd_hf.search.run_search is found["run_search"]
"""


@pytest.mark.parametrize("first", ["", "import rd_hf.search", "from rd_hf import search", "import rd_hf.search.job"])
def test_a_public_name_is_one_thing_however_it_is_imported(first: str) -> None:
    """By attribute, by name and by star, the first time and the second, whatever was imported before."""
    code = EVERYWHERE.format(first=first)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment())
    assert done.returncode == 0, done.stderr


def test_no_public_name_is_a_modules() -> None:
    """Importing a module makes it an attribute of its package: the name would be two things."""
    rooms = ("embedding", "fitting", "hub", "search")
    for package in [rd_hf, *(importlib.import_module(f"rd_hf.{room}") for room in rooms)]:
        modules = {path.stem for path in Path(str(package.__file__)).parent.iterdir()}
        assert not modules & set(package.__all__), package.__name__


def test_run_search_is_known_by_its_former_name_for_a_release() -> None:
    with pytest.warns(FutureWarning, match=r"rd_hf.search.search is called run_search now"):
        assert rd_hf.search.search is rd_hf.run_search
    with pytest.warns(FutureWarning, match="run_search"), pytest.raises(AttributeError, match="device"):
        rd_hf.search(None)


def test_accelerate_launches_a_command(tmp_path: Path) -> None:
    model = REPOSITORY / "hub_configs" / "rd-esm2-mini"
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1"]
    few = ["--num-sequences", "12", "--max-length", "40"]
    done = subprocess.run(
        [*launch, "-m", "rd_hf", "fit", "--config", model, "--input", EXAMPLE_FASTA, "--output", tmp_path / "m", *few],
        capture_output=True,
        text=True,
        check=False,
        env=environment() | {"PATH": os.environ["PATH"]},
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "m" / "fit_report.json").exists()
