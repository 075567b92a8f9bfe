"""What a user's processes do against the test Hub; run as `python client.py STEP JSON`, prints JSON.

Each step stands for a fresh process with its own HF_HOME. Steps after the push run without the package: only
what was pushed is there.
"""

from __future__ import annotations

import json
import logging
import os
import random
import re
import sys
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

STEP, ARGUMENTS = sys.argv[1], json.loads(sys.argv[2])
if not ARGUMENTS.get("package"):
    sys.modules["rd_hf"] = None  # type: ignore[assignment]  # import rd_hf fails, installed or not

import numpy as np  # noqa: E402
import torch  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

torch.set_num_threads(1)
# Every machine that this process, its threads included, looks for or connects to.
REACHED: set[str] = set()


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "socket.getaddrinfo":
        REACHED.add(str(arguments[0]))
    elif event == "socket.connect" and isinstance(arguments[1], tuple):
        REACHED.add(str(arguments[1][0]))


sys.addaudithook(_watch)
PROTEINS = ["MKTAYIAKQR", "GSHMAS"]
IDS = torch.tensor([[0, 20, 15, 11, 5, 19, 32, 5, 15, 2], [0, 20, 15, 11, 5, 2, 1, 1, 1, 1]])


def mark(name: str) -> None:
    """Put a mark into the server's log."""
    urllib.request.urlopen(f"{os.environ['HF_ENDPOINT']}/mark/{name}").read()


def output(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        return model(IDS, IDS.ne(1).long()).last_hidden_state


def load(name: str, **settings: Any) -> Any:
    from transformers import AutoModel

    return AutoModel.from_pretrained(name, trust_remote_code=True, **settings)


def backbones_held(model: Any) -> list[int]:
    """Widths of the backbones in memory."""
    return [module.config.hidden_size for module in model.modules() if type(module).__name__ == "EsmModel"]


def message_of(action: Any, *arguments: Any, **settings: Any) -> str:
    """Type and text of the error that an action raises."""
    try:
        action(*arguments, **settings)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def push() -> dict[str, Any]:
    """Fit (here: draw) bases for published backbones, save, and push with the command, in every way it offers."""
    from rd_hf.hub import load_family, push_model, save_checkpoint
    from rd_hf.model.bases_rd_esm import RDEsmReadout
    from rd_hf.model.modeling_rd_esm import RDEsmModel

    work = Path(ARGUMENTS["work"])
    mark("family")
    model = load_family(ARGUMENTS["config"])
    mark("family-loaded")
    torch.manual_seed(1)
    model.config.readout = {"layers": [0, 1]}
    model.readout = RDEsmReadout(
        [0, 1], *list(ARGUMENTS["widths"].values())[:0:-1], model.config.residual_directions[-1]
    )
    for buffer in (*model.projections.buffers(), *model.readout.buffers()):
        buffer.copy_(torch.randn_like(buffer) / buffer.shape[0] ** 0.5)
    model.config.bases = {"regression": "pcr", "num_sequences": 90, "seed": 0, "data": ["agemagician/uniref50"]}
    folder = save_checkpoint(model, work / "model", backbones=False)
    (folder / "fit_report.json").write_text("[]\n")
    (folder / "fit_report.png").write_bytes(b"\x89PNG picture")
    (folder / "notes.txt").write_text("stays at home")
    near = RDEsmModel.from_pretrained(folder, one_pass=True)
    save_file({"output": output(model), "one_pass": output(near)}, str(work / "expected.safetensors"))
    found: dict[str, Any] = {"revisions": [entry["revision"] for entry in model.config.levels]}

    def command(*flags: str) -> str:
        import contextlib
        import io

        from rd_hf.commands.push import main

        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            assert main(["--model", str(folder), *flags]) == 0
        return said.getvalue()

    mark("dry")
    found["dry"] = command("--repo-id", "me/nested", "--dry-run")
    mark("dry-done")
    found["pushed"] = command("--repo-id", "me/nested")
    found["private"] = command("--repo-id", "me/secret", "--private", "--no-check")
    found["branch"] = command("--repo-id", "me/nested", "--branch", "trial", "--no-check")
    found["pull"] = command("--repo-id", "me/nested", "--create-pr", "--check-level", "L1")
    # The other form replaces the first: none of its files may stay.
    save_checkpoint(model, work / "full", backbones=True, max_shard_size=ARGUMENTS["shard"])
    result = push_model(model, "me/full", backbones=False)
    found["model"] = [result.revision, result.checked]
    result = push_model(model, "me/full", backbones=True, max_shard_size=ARGUMENTS["shard"], check_level="L0")
    found["full"] = [result.revision, result.checked]
    found["lossless"] = push_lossless(model.config.levels, work)
    return found


def push_lossless(levels: list[dict[str, Any]], work: Path) -> bool:
    """All directions of the same backbones, with statistics to whiten by; whether it arrived as it was."""
    from rd_hf.bases.whitening import fit_whitening, moments_of_rows
    from rd_hf.embedding import Embedder
    from rd_hf.fitting import install_whitening
    from rd_hf.hub import load_family, push_model, save_checkpoint
    from rd_hf.model.configuration_rd_esm import RDEsmConfig

    widths = [entry["backbone"]["hidden_size"] for entry in levels]
    config = RDEsmConfig(levels=levels, residual_directions=widths[1:], backbones_in_checkpoint=False)
    model = load_family(config)
    torch.manual_seed(2)
    for buffer in model.projections.buffers():
        buffer.copy_(torch.randn_like(buffer) / buffer.shape[0] ** 0.5)
    rows = torch.randn(500, sum(widths), dtype=torch.float64) @ torch.randn(sum(widths), sum(widths)).double()
    weights = [0.5 + place for place in range(len(widths))]
    install_whitening(model, fit_whitening(moments_of_rows(rows, widths), weights), of="proteins")
    folder = save_checkpoint(model, work / "lossless", backbones=False)
    with torch.inference_mode():
        result = model(IDS)
    expected = {"whitened": result.nested(config.level_names[-1], whiten=True)}
    # Sorted, so that each level is loaded once.
    for width in sorted(random.Random(0).sample(range(1, sum(widths)), 5) + list(config.nested_dims.values())):
        embedder = Embedder(folder, width=width)
        # One at a time, as sentence-transformers is asked to: a batch's padding changes last digits.
        means = [embedder.embed([protein])["embedding"][0] for protein in PROTEINS]
        expected[f"means {width}"] = torch.from_numpy(np.stack(means))
    save_file(expected, str(work / "lossless.safetensors"))
    return push_model(model, "me/lossless", backbones=False).checked is not None


def use() -> dict[str, Any]:
    """A new user: nothing cached, no package. Loads everything, level by level, and through the neighbours."""
    heard: list[str] = []

    class Ear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.levelno >= logging.WARNING:
                heard.append(record.getMessage())

    import transformers

    transformers.utils.logging.get_logger()  # configures the library's root logger
    logging.getLogger("transformers").addHandler(Ear())
    expected = load_file(ARGUMENTS["expected"])["output"]
    found: dict[str, Any] = {"importable": message_of(__import__, "rd_hf")}
    mark("all")
    model = load("me/nested")
    mark("all-loaded")
    found["equal"] = torch.equal(output(model), expected)
    for repo in ("me/nested", "me/full"):
        mark(f"{repo}-one-pass")
        near = load(
            repo, one_pass=True, level="L1", cache_dir=os.path.join(ARGUMENTS["work"], f"cache-{repo[3:]}-near")
        )
        mark(f"{repo}-one-pass-loaded")
        read_out = load_file(ARGUMENTS["expected"])["one_pass"][..., : ARGUMENTS["widths"]["L1"]]
        found[f"{repo}-one-pass"] = [torch.equal(output(near), read_out), backbones_held(near)]
        for level, width in ARGUMENTS["widths"].items():
            # An empty cache each time, so that what is asked for is what is needed.
            mark(f"{repo}-{level}")
            small = load(repo, level=level, cache_dir=os.path.join(ARGUMENTS["work"], f"cache-{repo[3:]}-{level}"))
            mark(f"{repo}-{level}-loaded")
            found[f"{repo}-{level}"] = [
                torch.equal(output(small), expected[..., :width]),
                len(small.backbones),
                list(small.config.nested_dims),
            ]
    whitened = load_file(str(Path(ARGUMENTS["expected"]).with_name("lossless.safetensors")))["whitened"]
    for level in ARGUMENTS["widths"]:
        lossless = load("me/lossless", level=level)
        with torch.inference_mode():
            part = lossless(IDS).nested(level, whiten=True)
        found[f"whitened-{level}"] = torch.equal(part, whitened[..., : part.shape[-1]])
    found["other_dtype"] = str(load("me/nested", dtype=torch.bfloat16).dtype)
    found["attention"] = load("me/nested", attn_implementation="eager").backbones[0].config._attn_implementation
    # The library says of all remote code, on first download, that it is new.
    found["heard"] = [text for text in heard if "new version of the following files" not in text]
    # Pushing on from here needs no package either.
    mark("push-on")
    model.push_to_hub("me/again", token=ARGUMENTS["token"])
    return found


def neighbours() -> dict[str, Any]:
    """sentence-transformers, a pipeline, PEFT, and the code on the card."""
    from transformers import AutoTokenizer, pipeline

    found: dict[str, Any] = {}
    model = load("me/nested")
    tokenizer = AutoTokenizer.from_pretrained("me/nested", trust_remote_code=True)
    found["tokenizer"] = tokenizer("MKTAYIAKQR")["input_ids"]

    from sentence_transformers import SentenceTransformer

    proteins = PROTEINS
    wide = SentenceTransformer("me/nested", trust_remote_code=True).encode(proteins, convert_to_tensor=True)
    for level, width in ARGUMENTS["widths"].items():
        cut = SentenceTransformer("me/nested", trust_remote_code=True, truncate_dim=width)
        small = SentenceTransformer("me/nested", trust_remote_code=True, model_kwargs={"level": level})
        found[f"truncated-{level}"] = torch.equal(
            cut.encode(proteins, convert_to_tensor=True), small.encode(proteins, convert_to_tensor=True)
        )
    found["any_width"] = {}
    for name, mean in load_file(str(Path(ARGUMENTS["expected"]).with_name("lossless.safetensors"))).items():
        if name.startswith("means"):
            width = int(name.split()[1])
            cut = SentenceTransformer("me/lossless", trust_remote_code=True, truncate_dim=width)
            found["any_width"][name] = torch.equal(cut.encode(PROTEINS, batch_size=1, convert_to_tensor=True), mean)
    batch = tokenizer(proteins, padding=True, return_tensors="pt")
    with torch.inference_mode():
        states = model(**batch).last_hidden_state
    by_hand = torch.stack([states[row, 1 : 1 + len(protein)].double().mean(0) for row, protein in enumerate(proteins)])
    found["mean_over_residues"] = float((wide - by_hand).abs().max() / by_hand.abs().max())

    features = pipeline("feature-extraction", model="me/nested", trust_remote_code=True)(proteins[0])
    with torch.inference_mode():
        alone = model(**tokenizer(proteins[0], return_tensors="pt")).last_hidden_state
    found["pipeline"] = float((torch.tensor(features) - alone).abs().max())

    from peft import LoraConfig, PeftModel, get_peft_model

    largest = len(model.backbones) - 1
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=rf"backbones\.{largest}\..*\.(query|value)"))
    optimizer = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=1.0)
    before = output(adapted)
    adapted(IDS).last_hidden_state.square().mean().backward()
    optimizer.step()
    adapted.eval()
    after = output(adapted)
    folder = os.path.join(ARGUMENTS["work"], "lora")
    adapted.save_pretrained(folder)
    again = output(PeftModel.from_pretrained(load("me/nested"), folder))
    narrow = list(ARGUMENTS["widths"].values())[-2]
    found["lora"] = {
        "trained": not torch.equal(before, after),
        "reloaded_equal": torch.equal(after, again),
        "prefix_untouched": torch.equal(before[..., :narrow], after[..., :narrow]),
    }

    from huggingface_hub import ModelCard

    card = ModelCard.load("me/nested")
    found["metadata"] = card.data.to_dict()
    code = re.findall(r"```python\n(.*?)```", card.content, flags=re.DOTALL)
    for block in code:
        exec(block, {})
    found["blocks"] = len(code)
    return found


def offline() -> dict[str, Any]:
    """The cache alone."""
    expected = load_file(ARGUMENTS["expected"])["output"]
    return {
        "equal": torch.equal(output(load("me/nested")), expected),
        "absent": message_of(load, "me/never-seen"),
    }


def trouble() -> dict[str, Any]:
    """Broken and slow connections, errors of the server, repos one may not see."""
    expected = load_file(ARGUMENTS["expected"])["output"]
    found: dict[str, Any] = {}

    def cache(name: str) -> str:
        return os.path.join(ARGUMENTS["work"], f"cache-{name}")

    mark("cut-once")
    found["cut_once"] = message_of(load, "me/nested", cache_dir=cache("cut"))
    found["cut_no_more"] = torch.equal(output(load("me/nested", cache_dir=cache("cut"))), expected)
    mark("busy")
    found["busy"] = message_of(load, "me/nested", cache_dir=cache("busy"))
    found["busy_no_more"] = torch.equal(output(load("me/nested", cache_dir=cache("busy"))), expected)
    mark("slow")
    found["slow"] = torch.equal(output(load("me/nested", cache_dir=cache("slow"))), expected)
    mark("calm")
    found["private"] = message_of(load, "me/secret", cache_dir=cache("secret"))
    found["private_with_token"] = torch.equal(
        output(load("me/secret", token=ARGUMENTS["token"], cache_dir=cache("token"))), expected
    )
    found["no_repo"] = message_of(load, "me/none", cache_dir=cache("none"))
    found["no_revision"] = message_of(load, "me/nested", revision="nowhere", cache_dir=cache("nowhere"))
    found["pull"] = torch.equal(output(load("me/nested", revision="refs/pr/1", cache_dir=cache("pull"))), expected)
    found["branch"] = torch.equal(output(load("me/nested", revision="trial", cache_dir=cache("trial"))), expected)
    found["wrong_pin"] = message_of(load, "me/wrong-pin", cache_dir=cache("pin"))
    found["swapped"] = message_of(load, "me/swapped", cache_dir=cache("swapped"))
    found["pickled"] = message_of(load, "me/pickled", cache_dir=cache("pickled"))
    mark("down")
    found["down"] = message_of(load, "me/nested", cache_dir=cache("down"))
    mark("up")
    found["up_again"] = torch.equal(output(load("me/nested", cache_dir=cache("down"))), expected)
    return found


def fit_bin() -> dict[str, Any]:
    """Fit a chain of published backbones, two of them `.bin` shards, with the command; save; push with the command."""
    from rd_hf.commands.fit import main as fit
    from rd_hf.commands.push import main as push_command

    work = Path(ARGUMENTS["work"])
    mark("bin-fit")
    code = fit(
        [
            *("--backbones", *ARGUMENTS["backbones"], "--input", ARGUMENTS["data"], "--num-sequences", "40"),
            *("--max-length", "100", "--batch-tokens", "1000", "--output", str(work / "fitted")),
        ]
    )
    mark("bin-fitted")
    from rd_hf.hub import load_family

    model = load_family(work / "fitted")
    save_file({"output": output(model)}, ARGUMENTS["result"])
    pushed = push_command(["--model", str(work / "fitted"), "--repo-id", "me/bin"])
    report = json.loads((work / "fitted" / "fit_report.json").read_text())
    pins = [entry["revision"] for entry in model.config.levels]
    return {"codes": [code, pushed], "pins": pins, "reached": sorted(REACHED), "report": report}


def use_bin() -> dict[str, Any]:
    """A new user, logged in: each level, the whole one backbone at a time, and again from the cache."""
    expected = load_file(ARGUMENTS["result"])["output"]
    found: dict[str, Any] = {}
    cache = ""
    for level, width in ARGUMENTS["widths"].items():
        cache = os.path.join(ARGUMENTS["work"], f"cache-{level}")
        mark(f"bin-{level}")
        model = load("me/bin", level=level, cache_dir=cache)
        mark(f"bin-{level}-loaded")
        found[level] = torch.equal(output(model), expected[..., :width])
    mark("bin-again")
    found["again"] = torch.equal(output(load("me/bin", cache_dir=cache)), expected)
    mark("bin-again-loaded")
    found["sequential"] = torch.equal(output(load("me/bin", cache_dir=cache, sequential=True)), expected)
    time.sleep(1)  # whatever a background thread would do, it would have begun by now
    return {**found, "threads": [thread.name for thread in threading.enumerate()], "reached": sorted(REACHED)}


def release() -> dict[str, Any]:
    """The command, and what it says of an error."""
    import contextlib
    import io

    from rd_hf.commands.release import main

    complaint = io.StringIO()
    with contextlib.redirect_stderr(complaint):
        code = main(ARGUMENTS["words"])
    return {"code": code, "error": complaint.getvalue()}


def refuse_bin() -> dict[str, Any]:
    """What must not be loaded, each from an empty cache."""
    return {
        name: message_of(load, f"me/{name}", cache_dir=os.path.join(ARGUMENTS["work"], f"cache-{name}"))
        for name in ARGUMENTS["repos"]
    }


def concurrent() -> dict[str, Any]:
    expected = load_file(ARGUMENTS["expected"])["output"]
    return {"equal": torch.equal(output(load("me/nested")), expected)}


def upgrade() -> dict[str, Any]:
    """Embed at the smallest level; then from an empty cache each time, extend that folder, and convert raw means."""
    import shutil

    import numpy as np
    import pyarrow.parquet as pq
    from huggingface_hub.constants import HF_HUB_CACHE

    from rd_hf.commands import convert, embed
    from rd_hf.data.batching import collate
    from rd_hf.embedding.checkpoint import load_model

    work, found = Path(ARGUMENTS["work"]), {}
    (work / "p.fasta").write_text(">a\nMKTAYIAKQR\n>b\nACDEFGHIKLMNP\n")

    def rows(folder: str) -> Any:
        return np.array(pq.read_table(work / folder / "embeddings-000000.parquet")["embedding"].to_pylist())

    made = ["--model", "me/nested", "--input", str(work / "p.fasta"), "--quiet", "--output"]
    assert embed.main([*made, str(work / "scratch")]) == 0
    assert embed.main([*made, str(work / "L0"), "--level", "L0"]) == 0
    raw = load_model("me/nested", None, "", None, "float32", None, "cpu")
    means: dict[str, list[Any]] = {name: [] for name in ARGUMENTS["widths"]}
    for sequence in ("MKTAYIAKQR", "ACDEFGHIKLMNP"):
        ids, mask = collate([sequence])
        with torch.inference_mode():
            states = raw(ids, mask, output_backbone_states=True).backbone_states
        for own, state in zip(means.values(), states, strict=True):
            own.append(state[0, 1:-1].mean(dim=0).numpy())
    (work / "ids.txt").write_text("a\nb\n")
    for name, own in means.items():
        np.save(work / f"{name}.npy", np.stack(own))
    load_model.cache_clear()
    for step, command in {
        "extend": (embed, "--extend", "L0", "--level", "L2"),
        "convert": (convert, "--model", "me/nested", "--ids", "ids.txt", "--input", *(f"{n}.npy" for n in means)),
    }.items():
        shutil.rmtree(HF_HUB_CACHE)
        os.chdir(work)
        mark(step)
        assert command[0].main([*command[1:], "--quiet", "--output", str(work / step)]) == 0
        mark(f"{step}-done")
        difference = np.abs(rows(step) - rows("scratch")).max(axis=1) / np.abs(rows("scratch")).max(axis=1)
        found[step] = float(difference.max())
    return found


def push_heads() -> dict[str, Any]:
    """Give the published family a head a level, of sequences and of residues, and push both with the command."""
    import contextlib
    import io

    from rd_hf.commands import info
    from rd_hf.commands.push import main as push_command
    from rd_hf.hub import save_checkpoint
    from rd_hf.model.heads_rd_esm import RDEsmForSequenceClassification, RDEsmForTokenClassification

    work, found, expected = Path(ARGUMENTS["work"]), {}, {}
    for kind in (RDEsmForSequenceClassification, RDEsmForTokenClassification):
        labels = {0: "out", 1: "in"}
        model = kind.from_pretrained("me/nested", id2label=labels, label2id={"out": 0, "in": 1})
        model.config.problem_type = "single_label_classification"
        torch.manual_seed(0)
        for level, width in model.config.nested_dims.items():
            model.set_head(level, torch.randn(2, width), torch.randn(2), torch.randn(width), torch.rand(width) + 0.5)
        for level in model.config.nested_dims:
            with torch.inference_mode():
                expected[f"{kind.heads_of}-{level}"] = model.eval()(IDS, level=level).logits
        model.choose_level("L1")
        folder = save_checkpoint(model, work / kind.heads_of, backbones=False)
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            assert push_command(["--model", str(folder), "--repo-id", f"me/{kind.heads_of}"]) == 0
            assert info.main([str(folder)]) == 0
        found[kind.heads_of] = said.getvalue()
    save_file(expected, ARGUMENTS["result"])
    return found


def train_heads() -> dict[str, Any]:
    """Train on the published family with the command, up to its second level, and push what comes out."""
    import contextlib
    import io

    from rd_hf.commands.push import main as push_command
    from rd_hf.commands.train import main as train_command

    work = Path(ARGUMENTS["work"])
    generator = np.random.default_rng(0)
    lines = ["sequence,score"]
    for _ in range(40):
        letters = "".join(generator.choice(list("ACDEFGHIKLMNPQRSTVWY"), size=30))
        lines.append(f"{letters},{letters.count('A') + letters.count('L') + generator.normal():.4f}")
    (work / "labelled.csv").write_text("\n".join(lines) + "\n")
    words = ["train", "--model", "me/nested", "--input", str(work / "labelled.csv"), "--target", "score"]
    assert train_command([*words[1:], "--up-to", "L1", "--output", str(work / "trained"), "--quiet"]) == 0
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        assert push_command(["--model", str(work / "trained"), "--repo-id", "me/trained"]) == 0
    return {"files": sorted(path.name for path in (work / "trained").iterdir()), "pushed": said.getvalue()}


def use_heads() -> dict[str, Any]:
    """A new user, without the package: the level that was chosen, each level, and a pipeline."""
    from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification, pipeline

    expected, found = load_file(ARGUMENTS["result"]), {}
    classes = {"sequences": AutoModelForSequenceClassification, "residues": AutoModelForTokenClassification}
    for of, auto in classes.items():
        for level in ("chosen", *ARGUMENTS["widths"]):
            mark(f"{of}-{level}")
            model = auto.from_pretrained(
                f"me/{of}",
                trust_remote_code=True,
                cache_dir=os.path.join(ARGUMENTS["work"], f"cache-{of}-{level}"),
                **({} if level == "chosen" else {"level": level}),
            )
            mark(f"{of}-{level}-loaded")
            with torch.inference_mode():
                answer = model(IDS).logits
            found[f"{of}-{level}"] = torch.equal(answer, expected[f"{of}-{'L1' if level == 'chosen' else level}"])
    task = pipeline("text-classification", model="me/sequences", trust_remote_code=True)
    found["pipeline"] = [sorted(one["label"] for one in task("MKTAYIAKQR", top_k=None)), len(task.model.backbones)]
    return found


if __name__ == "__main__":
    result = globals()[STEP]()
    print("\nRESULT " + json.dumps(result))
