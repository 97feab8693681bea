"""Prompts that must not be trained on, and whether a prompt is one of them, exactly or nearly."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from datasketch import MinHash, MinHashLSH
from xxhash import xxh32_intdigest

from reward_model import InputError, RowError
from reward_model.data.fields import PROMPTS
from reward_model.data.files import data_files, place, read_rows
from reward_model.data.formats import Options, convert, recognise
from reward_model.data.messages import prompt_messages
from reward_model.data.pair import Messages, shared_messages

PERMUTATIONS = 128
SHINGLE = 5  # characters: words would not do for Chinese


class Holdout:
    """The prompts of held-out files; `check` refuses equal ones, and those whose shingles overlap by `similarity`.

    Nearness is the Jaccard similarity of the sets of 5-character pieces, estimated by MinHash (Broder 1997).
    """

    def __init__(self, files: Iterable[str], similarity: float) -> None:
        self.similarity = similarity
        self.exact: dict[str, str] = {}
        self.near = MinHashLSH(threshold=similarity, num_perm=PERMUTATIONS)
        self.hashes: dict[str, MinHash] = {}
        for file in (file for name in files for file in _files(name)):
            for where, messages in _prompts(file):
                text = _normal(messages)
                if text not in self.exact:
                    self.exact[text] = where
                    self.hashes[where] = _minhash(text)
                    self.near.insert(where, self.hashes[where], check_duplication=False)

    def check(self, prompt: Messages) -> None:
        """Raises RowError if the prompt (messages) is held out."""
        text = _normal(prompt)
        if text in self.exact:
            raise RowError("held out", f"its prompt stands in {self.exact[text]}, which is held out.")
        minhash = _minhash(text)
        for where in self.near.query(minhash):
            similarity = minhash.jaccard(self.hashes[where])
            if similarity >= self.similarity:
                raise RowError("nearly held out", f"its prompt is {similarity:.0%} that of {where}, which is held out.")


def _files(name: str) -> list[Path]:
    files = data_files(name)
    if not files:
        raise InputError(f"--holdout {name}: no such file or folder.")
    return files


def _prompts(file: Path) -> Iterable[tuple[str, Messages]]:
    """(place, prompt) of every row; a row needs a prompt only, not two answers."""
    rows = [(place(file, number), row) for number, row in read_rows(file)]
    try:
        format_ = recognise((row for _, row in rows[:100]), str(file))
    except InputError:
        format_ = None
    found = [(where, messages) for where, row in rows if isinstance(row, dict) and (messages := _prompt(row, format_))]
    if 0 < len(found) < len(rows):
        print(f"--holdout {file}: {len(rows) - len(found)} of {len(rows)} rows have no prompt and hold nothing out.")
    if not found:
        raise InputError(f"--holdout {file}: no row has a prompt that is known (pairs, or {', '.join(PROMPTS)}).")
    return found


def _prompt(row: dict[str, Any], format_: str | None) -> Messages | None:
    try:
        if format_:
            return shared_messages(convert(row, format_, Options())[0])
    except RowError:
        pass  # a tie, say: the prompt still counts
    text = next((row[name] for name in PROMPTS if row.get(name)), None)
    return prompt_messages(text) if text else None


def _normal(prompt: Messages) -> str:
    """The users' words, without case and spacing; a system message does not make a prompt another one."""
    said = (message.get("content") for message in prompt if message.get("role") == "user")
    return " ".join(" ".join(text for text in said if isinstance(text, str)).casefold().split())


def _minhash(text: str) -> MinHash:
    minhash = MinHash(num_perm=PERMUTATIONS, hashfunc=xxh32_intdigest)
    shingles = {text[start : start + SHINGLE] for start in range(max(1, len(text) - SHINGLE + 1))}
    minhash.update_batch([shingle.encode() for shingle in shingles])
    return minhash
