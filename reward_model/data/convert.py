"""Recognise, convert, check: the one loop that rows of any source go through on their way to pairs."""

from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import Any, NamedTuple

from reward_model import InputError, RowError
from reward_model.data.formats import NO_OPTIONS, Options, convert, recognise
from reward_model.data.pair import Pair, check_pair
from reward_model.data.proposal import proposal
from reward_model.data.readers import NumberedRow, parsed, place_of

LOOKED_AT = 100  # rows, to recognise a format
# Reasons that stop a source where one of its first rows has them, and those that stop it where most have them: a row
# set aside is not enough where the layout is another one than it seemed.
STOPPING = ("unused field", "unclear verdict")
LAYOUT = ("missing field", "another layout", "not messages", "not text", "unknown role", "roles out of order")


class Reading(NamedTuple):
    """A row (as bytes where it cannot be parsed), where it stands, and each of its pairs: checked, or what is wrong."""

    place: str
    number: int
    row: Any
    format: str
    pairs: list[Pair | RowError]


def read(
    rows: Iterable[NumberedRow], source: str, options: Options = NO_OPTIONS, format_: str = "auto"
) -> Iterator[Reading]:
    """What became of every row of a source (its name is for places), in order.

    Raises InputError where no format is named and none is recognised.
    """
    format_, rows = with_format(rows, source, format_, options)
    return readings(rows, source, options, format_)


def readings(rows: Iterable[NumberedRow], source: str, options: Options, format_: str) -> Iterator[Reading]:
    """What became of rows whose format is known."""
    for number, row in rows:
        value = parsed(row)
        shown = row if isinstance(value, RowError) else value
        yield Reading(place_of(source, number), number, shown, format_, pairs_of(value, format_, options))


def read_strictly(rows: Iterable[NumberedRow], source: str, options: Options = NO_OPTIONS) -> Iterator[Reading]:
    """The rows that gave pairs; raises InputError at the first bad pair. Ties are left out, and counted."""
    ties = 0
    for reading in read(rows, source, options):
        for error in reading.pairs:
            if isinstance(error, RowError) and error.reason != "tie":
                cure = "(prepare_data.py sets such rows aside and keeps the rest.)"
                raise InputError(f"{reading.place}: {error} {cure}")
        pairs: list[Pair | RowError] = [pair for pair in reading.pairs if not isinstance(pair, RowError)]
        ties += len(reading.pairs) - len(pairs)
        if pairs:
            yield reading._replace(pairs=pairs)
    if ties:
        print(f"{source}: {ties} ties left out.")


def with_format(
    rows: Iterable[NumberedRow], source: str, format_: str, options: Options
) -> tuple[str, Iterator[NumberedRow]]:
    """The format of a source's rows, recognised by the first ones if it is "auto", and all of its rows.

    Raises InputError where none is recognised, and where the first rows do not come out whole.
    """
    rows = iter(rows)
    first = list(islice(rows, LOOKED_AT))
    values = [parsed(row) for _, row in first]
    if not first:
        raise InputError(f"{source}: empty, no row in there.")
    begin = first[0][1].strip() if isinstance(first[0][1], bytes) else b""
    if begin[:1] == b"[" and not isinstance(values[-1], dict):
        raise InputError(f"{source}: a JSON array, not an object a line; call it .json.")
    if begin == b"{":
        raise InputError(f"{place_of(source, first[0][0])}: {values[0]} Call it .json if objects span several lines.")
    if all(isinstance(value, RowError) for value in values):
        raise InputError(f"{place_of(source, first[0][0])}: {values[0]}")
    format_ = recognise(values, source, options.ignore) if format_ == "auto" else format_
    found = [
        (place_of(source, number), error)
        for (number, _), value in zip(first, values, strict=True)
        for error in pairs_of(value, format_, options)[:1]
        if isinstance(error, RowError)
    ]
    stopping = [at for at in found if at[1].reason in STOPPING]
    wrong = [at for at in found if at[1].reason in LAYOUT]
    if stopping or len(wrong) > len(first) / 2:
        place, error = (stopping or wrong)[0]
        if error.reason == "unused field":
            raise InputError(f"{place}: {error}") from error
        count = "" if stopping else f" ({len(wrong)} of the first {len(first)} rows are so.)"
        cure = proposal(next(value for value in values if isinstance(value, dict)), source)
        raise InputError(f"{place}: {error}{count} {cure}")
    return format_, chain(first, rows)


def pairs_of(row: Any, format_: str, options: Options) -> list[Pair | RowError]:
    """Each pair of a parsed row, checked, or the RowError that says what is wrong with it or with the row."""

    def checked(pair: Pair) -> Pair | RowError:
        try:
            return check_pair(pair)
        except RowError as error:
            return error

    if isinstance(row, RowError):
        return [row]
    try:
        return [checked(pair) for pair in convert(row, format_, options)]
    except RowError as error:
        return [error]
