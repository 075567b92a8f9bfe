"""The tokenizer that travels with a checkpoint: cleans as the jobs do, in declared steps that any release runs.

No code comes with it: ``tokenizer.json`` says which letters change, which characters go and that every other one is a
token of its own. Characters without a residue become ``<unk>``, one each, which the model refuses.
"""

from __future__ import annotations

import json
import string
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

from rd_hf.data.residues import VOCABULARY

SPECIAL_TOKENS = {f"{name}_token": f"<{name}>" for name in ("cls", "pad", "eos", "unk", "mask")}
# Characters that are removed, as in :data:`rd_hf.data.residues._GAPS`.
_REMOVED = Regex(r"[-. \t\r\n\x0b\f]")


def build_tokenizer() -> Tokenizer:
    """ESM-2's vocabulary behind the table of :mod:`rd_hf.data.residues`."""
    tokenizer = Tokenizer(models.WordLevel({token: place for place, token in enumerate(VOCABULARY)}, unk_token="<unk>"))
    # One letter after the other: a normaliser that lowers or raises letters would make residues of non-ASCII ones too.
    letters = [normalizers.Replace(letter, letter.upper()) for letter in string.ascii_lowercase if letter != "j"]
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Replace(_REMOVED, ""),
            # Behind a residue: given one letter a word, a stop inside is a word of its own.
            normalizers.Replace(Regex(r"(?<=[^*])\*+\z"), ""),
            *letters,
            normalizers.Replace(Regex("[jJ]"), "X"),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    ends = [(token, VOCABULARY.index(token)) for token in ("<cls>", "<eos>")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<cls> $A <eos>", pair="<cls> $A <eos> $B <eos>", special_tokens=ends
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL_TOKENS.values()])
    return tokenizer


def save_tokenizer(folder: Path) -> None:
    """Write ``tokenizer.json``, ``tokenizer_config.json`` and, for ``EsmTokenizer``, ``vocab.txt``."""
    # Not by its own save(), which takes no path that is not UTF-8.
    (folder / "tokenizer.json").write_text(build_tokenizer().to_str(pretty=True), encoding="utf-8")
    settings = {
        # The name that every release knows; 5.x writes another, which 4.57 does not.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        # ESM-2 has no token types.
        "model_input_names": ["input_ids", "attention_mask"],
        **SPECIAL_TOKENS,
    }
    (folder / "tokenizer_config.json").write_text(
        json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8"
    )
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY), encoding="utf-8")
