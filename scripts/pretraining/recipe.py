"""The recipe: what is trained, on what, how it is judged, and how the levels become a family."""

from __future__ import annotations

import argparse
import json
import math
import re
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm
from transformers import AutoConfig, AutoModelForMaskedLM, PreTrainedModel

from pretraining.family import FAMILIES
from rd_hf.data.fasta import read_fasta
from rd_hf.data.residues import (
    MASK_ID,
    PAD_ID,
    STANDARD_RESIDUES,
    VOCABULARY,
    RejectedSequenceError,
    clean_sequence,
    encode,
)
from rd_hf.families import Member, esm2_backbone
from rd_hf.model.configuration_rd_esm import RDEsmConfig

STANDARD_IDS = torch.tensor([VOCABULARY.index(residue) for residue in STANDARD_RESIDUES])


def backbone(family: str, member: Member) -> dict[str, Any]:
    """Arguments of the config of one model, as a level's ``backbone`` has them."""
    if family == "esm2":
        return esm2_backbone(member)
    # Ids as ESM-2's, on 64 rows; SwiGLU of 8/3 of the width, rounded up to 64 (960 gives 2,560 in the 300M).
    return {
        "model_type": family,
        "vocab_size": 64,
        "pad_token_id": 1,
        "mask_token_id": 32,
        "hidden_size": member.width,
        "num_hidden_layers": member.layers,
        "num_attention_heads": member.heads,
        "intermediate_size": math.ceil(8 * member.width / 3 / 64) * 64,
    }


def new_model(family: str, member: Member) -> PreTrainedModel:
    """A masked language model of random weights.

    Raises:
        ValueError: this release of transformers does not have the family.
    """
    fields = backbone(family, member)
    config = AutoConfig.for_model(fields.pop("model_type", "esm"), **fields, tie_word_embeddings=family == "esm2")
    model: PreTrainedModel = AutoModelForMaskedLM.from_config(config)
    return model


def load_tokens(paths: list[Path]) -> tuple[list[np.ndarray], int]:
    """Distinct usable sequences of all files, encoded, in first-seen order; and the number left out."""
    seen: dict[str, None] = {}
    rejected = 0
    for path in paths:
        for record in tqdm(read_fasta(path), desc=path.name, unit=" records"):
            try:
                seen.setdefault(clean_sequence(record.sequence))
            except RejectedSequenceError:
                rejected += 1
    return [encode(sequence) for sequence in seen], rejected


def crop_batch(tokens: list[np.ndarray], picks: np.ndarray, crop: int, rng: np.random.Generator) -> torch.Tensor:
    """Random windows of at most `crop` tokens, padded: (batch, crop) int64."""
    batch = np.full((len(picks), crop), PAD_ID, dtype=np.int64)
    for row, pick in enumerate(picks):
        sequence = tokens[pick]
        start = int(rng.integers(0, max(1, len(sequence) - crop + 1)))
        window = sequence[start : start + crop]
        batch[row, : len(window)] = window
    return torch.from_numpy(batch)


def mask_batch(batch: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """BERT masking of residues: (masked input, chosen positions as bool), both (batch, length)."""
    residues = batch > 3
    residues &= batch < MASK_ID
    draw = torch.rand(batch.shape, generator=generator)
    chosen = residues & (draw < 0.15)
    random_residues = STANDARD_IDS[torch.randint(0, len(STANDARD_IDS), batch.shape, generator=generator)]
    masked = torch.where(chosen & (draw < 0.15 * 0.8), MASK_ID, batch)
    masked = torch.where(chosen & (draw >= 0.15 * 0.8) & (draw < 0.15 * 0.9), random_residues, masked)
    return masked, chosen


class MaskedLoss(nn.Module):
    """Cross-entropy (nats) at the chosen positions; the head runs on those only."""

    def __init__(self, model: PreTrainedModel, max_chosen: int) -> None:
        super().__init__()
        self.model = model
        self.max_chosen = max_chosen

    def forward(
        self, masked: torch.Tensor, attention_mask: torch.Tensor, where: torch.Tensor, target: torch.Tensor
    ) -> torch.Tensor:
        states = self.model.base_model(masked, attention_mask=attention_mask).last_hidden_state
        # Padded to a constant count so that one compiled graph serves every batch; -100 is ignored.
        logits = self.model.lm_head(states.flatten(0, 1).index_select(0, where))
        return nn.functional.cross_entropy(logits.float(), target, ignore_index=-100)

    def batch(self, batch: torch.Tensor, generator: torch.Generator, device: torch.device) -> torch.Tensor:
        masked, chosen = mask_batch(batch, generator)
        where = chosen.flatten().nonzero().squeeze(1)[: self.max_chosen]
        target = torch.full((self.max_chosen,), -100)
        target[: len(where)] = batch.flatten()[where]
        padded = torch.zeros(self.max_chosen, dtype=torch.long)
        padded[: len(where)] = where
        attention = (batch != PAD_ID).long()
        with torch.autocast(device.type, dtype=torch.bfloat16):
            loss: torch.Tensor = self(*(x.to(device, non_blocking=True) for x in (masked, attention, padded, target)))
        return loss


def optimizers(model: nn.Module, args: argparse.Namespace) -> list[torch.optim.Optimizer]:
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and re.search(r"\.layers?\.", n)]
    chosen = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    return [
        torch.optim.Muon(matrices, lr=args.muon_lr, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=args.adam_lr, betas=(0.9, 0.98), eps=1e-8, weight_decay=0.01),
    ]


def schedule(step: int, steps: int, warmup: int) -> float:
    """Linear warm-up, then linear decay to a hundredth of the peak."""
    if step < warmup:
        return (step + 1) / warmup
    return max(0.01, (steps - step) / max(1, steps - warmup))


@torch.no_grad()
def validate(loss: MaskedLoss, batches: list[torch.Tensor], device: torch.device, seed: int) -> float:
    generator = torch.Generator().manual_seed(seed)
    loss.eval()
    values = [loss.batch(batch, generator, device).item() for batch in batches]
    loss.train()
    return math.fsum(values) / len(values)


def unigram_entropy(tokens: list[np.ndarray]) -> float:
    """Entropy (nats) of the residue distribution: the loss of a model that knows no context."""
    counts = np.bincount(np.concatenate(tokens), minlength=len(VOCABULARY))[4:MASK_ID].astype(float)
    p = counts[counts > 0] / counts.sum()
    return float(-(p * np.log(p)).sum())


def train_level(
    name: str, train: list[np.ndarray], held_out: list[np.ndarray], args: argparse.Namespace
) -> dict[str, object]:
    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    generator = torch.Generator().manual_seed(args.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    member = FAMILIES[args.family][name]
    model = new_model(args.family, member).to(device)
    tokens_a_batch = args.batch * args.crop
    # 15 % on average; a fifth more leaves room for the spread of the draw.
    loss = MaskedLoss(model, max_chosen=int(0.18 * tokens_a_batch))
    if args.compile:
        loss.compile(dynamic=False)
    optims = optimizers(model, args)
    peaks = [[group["lr"] for group in optim.param_groups] for optim in optims]

    picks = np.random.default_rng(args.seed).choice(len(held_out), size=min(len(held_out), 1024), replace=False)
    held_rng = np.random.default_rng(args.seed)
    rows = tokens_a_batch // args.final_crop
    held_batches = [
        crop_batch(held_out, picks[i : i + rows], args.final_crop, held_rng)
        for i in range(0, len(picks) - rows + 1, rows)
    ]
    long_from = int(args.steps * (1 - args.final_share))
    order = rng.permutation(len(train))
    cursor, seen, started = 0, 0, time.perf_counter()
    curve = []
    progress = tqdm(range(args.steps), desc=name, unit="step", mininterval=10)
    for step in progress:
        crop = args.crop if step < long_from else args.final_crop
        rows = tokens_a_batch // crop
        if cursor + rows > len(order):
            order, cursor = rng.permutation(len(train)), 0
        batch = crop_batch(train, order[cursor : cursor + rows], crop, rng)
        cursor += rows
        seen += int((batch > 3).sum())
        for optim, peak in zip(optims, peaks, strict=True):
            for group, lr in zip(optim.param_groups, peak, strict=True):
                group["lr"] = lr * schedule(step, args.steps, args.warmup)
        value = loss.batch(batch, generator, device)
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optim in optims:
            optim.step()
            optim.zero_grad(set_to_none=True)
        if (step + 1) % args.validate_every == 0 or step + 1 == args.steps:
            held = validate(loss, held_batches, device, args.seed)
            rate = seen / (time.perf_counter() - started)
            curve.append({"step": step + 1, "residues": seen, "validation_loss": held})
            tqdm.write(
                f"{name} step {step + 1}: train {value.item():.4f}, validation {held:.4f} nats, {rate:,.0f} residues/s"
            )
    folder = args.output / name
    model.save_pretrained(folder)
    result: dict[str, object] = {
        "level": name,
        **{key: value for key, value in asdict(member).items() if key in ("width", "layers", "heads")},
        "parameters": sum(p.numel() for p in model.base_model.parameters()),
        "residues_seen": seen,
        "longest_crop": args.final_crop,
        "seconds": round(time.perf_counter() - started, 1),
        "validation_loss": curve[-1]["validation_loss"],
        "curve": curve,
    }
    return result


def assemble(args: argparse.Namespace) -> Path:
    """The trained levels as one family without bases: what rd-hf fit starts from."""
    levels = []
    for name, member in FAMILIES[args.family].items():
        result = json.loads((args.output / name / "pretraining.json").read_text(encoding="utf-8"))
        kept = ("validation_loss", "unigram_entropy", "residues_seen", "longest_crop", "sequences", "steps", "seed")
        levels.append(
            {
                "name": name,
                "repo_id": str(args.output / name),
                "backbone": backbone(args.family, member),
                "license": "mit",
                "pretraining": {key: result[key] for key in kept},
            }
        )
    folder: Path = args.output / "family"
    RDEsmConfig(levels=levels, backbones_in_checkpoint=False).save_pretrained(folder)
    return folder


def train_family(args: argparse.Namespace) -> None:
    """Train the levels that are not there yet; ``args`` are those of scripts/pretrain_mini_family.py."""
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    tokens, rejected = load_tokens(args.data)
    shuffled = np.random.default_rng(args.seed).permutation(len(tokens))
    held_out = [tokens[i] for i in shuffled[: args.held_out]]
    train = [tokens[i] for i in shuffled[args.held_out :]]
    entropy = unigram_entropy(held_out)
    print(f"{len(train):,} training and {len(held_out):,} validation sequences, {rejected} left out; ", end="")
    print(f"unigram entropy {entropy:.4f} nats")
    args.output.mkdir(parents=True, exist_ok=True)
    for name in args.levels:
        report = args.output / name / "pretraining.json"
        if report.exists():
            print(f"{name}: already in {report.parent}, kept")
            continue
        result = train_level(name, train, held_out, args)
        result |= {"unigram_entropy": entropy, "sequences": len(train), "seed": args.seed, "steps": args.steps}
        report.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        print(f"{name}: {result['validation_loss']:.4f} nats on held-out sequences (unigram {entropy:.4f})")
    if all((args.output / name / "pretraining.json").exists() for name in FAMILIES[args.family]):
        print(f"the family is in {assemble(args)}: fit its bases with rd-hf fit --form full")
