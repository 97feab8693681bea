"""Collect problems with rows and pairs, grouped by reason."""

import json
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TextIO

from reward_model import InputError

PLACES = 5  # locations to list in the report for each reason


class Finding(NamedTuple):
    """A problem with a row or pair: its location, the reason, a message, and the row if it is set aside."""

    place: str
    reason: str
    message: str
    row: Any


@dataclass
class Findings:
    """Counts problems by reason, records where each first occurred, and writes bad rows to a file.

    Attributes:
        file: The file for bad rows, open for writing.
        ties: The value of --ties.
        strict: Whether a bad row stops the run.
        counts: For each reason, a dict with the report keys count, kept and first.
    """

    file: TextIO
    ties: str
    strict: bool
    counts: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add(self, found: Finding, kept: bool = False) -> None:
        """Count a finding, and write its row unless the pair is kept; raise InputError if the finding stops the run."""
        is_tie = found.reason == "tie"
        if not kept and (self.ties == "stop" if is_tie else self.strict):
            fix = "Pass a different --ties" if is_tie else "Omit --strict to set bad rows aside"
            raise InputError(f"{found.place}: {found.message} Nothing was written. {fix}.")
        counted = self.counts.setdefault(found.reason, {"count": 0, "kept": kept, "first": []})
        counted["count"] += 1
        if len(counted["first"]) < PLACES:
            counted["first"].append(f"{found.place}: {found.message}")
        if not kept and not (is_tie and self.ties == "drop"):
            self.file.write(json.dumps(found._asdict(), default=str) + "\n")

    def summary(self) -> str:
        """Return the count for each reason, followed by a line with the first location of each."""
        counts = [f"{reason}: {found['count']:,}" for reason, found in self.counts.items()]
        first = [place for found in self.counts.values() for place in found["first"][:1]]
        return "\n  ".join(["; ".join(counts), *first])
