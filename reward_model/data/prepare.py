"""From sources of preference data to files of checked pairs.

First every row is converted and checked; good pairs go to one file per source, and what the later checks and the report
need of each goes to an array of FACTS (about 100 bytes a pair, so memory stays bounded). Then the pairs are compared
with each other, mixed and split, and written in one pass.
"""

import json
import os
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TextIO

import numpy as np
from tqdm import tqdm

from reward_model import InputError
from reward_model.data.formats import NO_OPTIONS, Options
from reward_model.data.readers import data_files, place_of
from reward_model.data.split import held_out
from reward_model.data.statistics import FACTS, GOOD, REASONS, Work
from reward_model.data.workers import Bad, Source, converted

PLACES = 5  # of bad rows of each reason, kept for the summary
SAMPLES = 10
# Options that need answers with a score each, and the formats that have them.
OF_SCORES = {"pairing": {"scored"}, "min_gap": {"scored"}, "margin_from_gap": {"scored", "verdict"}}


class Rejected:
    """The file of bad rows (open for writing), and how many there were of each reason, with the first places."""

    def __init__(self, file: TextIO, ties: str, strict: bool) -> None:
        self.file, self.ties, self.strict = file, ties, strict
        self.counts: dict[str, dict[str, Any]] = {}

    def add(self, bad: Bad, kept: bool = False) -> None:
        """Count a bad row, and write it down unless it is kept; raises InputError if such a row is to stop the run."""
        is_tie = bad.reason == "tie"
        if not kept and (self.ties == "stop" if is_tie else self.strict):
            cure = "choose another --ties" if is_tie else "leave out --strict to set such rows aside"
            raise InputError(f"{bad.place}: {bad.message} Nothing was written; {cure}.")
        seen = self.counts.setdefault(bad.reason, {"count": 0, "kept": kept, "first": []})
        seen["count"] += 1
        if len(seen["first"]) < PLACES:
            seen["first"].append(f"{bad.place}: {bad.message}")
        if not kept and not (is_tie and self.ties == "drop"):
            self.file.write(json.dumps(bad._asdict(), default=str) + "\n")


@dataclass
class Prepared:
    """What the report tells of: facts of the kept pairs (training and held out), and what was read and rejected."""

    facts: np.ndarray
    in_eval: np.ndarray
    sources: list[str]
    rows: int
    rejected: dict[str, dict[str, Any]]
    not_taken: int
    samples: list[dict[str, Any]]
    unit: str


def prepare(
    sources: list[Source],
    output: Path,
    work: Work,
    *,
    eval_size: float = 0,
    ties: str = "drop",
    strict: bool = False,
    seed: int = 0,
    num_proc: int = 1,
) -> Prepared:
    """Write `output` (pairs.jsonl), pairs.rejected.jsonl and, with `eval_size`, pairs.eval.jsonl; all or none of them.

    Pairs stand in the order read; several sources are interleaved at random, each in its own order.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    with TemporaryDirectory(dir=output.parent, prefix=".preparing-") as folder:
        made = {name: Path(folder, name) for name in ("pairs", "rejected", *(["eval"] if eval_size else []))}
        with open(made["rejected"], "w", encoding="utf-8") as file:
            rejected = Rejected(file, ties, strict)
            facts, files, labels, rows = _convert_all(sources, Path(folder), rejected, work, num_proc)
            from reward_model.data.quality import find_conflicts  # pandas: workers that are done need none

            reasons, doubts, others = find_conflicts(facts, work.drop)
            _tell_of_same_files(facts, files, others, np.maximum(reasons, doubts) == REASONS.index("duplicate"))
            taken = _mixed(facts, reasons == GOOD, sources, random)
            if not len(taken):
                raise InputError(f"No pair is left of {rows:,} rows. {_reasons(rejected, reasons)}")
            in_eval = np.zeros(len(facts), dtype=bool)
            if eval_size:
                in_eval[taken] = held_out(facts["prompt_hash"][taken], eval_size, seed)
            about = (facts, reasons, doubts, others, files)
            parts = [_good_lines(Path(folder, str(part)), part, about, rejected) for part in range(len(sources))]
            picked = set(random.choice(taken, min(SAMPLES, len(taken)), replace=False).tolist())
            samples = _write(made, parts, facts["part"], taken, in_eval, picked)
        for name, path in output_files(output).items():
            if name in made:
                os.replace(made[name], path)
            else:
                path.unlink(missing_ok=True)  # of an earlier run, and no longer true
    good = int((reasons == GOOD).sum())
    unit = "tokens" if work.token_lengths else "characters"
    return Prepared(facts[taken], in_eval[taken], labels, rows, rejected.counts, good - len(taken), samples, unit)


def output_files(output: Path) -> dict[str, Path]:
    """Where all is written: pairs.jsonl, and beside it .eval.jsonl, .rejected.jsonl, .report.json and .report.html."""
    names = {"eval": ".eval.jsonl", "rejected": ".rejected.jsonl", "report": ".report.json", "page": ".report.html"}
    return {"pairs": output} | {name: output.with_suffix(suffix) for name, suffix in names.items()}


def check_output(output: Path, inputs: list[str], overwrite: bool) -> None:
    """Raises InputError if writing `output` and what comes beside it would change what is read (`inputs`: files,
    folders or hub ids), or, without `overwrite`, a file that no earlier run has left (its report names those)."""
    made = output_files(output)
    there = [path for path in made.values() if path.exists() or path.is_symlink()]
    for name in inputs:
        if Path(name).is_dir() and Path(name).resolve() in output.resolve().parents:
            raise InputError(f"--output {output} lies inside {name}, which is read; choose another folder.")
        for path in there:
            if any(path.exists() and path.samefile(file) for file in data_files(name)):
                raise InputError(f"--output {output} would replace {path}, which is read; choose another name.")
    try:
        ours = json.loads(made["report"].read_bytes())["files"]
    except (OSError, ValueError, LookupError, TypeError):  # no report, or one of something else
        ours = []
    others = [str(path) for path in there if path.name not in ours]
    if others and not overwrite:
        raise InputError(
            f"--output {output} would replace {', '.join(others)}, which prepare_data.py has not made; choose another "
            "name, or say --overwrite."
        )


def _convert_all(
    sources: list[Source], folder: Path, rejected: Rejected, work: Work, num_proc: int
) -> tuple[np.ndarray, list[str], list[str], int]:
    """Good pairs of each source into a file of its number; returns FACTS, names of files and of sources, rows read."""
    arrays, rows = [np.zeros(0, FACTS)], 0
    files: dict[str, int] = {}
    labels: dict[str, int] = {}
    formats: set[str] = set()
    for part, source in enumerate(sources):
        with open(folder / str(part), "wb") as lines:
            for file, done in converted(source, work, num_proc):
                rows += done.rows
                formats.add(done.format)
                lines.writelines(done.lines)
                facts = np.array(done.facts, dtype=FACTS)
                facts["part"] = part
                facts["file"] = files.setdefault(file, len(files))
                facts["source"] = [labels.setdefault(label, len(labels)) for label in done.sources]
                arrays.append(facts)
                for bad in done.bad:
                    rejected.add(bad)
                for bad in done.doubts:
                    rejected.add(bad, kept=True)
    _check_use(work.options, formats)
    return np.concatenate(arrays), list(files), list(labels), rows


def _check_use(options: Options, formats: set[str]) -> None:
    """Refuse what was asked of answers with a score where there are none."""
    unused = []
    for name, wanted in OF_SCORES.items():
        if getattr(options, name) != getattr(NO_OPTIONS, name) and formats.isdisjoint(wanted):
            unused.append(f"--{name}")
    if unused:
        found = ", ".join(sorted(formats))
        raise InputError(
            f"{', '.join(unused)}: no source has answers with a score each (found: {found}). Leave it out."
        )


def _tell_of_same_files(facts: np.ndarray, files: list[str], others: np.ndarray, is_again: np.ndarray) -> None:
    """A line for each two files that share most of their pairs (raw and filtered, say)."""
    sizes = np.bincount(facts["file"])
    places = np.stack([facts["file"], facts["file"][others]], axis=1)[is_again]
    for (file, other), count in Counter(map(tuple, places.tolist())).items():
        if file != other and count > min(sizes[file], sizes[other]) / 2:
            print(f"{files[file]}: {count:,} of its {sizes[file]:,} pairs stand in {files[other]} as well; give one.")


def _mixed(facts: np.ndarray, good: np.ndarray, sources: list[Source], random: np.random.Generator) -> np.ndarray:
    """Indices of the pairs that are taken, in the order of writing: caps, then weights, then interleaved."""
    taken = [np.flatnonzero(good & (facts["part"] == part)) for part in range(len(sources))]
    sizes = [min(len(pairs), source.cap or len(pairs)) for pairs, source in zip(taken, sources, strict=True)]
    if any(source.weight for source in sources):
        weights = [source.weight or 1.0 for source in sources]
        scale = min(size / weight for size, weight in zip(sizes, weights, strict=True))
        sizes = [int(scale * weight + 1e-9) for weight in weights]
    taken = [np.sort(random.choice(pairs, size, replace=False)) for pairs, size in zip(taken, sizes, strict=True)]
    if len(sources) == 1:
        return taken[0]
    turns = random.permutation(np.repeat(np.arange(len(sources)), sizes))
    mixed = np.empty(len(turns), dtype=int)
    for part, pairs in enumerate(taken):
        mixed[turns == part] = pairs
    return mixed


ABOUT = {
    "duplicate": "the same pair stands at {} already.",
    "both orders": "the same two answers stand the other way round at {}; which is right is for you to say.",
    "contradiction": "its preference is part of a circle among the answers to one prompt (A over B over C over A).",
    "cut off": "an answer ends within a word at a length at which many others do, as if cut off there.",
}


def _good_lines(path: Path, part: int, about: tuple, rejected: Rejected) -> Iterator[tuple[int, bytes]]:
    """(index, line) of every good pair of a source; the others are added to the rejected rows on the way."""
    facts, reasons, doubts, others, files = about
    own = np.flatnonzero(facts["part"] == part)
    found, set_aside = np.maximum(reasons, doubts)[own].tolist(), (reasons[own] != GOOD).tolist()
    with open(path, "rb") as lines:
        for index, reason, is_bad, line in zip(own.tolist(), found, set_aside, lines, strict=True):
            if reason:
                place, other = (place_of(files[facts["file"][i]], facts["row"][i]) for i in (index, others[index]))
                note = ABOUT[REASONS[reason]].format(other)
                rejected.add(Bad(place, REASONS[reason], note, json.loads(line) if is_bad else None), kept=not is_bad)
            if not is_bad:
                yield index, line


def _write(
    made: dict[str, Path],
    parts: list[Iterator[tuple[int, bytes]]],
    part_of: np.ndarray,
    taken: np.ndarray,
    in_eval: np.ndarray,
    picked: set[int],
) -> list[dict[str, Any]]:
    """Write the pairs `taken`, in this order; returns those in `picked`."""
    samples = []
    with open(made["pairs"], "wb") as pairs, open(made.get("eval", os.devnull), "wb") as held:
        order = zip(taken.tolist(), part_of[taken].tolist(), in_eval[taken].tolist(), strict=True)
        for wanted, part, is_held in tqdm(order, desc="writing", total=len(taken), unit=" pairs", unit_scale=True):
            index, line = next(parts[part])
            while index != wanted:  # left out by a cap or a weight
                index, line = next(parts[part])
            (held if is_held else pairs).write(line)
            if wanted in picked:
                samples.append(json.loads(line))
    for part in parts:  # rejected pairs may stand behind the last one taken
        deque(part, maxlen=0)
    return samples


def _reasons(rejected: Rejected, reasons: np.ndarray) -> str:
    found = {reason: seen["count"] for reason, seen in rejected.counts.items()}
    counts = np.bincount(reasons, minlength=len(REASONS)).tolist()
    found |= {reason: count for reason, count in zip(REASONS[1:], counts[1:], strict=True) if count}
    first = [text for seen in rejected.counts.values() for text in seen["first"][:1]]
    return "; ".join(f"{reason}: {count:,}" for reason, count in found.items()) + "".join(
        f"\n  {text}" for text in first
    )
