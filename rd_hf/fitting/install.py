"""What was fitted, put into a model: bases, readout and whitening become its buffers, and their record its config's."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from itertools import pairwise, zip_longest
from pathlib import Path

import torch

from rd_hf.bases.chain import Basis
from rd_hf.bases.readout import Readout
from rd_hf.bases.whitening import Whitening
from rd_hf.data.records import readable
from rd_hf.fitting.fit import FitResult
from rd_hf.fitting.sample import Sample
from rd_hf.fitting.settings import FitOptions
from rd_hf.model.bases_rd_esm import RDEsmProjection, RDEsmReadout, RDEsmWhitening
from rd_hf.model.modeling_rd_esm import RDEsmModel


def install_bases(
    model: RDEsmModel, result: FitResult, options: FitOptions, sample: Sample, sources: Iterable[str]
) -> None:
    """Put fitted bases into the model (rounded to float32) and their record into its config."""
    config = model.config
    config.residual_directions = [basis.directions.shape[1] for basis in result.bases]
    model.projections = torch.nn.ModuleList(_projection(basis).to(model.device) for basis in result.bases)
    # Those of other bases, if there were any.
    model.whitening = config.whitening = None
    if config.readout is not None:
        config.readout = None
        del model.readout
    if result.readout is not None:
        layers = list(options.one_pass or ())
        config.readout = {"layers": layers}
        model.readout = _readout(result.readout, layers).to(model.device)
    if result.whitening is not None:
        criterion = "given" if options.block_weights else "each level's backbone"
        install_whitening(model, result.whitening, of="residues", criterion=criterion)
    # The others are recorded with what came of them.
    record = {name: value for name, value in asdict(options).items() if name not in ("one_pass", "block_weights")}
    config.bases = {
        **record,
        **result.run,
        "num_sequences": len(sample.sequences) - len(sample.heldout),
        "num_heldout_sequences": len(sample.heldout),
        "num_residues": result.training_residues,
        "num_heldout_residues": result.heldout_residues,
        "num_distinct_sequences": sample.distinct,
        "fitted_on": "accumulated",
        "data": source_names(sources),
    }


def source_names(sources: Iterable[str]) -> list[str]:
    """What the data of a fit are called in its record: files by their names alone."""
    return [readable(Path(source).name if Path(source).exists() else source) for source in sources]


def _projection(basis: Basis) -> RDEsmProjection:
    prefix_width, backbone_width = basis.regression.shape
    projection = RDEsmProjection(prefix_width, backbone_width, basis.directions.shape[1])
    projection.load_state_dict(vars(basis))
    return projection


def _readout(readout: Readout, layers: Sequence[int]) -> RDEsmReadout:
    prefix_width, width = readout.last.regression.shape
    module = RDEsmReadout(layers, width, prefix_width, readout.last.directions.shape[1])
    module.last = _projection(readout.last)
    module.state_means.copy_(readout.feature_mean.view(-1, width))
    module.prefix_mean.copy_(readout.embedding_mean)
    module.weights.copy_(readout.weights.view(-1, width, prefix_width))
    return module


def install_whitening(model: RDEsmModel, whitening: Whitening, **record: str | float) -> None:
    """Put a whitening of its blocks into a model (rounded to float32), and where it comes from into its config.

    For bases that came without: whiten by a set of your own, then save the model. The record says what the statistics
    are ``of`` ("residues", "proteins"), and the ``criterion`` of the weights. Grids to round to
    (``--output-dtype int8``) are those of its ``spreads``, and none without.

    Raises:
        ValueError: the blocks are not those of the model.
    """
    widths, own = (
        [wide - narrow for narrow, wide in pairwise([0, *model.config.nested_dims.values()])],
        whitening.widths,
    )
    if own != widths:
        raise ValueError(f"a whitening of blocks {own} does not fit a model whose blocks are {widths} wide")
    module = RDEsmWhitening(widths, whitening.weights, bool(whitening.spreads))
    parts = zip_longest(module, whitening.means, whitening.maps, whitening.weights, whitening.spreads)
    for block, mean, matrix, weight, spread in parts:
        # A weight of zero leaves nothing of its map.
        state = {"mean": mean, "map": matrix / weight if weight else matrix}
        block.load_state_dict(state if spread is None else state | {"spread": spread})
    model.whitening = module.to(model.device)
    grids = {"grids": True} if whitening.spreads else {}
    model.config.whitening = {"weights": list(whitening.weights), **grids, **record}
