"""Prompts that must not be trained on, and whether a prompt is one of them, exactly or nearly."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from datasketch import MinHash, MinHashLSH
from xxhash import xxh32_intdigest

from reward_model import InputError, RowError
from reward_model.data.convert import LOOKED_AT, pairs_of
from reward_model.data.fields import PROMPTS
from reward_model.data.formats import NO_OPTIONS, recognise
from reward_model.data.messages import prompt_messages
from reward_model.data.pair import Messages, prompt_key, shared_messages
from reward_model.data.readers import data_files, place_of, read_rows

PERMUTATIONS = 128
SHINGLE = 5  # characters: words would not do for Chinese


class Contamination:
    """The prompts of files; `check` refuses equal ones, and those whose shingles overlap by `similarity`.

    Nearness is the Jaccard similarity of the sets of 5-character pieces, estimated by MinHash (Broder 1997).
    """

    def __init__(self, files: Iterable[str], similarity: float) -> None:
        self.similarity = similarity
        self.exact: dict[int, str] = {}
        self.near = MinHashLSH(threshold=similarity, num_perm=PERMUTATIONS)
        self.hashes: dict[str, MinHash] = {}
        for place, prompt in (found for name in files for file in _files(name) for found in _prompts(file)):
            words = _words(prompt)
            if _key(words) not in self.exact:
                self.exact[_key(words)] = place
                self.hashes[place] = _minhash(words)
                self.near.insert(place, self.hashes[place], check_duplication=False)

    def check(self, prompt: Messages) -> None:
        """Raises RowError if a prompt (messages) is one of them."""
        words = _words(prompt)
        if place := self.exact.get(_key(words)):
            raise RowError("contaminated", f"its prompt stands in {place}, which must not be trained on.")
        minhash = _minhash(words)
        for place in self.near.query(minhash):
            similarity = minhash.jaccard(self.hashes[place])
            if similarity >= self.similarity:
                found = f"its prompt is {similarity:.0%} that of {place}"
                raise RowError("nearly contaminated", f"{found}, which must not be trained on.")


def _files(name: str) -> list[Path]:
    if files := data_files(name):
        return files
    raise InputError(f"--exclude_prompts {name}: no such file or folder.")


def _prompts(file: Path) -> list[tuple[str, Messages]]:
    """(place, prompt) of every row; a row needs a prompt only, not two answers."""
    rows = list(read_rows(file))
    try:
        format_ = recognise([row for _, row in rows[:LOOKED_AT]], str(file))
    except InputError:
        format_ = None
    found = [(place_of(file, number), prompt) for number, row in rows if (prompt := _prompt(row, format_))]
    if 0 < len(found) < len(rows):
        print(f"--exclude_prompts {file}: {len(rows) - len(found)} of {len(rows)} rows have no prompt to exclude.")
    if not found:
        raise InputError(
            f"--exclude_prompts {file}: no row has a prompt that is known (pairs, or {', '.join(PROMPTS)})."
        )
    return found


def _prompt(row: Any, format_: str | None) -> Messages | None:
    for pair in pairs_of(row, format_, NO_OPTIONS) if format_ else []:
        if not isinstance(pair, RowError):
            return shared_messages(pair)
    row = row if isinstance(row, dict) else {}  # of a tie, say
    text = next((row[name] for name in PROMPTS if row.get(name)), None)
    return prompt_messages(text) if text else None


def _words(prompt: Messages) -> str:
    """The users' words, without case and spacing; a system message does not make a prompt another one."""
    said = (message.get("content") for message in prompt if isinstance(message, dict) and message.get("role") == "user")
    return " ".join(" ".join(text for text in said if isinstance(text, str)).casefold().split())


def _key(words: str) -> int:
    return prompt_key([{"role": "user", "content": words}])


def _minhash(text: str) -> MinHash:
    minhash = MinHash(num_perm=PERMUTATIONS, hashfunc=xxh32_intdigest)
    shingles = {text[start : start + SHINGLE] for start in range(max(1, len(text) - SHINGLE + 1))}
    minhash.update_batch([shingle.encode() for shingle in shingles])
    return minhash
