"""Everything between a model in memory and a repo on the Hub: save, load, describe, push, import."""

from rd_hf.hub.checkpoint import load_family, save_checkpoint

__all__ = ["load_family", "save_checkpoint"]
