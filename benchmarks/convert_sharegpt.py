"""ShareGPT preference data (`conversations`, `chosen`, `rejected` with from/value) to this project's pairs.

python benchmarks/convert_sharegpt.py dpo_en_demo.json pairs.jsonl
"""

import json
import sys
from pathlib import Path

ROLES = {"human": "user", "gpt": "assistant", "system": "system"}


def message(turn: dict[str, str]) -> dict[str, str]:
    return {"role": ROLES[turn["from"]], "content": turn["value"]}


if __name__ == "__main__":
    source, output = map(Path, sys.argv[1:])
    with output.open("w", encoding="utf-8") as file:
        for row in json.loads(source.read_text(encoding="utf-8")):
            history = [message(turn) for turn in row["conversations"]]
            pair = {side: [*history, message(row[side])] for side in ("chosen", "rejected")}
            file.write(json.dumps(pair, ensure_ascii=False) + "\n")
