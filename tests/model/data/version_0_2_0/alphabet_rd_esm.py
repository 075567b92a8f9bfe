"""Whether a backbone reads the tokens that all levels of a chain are given: those of ESM-2.

The number of rows in a table of embeddings does not tell: ESM-C's 64 rows hold ESM-2's ids, nucleotide models of the
same `model_type` others. What a tokenizer gives for each residue and each special token does.

This file travels to the Hub beside ``modeling_rd_esm.py``: it imports public names of transformers only.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from transformers.utils import cached_file

from .families_rd_esm import family_of

# Token ids of all that a level is given (Lin et al. 2023): special tokens, the twenty residues, and X, B, U, Z, O.
TOKENS = {
    **{"<cls>": 0, "<pad>": 1, "<eos>": 2},
    **{residue: place for place, residue in enumerate("LAGVSERTIDPKQNFYMHWCXBUZO", start=4)},
    "<mask>": 32,
}


def check_alphabet(what: str, where: str, revision: str | None, backbone: Mapping[str, Any], **hub: Any) -> bool:
    """Compare a backbone's tokenizer, if it has one, with the tokens that it will be given.

    Args:
        what: the backbone, for messages.
        where, revision: its repo or folder.
        backbone: its description in the config.
        hub: `cache_dir`, `token`, `local_files_only`, ...

    Returns:
        Whether a tokenizer was there to compare; without one, the rows of the table of tokens must be those that its
        family was published with.

    Raises:
        ValueError: it reads others; the message names one.
    """
    compared = False
    for file, vocabulary in _vocabularies(where, revision, hub):
        compared = True
        other = [token for token, number in TOKENS.items() if vocabulary.get(token) != number]
        if other:
            found = vocabulary.get(other[0])
            raise ValueError(
                f"{what} reads other tokens than the other levels of a chain, which are given ESM-2's: {other[0]!r} "
                f"{'is none of its tokens' if found is None else f'is its token {found}'} ({file}) and ESM-2's "
                f"{TOKENS[other[0]]}, and so for {len(other)} of {len(TOKENS)}: it cannot be a level"
            )
    family = family_of(backbone)
    if not compared and backbone["vocab_size"] not in family.rows:
        raise ValueError(
            f"{what} has {backbone['vocab_size']} tokens where {family.title} has {_or(family.rows)}, and no tokenizer "
            f"beside its weights says whether ESM-2's are among them: put its vocab.txt or tokenizer.json there"
        )
    return compared


def check_tokens(level: str, entry: Mapping[str, Any]) -> None:
    """What the config alone can tell of a level's tokens.

    Args:
        level: its name.
        entry: one of `levels`; its `alphabet` is "esm2" where `check_alphabet` compared a table of unusual size.

    Raises:
        ValueError: they are not ESM-2's.
    """
    backbone = entry["backbone"]
    family, rows = family_of(backbone), backbone["vocab_size"]
    for field, number in family.tokens.items():
        if backbone.get(field, number) not in (number, None):
            raise ValueError(
                f"all levels must share one vocabulary, ESM-2's, where {field} is {number}: that of level {level} is "
                f"{backbone[field]}"
            )
    if rows not in family.rows and not (entry.get("alphabet") == "esm2" and rows > max(TOKENS.values())):
        raise ValueError(
            f"all levels must share one vocabulary, of which {family.title} has {_or(family.rows)} tokens: level "
            f"{level} has {rows}"
        )


def _or(numbers: tuple[int, ...]) -> str:
    return " or ".join(map(str, numbers))


def _vocabularies(where: str, revision: str | None, hub: dict[str, Any]) -> Iterator[tuple[str, dict[str, int]]]:
    """Name and content of each vocabulary of a folder, or of the first that a Hub repo has: token to id."""
    for name in ("vocab.txt", "tokenizer.json"):
        if os.path.isdir(where):
            path = os.path.join(where, name) if os.path.isfile(os.path.join(where, name)) else None
        else:
            try:
                path = cached_file(where, name, revision=revision, _raise_exceptions_for_missing_entries=False, **hub)
            except OSError:  # of a repo in the cache, perhaps without its tokenizer
                path = None
        if path is None:
            continue
        with open(path, encoding="utf-8") as file:
            text = file.read()
        if name == "vocab.txt":
            yield name, {token: place for place, token in enumerate(re.split(r"\r?\n", text.strip()))}
            if not os.path.isdir(where):
                return  # one request less
            continue
        try:
            content = json.loads(text)
            listed = content["model"]["vocab"]
            known = dict(listed) if isinstance(listed, dict) else {pair[0]: place for place, pair in enumerate(listed)}
            yield name, known | {token["content"]: token["id"] for token in content.get("added_tokens") or ()}
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise ValueError(f"{path} is no tokenizer.json ({error!r}): fetch or save it again") from error
