"""Everything between a model in memory and a repo on the Hub: save, load, describe, push, import."""

from rd_hf.hub.checkpoint import load_family, save_checkpoint
from rd_hf.hub.push import push_folder, push_model

__all__ = ["load_family", "push_folder", "push_model", "save_checkpoint"]
