"""Convert sources of preference data to files of validated pairs.

Every row is converted and validated. Valid pairs are written to one temporary file per source, and only the metadata
that later steps need stays in memory, in an array of FACTS (about 100 bytes per pair). The pairs are then compared with
each other, mixed, split, and written in one pass.
"""

import json
import os
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from tqdm import tqdm

from reward_model import InputError
from reward_model.data.findings import Finding, Findings
from reward_model.data.pair import Pair
from reward_model.data.readers import data_files, place_of
from reward_model.data.statistics import FACTS
from reward_model.data.workers import ConversionConfig, Source, convert_source

if TYPE_CHECKING:
    from reward_model.data.quality import Conflicts

SAMPLES = 10
IndexedLines = Iterator[tuple[int, bytes]]
CONFLICT_MESSAGES = {
    "duplicate": "the same pair is also at {}.",
    "both orders": "the same two answers are in reverse order at {}; it is unclear which is better.",
    "contradiction": "its preference is part of a cycle among the answers to one prompt (A over B over C over A).",
}


class ConvertedPairs(NamedTuple):
    """All valid pairs: their FACTS, the files and labels that FACTS refer to by index, and the number of rows read."""

    facts: np.ndarray
    files: list[str]
    labels: list[str]
    rows: int


@dataclass
class PreparedData:
    """The data that the report describes.

    Attributes:
        facts: The FACTS of all pairs written, both training and held-out pairs.
        in_eval: Whether each of these pairs is held out.
        sources: The names that facts["source"] refers to by index.
        rows: The number of rows read.
        findings: The problems found, by reason.
        not_taken: The number of good pairs left out to respect a cap or weight.
        samples: Sample pairs.
        unit: "tokens" or "characters".
    """

    facts: np.ndarray
    in_eval: np.ndarray
    sources: list[str]
    rows: int
    findings: dict[str, dict[str, Any]]
    not_taken: int
    samples: list[Pair]
    unit: str


def prepare(
    sources: list[Source],
    output: Path,
    config: ConversionConfig,
    *,
    eval_size: float = 0,
    ties: str = "drop",
    strict: bool = False,
    seed: int = 0,
    num_proc: int = 1,
) -> PreparedData:
    """Write `output` (pairs.jsonl), pairs.rejected.jsonl and, with `eval_size`, pairs.eval.jsonl: all of them or none.

    Each source's pairs are written in their original order; several sources are interleaved at random.
    """
    if eval_size:
        from reward_model.data.dataset import check_eval_size, held_out  # loads datasets

        check_eval_size(eval_size)
    output.parent.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    with TemporaryDirectory(dir=output.parent, prefix=".preparing-") as directory:
        made = {name: Path(directory, name) for name in ("pairs", "rejected", *(["eval"] if eval_size else []))}
        with open(made["rejected"], "w", encoding="utf-8") as file:
            findings = Findings(file, ties, strict)
            pairs = _convert_sources(sources, Path(directory), findings, config, num_proc)
            from reward_model.data.quality import find_conflicts  # loads pandas, which the workers do not need

            facts = pairs.facts
            conflicts = find_conflicts(facts, config.drop)
            is_good = conflicts.reasons == 0
            taken = _mix(facts, is_good, sources, random)
            in_eval = np.zeros(len(facts), dtype=bool)
            if eval_size and len(taken):
                in_eval[taken] = held_out(facts["prompt_hash"][taken], eval_size, seed)
            files = [Path(directory, str(part)) for part in range(len(sources))]
            lines = [_good_lines(path, part, pairs, conflicts, findings) for part, path in enumerate(files)]
            order = zip(taken.tolist(), facts["part"][taken].tolist(), in_eval[taken].tolist(), strict=True)
            bar = tqdm(order, desc="writing", total=len(taken), unit=" pairs", unit_scale=True)
            _write_pairs(made, lines, bar)
            if not len(taken):
                raise InputError(f"No valid pairs in {pairs.rows:,} rows. {findings.summary()}")
        for name, path in output_files(output).items():
            if name in made:
                os.replace(made[name], path)
            else:
                path.unlink(missing_ok=True)  # written by an earlier run and no longer valid
    step = max(1, len(taken) // SAMPLES)
    with open(output, "rb") as written:
        samples = [json.loads(line) for line in islice(written, 0, SAMPLES * step, step)]
    unit = "tokens" if config.token_lengths else "characters"
    not_taken = int(is_good.sum()) - len(taken)
    kept = facts[taken], in_eval[taken]
    return PreparedData(*kept, pairs.labels, pairs.rows, findings.counts, not_taken, samples, unit)


def output_files(output: Path) -> dict[str, Path]:
    """Return the files that a run writes: pairs.jsonl, .eval.jsonl, .rejected.jsonl, .report.json, .report.html."""
    names = {"eval": ".eval.jsonl", "rejected": ".rejected.jsonl", "report": ".report.json", "page": ".report.html"}
    return {"pairs": output} | {name: output.with_suffix(suffix) for name, suffix in names.items()}


def check_output(output: Path, inputs: list[str], overwrite: bool) -> None:
    """Raise InputError if a run would overwrite an input or (without `overwrite`) a file that no earlier run wrote.

    Args:
        output: The path of pairs.jsonl.
        inputs: The files, directories and Hub ids that the run reads.
        overwrite: Whether files that no earlier run wrote may be replaced.
    """
    made = output_files(output)
    existing = [path for path in made.values() if path.exists() or path.is_symlink()]
    for name in inputs:
        if Path(name).is_dir() and Path(name).resolve() in output.resolve().parents:
            raise InputError(f"--output {output} is inside the input {name}. Pass a different directory.")
        for path in existing:
            if any(path.exists() and path.samefile(file) for file in data_files(name)):
                raise InputError(f"--output {output} would overwrite the input {path}. Pass a different name.")
    try:
        written_before = json.loads(made["report"].read_bytes())["files"]
    except (OSError, ValueError, LookupError, TypeError):  # no report, or an unrelated file with this name
        written_before = []
    others = [str(path) for path in existing if path.name not in written_before]
    if others and not overwrite:
        found = f"would overwrite {', '.join(others)}, which prepare_data.py did not write"
        raise InputError(f"--output {output} {found}. Pass a different name or --overwrite.")


def _convert_sources(
    sources: list[Source], directory: Path, findings: Findings, config: ConversionConfig, num_proc: int
) -> ConvertedPairs:
    """Write the valid pairs from each source to a file named after the index of the source."""
    arrays, rows = [np.zeros(0, FACTS)], 0
    files: dict[str, int] = {}
    labels: dict[str, int] = {}
    for part, source in enumerate(sources):
        with open(directory / str(part), "wb") as lines:
            for file, chunk in convert_source(source, config, num_proc):
                rows += chunk.rows
                lines.writelines(chunk.lines)
                facts = np.array(chunk.facts, dtype=FACTS)
                facts["part"] = part
                facts["file"] = files.setdefault(file, len(files))
                facts["source"] = [labels.setdefault(label, len(labels)) for label in chunk.sources]
                arrays.append(facts)
                for found in chunk.bad_rows:
                    findings.add(found)
                for found in chunk.warnings:
                    findings.add(found, kept=True)
    return ConvertedPairs(np.concatenate(arrays), list(files), list(labels), rows)


def _mix(facts: np.ndarray, is_good: np.ndarray, sources: list[Source], random: np.random.Generator) -> np.ndarray:
    """Apply caps, then weights, then interleave the sources; return the indices of the pairs to write, in order."""
    taken = [np.flatnonzero(is_good & (facts["part"] == part)) for part in range(len(sources))]
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


def _good_lines(
    path: Path, part: int, pairs: ConvertedPairs, conflicts: "Conflicts", findings: Findings
) -> IndexedLines:
    """Yield (index, line) for each pair in a source, except those set aside; add conflicts to the findings."""
    from reward_model.data.quality import REASONS

    indices = np.flatnonzero(pairs.facts["part"] == part)
    reasons = np.maximum(conflicts.reasons, conflicts.warnings)[indices].tolist()
    is_bad = (conflicts.reasons[indices] != 0).tolist()
    with open(path, "rb") as lines:
        for index, reason, bad, line in zip(indices.tolist(), reasons, is_bad, lines, strict=True):
            if reason:
                place, other = (_place_of_pair(pairs, pair) for pair in (index, conflicts.others[index]))
                message = CONFLICT_MESSAGES[REASONS[reason]].format(other)
                findings.add(Finding(place, REASONS[reason], message, json.loads(line) if bad else None), kept=not bad)
            if not bad:
                yield index, line


def _place_of_pair(pairs: ConvertedPairs, index: int) -> str:
    return place_of(pairs.files[pairs.facts["file"][index]], pairs.facts["row"][index])


def _write_pairs(made: dict[str, Path], lines: list[IndexedLines], order: Iterable[tuple[int, int, bool]]) -> None:
    """Write pairs in the given order: for each pair its index, its source, and whether it is held out."""
    with open(made["pairs"], "wb") as training, open(made.get("eval", os.devnull), "wb") as held_out:
        for wanted, part, is_held_out in order:
            index, line = next(lines[part])
            while index != wanted:  # left out by a cap or weight
                index, line = next(lines[part])
            (held_out if is_held_out else training).write(line)
    for rest in lines:  # read the rest, too, to report conflicts after the last pair taken
        deque(rest, maxlen=0)
