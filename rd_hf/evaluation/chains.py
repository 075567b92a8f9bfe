"""Chains of any backbones in evaluation: their bases are fitted here, on the same sequences as every contender's."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from rd_hf.data.fasta import InputError
from rd_hf.devices import check_device
from rd_hf.evaluation.embeddings import Family, fingerprint, load_family
from rd_hf.hub import load_family as load_backbones
from rd_hf.hub.backbones import family_config


def load_chain(words: Sequence[str], device: str = "cpu", dtype: torch.dtype = torch.float32) -> Family:
    """Backbones as one family, whose bases are yet to be fitted.

    Args:
        words: as ``rd-hf fit --backbones`` takes them, smallest first: ``NAME=REPO``, or a reverse-distilled family,
            which stands for its levels.

    Raises:
        InputError: see :func:`rd_hf.hub.backbones.family_config`, or a backbone cannot be loaded, or not there.
    """
    check_device(device)
    config = family_config(list(words))
    try:
        model = load_backbones(config, dtype=dtype)
    except (OSError, ValueError) as error:
        raise InputError(f"--backbones: {' '.join(str(error).split())}") from error
    label = f"chain to {config.level_names[-1]}"
    model = model.eval().to(device)
    return Family(label, model, 1.0, fingerprint(model, 1.0), fitted=False)


def load_families(
    models: Sequence[str], depths: Sequence[float], chain: Sequence[str] | None, device: str, passes: bool = False
) -> list[Family]:
    """What ``--model``, ``--depth`` and ``--backbones`` ask for.

    Args:
        passes: a model whose fit kept a readout comes once more, in one pass, behind itself.

    Raises:
        InputError: nothing is asked for, or something cannot be loaded.
    """
    if not models and not chain:
        raise InputError("there is nothing to evaluate: give --model or --backbones")
    families = []
    for model in models:
        families += [load_family(model, depth, device) for depth in depths]
        if passes and families[-1].model.config.readout is not None:
            families.append(load_family(model, device=device, one_pass=True))
    return families + ([load_chain(chain, device)] if chain else [])
