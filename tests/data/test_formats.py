"""Each format's sample gives exactly these pairs, through prepare_data.py and through train.py's reader alike."""

import json
import sys
from pathlib import Path

import pytest
from helpers import ROOT, pair, run, talk

from reward_model import RowError
from reward_model.data.convert import convert_row, convert_rows
from reward_model.data.dataset import load_pairs
from reward_model.data.formats import DEFAULT_OPTIONS, FORMATS, Options
from reward_model.data.readers import read_rows

SAMPLES = ROOT / "data/formats"

COLD = ["u: My tea is cold.", "a: Shall I tell you how to keep it warm?", "u: Yes please."]
KEYS = ["u: I lost my keys.", "a: Where did you see them last?", "u: At the shop."]
NOUN = ["s: Be brief.", "u: What is a noun?", "a: A word for a person, a place or a thing.", "u: Shorter, please."]
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
RAIN = [
    *talk("s: You may look up the weather.", "u: Will it rain in Oslo?"),
    {"role": "assistant", "tool_calls": [CALL]},
    *talk('t: {"rain": true}'),
]
SKY, BLUE = ["u: Why is the sky blue?"], "Air scatters blue light more than red."
WHALE = {"subset": "chat", "id": "12"}

EXPECTED = {
    "messages.jsonl": [
        pair(["u: What is 2 + 2?"], "Four.", "Five.", margin=1.0, source="sums", id="1"),
        pair(["u: Name a red fruit."], "A cherry.", "A banana.", margin=0.5),
        pair(["u: Say hello in French."], "Bonjour !", "Hola.", margin=2.0),
    ],
    "text.jsonl": [
        pair(["u: What is the capital of Italy?"], "Rome.", "Milan, I believe."),
        pair(["s: Answer in one word.", "u: What do bees make?"], "Honey.", "Wax and, most of all, honey."),
    ],
    "transcript.jsonl": [pair(COLD, "Warm the pot before you fill it.", "No.")],
    "sharegpt.json": [
        pair(KEYS, "Call the shop and ask whether somebody found them.", "Buy new ones."),
        {
            "chosen": [*RAIN, *talk("a: Yes, take an umbrella.")],
            "rejected": [*RAIN, *talk("a: No.")],
            "tools": [{"type": "function", "function": {"name": "weather", "parameters": {}}}],
        },
    ],
    "swift.jsonl": [
        pair(["s: Be kind.", "u: I am tired."], "Then rest a while.", "So what?"),
        pair(["u: Spell cat."], "C, a, t.", "K, a, t."),
    ],
    "alpaca.json": [
        pair(["u: Translate into German.\nGood night."], "Gute Nacht.", "Guten Tag."),
        pair(NOUN, "A naming word.", "It is a word that names persons, places and things."),
    ],
    "verdict.jsonl": [
        pair(["u: Tell me a joke."], "I used to be a banker, but I lost interest.", "No.", id="q1"),
        pair(["u: How do I cut glass?"], "Score it with a glass cutter and wear goggles.", "Hit it."),
        pair(["u: What is 7 x 8?"], "56", "54", source="math", id="j7"),
    ],
    "scored.jsonl": [
        pair(SKY, BLUE, "It reflects light.", source="science"),
        pair(SKY, BLUE, "Because of the sea.", source="science"),
        pair(["u: How many legs has a spider?"], "Eight.", "Six."),
        pair(["u: Name a prime number."], "11", "9"),
    ],
    "lists.jsonl": [
        pair(["u: Is a whale a fish?"], chosen, rejected, **WHALE)
        for chosen in ("No.", "No, it is a mammal.")
        for rejected in ("Yes.", "Yes, a large one.")
    ],
    "fields.csv": [
        pair(["u: Who wrote it?\n\nThe letter is signed by Ann."], "Ann did.", "I do not know."),
        pair(["u: Is it late?\n\nThe clock shows 3 in the morning."], "Yes, very.", "No, it is noon."),
    ],
}
FIELDS = Options(
    prompt="question",
    context="context",
    candidates=("first", "second"),
    label="preferred",
    label_first=("A",),
    label_second=("B",),
    label_tie=("same",),
)


@pytest.mark.parametrize("file", EXPECTED)
def test_sample_gives_exactly_these_pairs(file: str) -> None:
    named = file == "fields.csv"
    rows = read_rows(SAMPLES / file)
    readings = list(convert_rows(rows, file, FIELDS if named else DEFAULT_OPTIONS, "fields" if named else "auto"))
    found = [pair for reading in readings for pair in reading.pairs]
    assert {str(error.reason) for error in found if isinstance(error, RowError)} <= {"tie"}
    assert [pair for pair in found if not isinstance(pair, RowError)] == EXPECTED[file]
    assert readings[0].format == file.split(".")[0]
    if not named:
        loaded = load_pairs(str(SAMPLES / file))[0]
        assert [json.loads(text) for text in loaded["chosen"][:]] == [pair["chosen"] for pair in EXPECTED[file]]


def test_every_format_has_a_sample_and_every_sample_a_test() -> None:
    samples = {file.name for file in SAMPLES.iterdir()}
    assert samples == set(EXPECTED)
    assert {name.split(".")[0] for name in samples} == set(FORMATS)


def test_pairing_of_scored_answers() -> None:
    row = {"prompt": "?", "responses": ["a", "b", "c", "d"], "scores": [1, 4, 3, 3]}

    def made(**options: object) -> list[tuple]:
        pairs = convert_row(row, "scored", Options(**options))
        return [(p["chosen"][-1]["content"], p["rejected"][-1]["content"], p.get("margin")) for p in pairs]

    assert made() == [("b", "c", None), ("b", "d", None), ("b", "a", None)]
    assert made(pairing="adjacent") == [("b", "c", None), ("d", "a", None)]
    assert len(made(pairing="all")) == 5  # c and d tie
    assert made(min_gap=2, margin_from_gap=True) == [("b", "a", 3)]


def test_named_fields_reach_into_nested_rows() -> None:
    row = {"data": {"turns": [{"text": "Hi?"}]}, "good": {"text": "Hello."}, "bad": {"text": "Go."}}
    options = Options(prompt="data.turns.0.text", chosen="good.text", rejected="bad.text", system="Be kind.")
    assert convert_row(row, "fields", options) == [pair(["s: Be kind.", "u: Hi?"], "Hello.", "Go.")]
    with pytest.raises(RowError, match=r"no 'good.txt' \(keys: data, good, bad\)"):
        convert_row(row, "fields", Options(prompt="data.turns.0.text", chosen="good.txt", rejected="bad.text"))


@pytest.mark.parametrize("empty", ["", None])
def test_an_empty_input_adds_nothing(empty: str | None) -> None:
    options = Options(prompt="instruction", context="input", chosen="good", rejected="bad")
    row = {"instruction": "Hi?", "input": empty, "good": "Hello.", "bad": "Go."}
    assert convert_row(row, "fields", options) == [pair(["u: Hi?"], "Hello.", "Go.")]


@pytest.mark.parametrize("language", ["en", "zh"])
def test_real_pairs_come_out_whole(language: str, tmp_path: Path) -> None:
    source = ROOT.parent / f"shared/data/dpo_{language}_demo.json"
    if not source.exists():
        pytest.skip("no ../shared/data here")
    shown = run(sys.executable, ROOT / "prepare_data.py", source, "--output", tmp_path / "pairs.jsonl")
    assert "300 rows -> 300 pairs" in shown.stdout
    assert len((tmp_path / "pairs.jsonl").read_text().splitlines()) == 300
