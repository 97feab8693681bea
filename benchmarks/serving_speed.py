"""Compare the speed of client.py with that of a bare load generator that sends the same bodies to a server.

    sh infer_vllm.sh save/demo      # in another terminal; any reward model
    python -m benchmarks.serving_speed --requests 2000

Each round runs the bare generator (asyncio and sockets), `score_many` with the same concurrency, and some of the
requests one after another. Then 16 answers to each of several long prompts are scored in three orders: as rows of a
file (the answers to a prompt one after another), grouped by prompt, and shuffled.
"""

import argparse
import asyncio
import json
import random
import re
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from benchmarks.scoring_speed import WORDS, best_of_n
from client import BASE_URL, MODEL, Messages, RewardClient

Conversations = list[Messages]


def short(requests: int) -> Conversations:
    """Return questions of about 12 words with answers of about 40."""
    draw = random.Random(0)

    def text(words: int) -> str:
        return " ".join(draw.choices(WORDS, k=words))

    return [
        [{"role": "user", "content": f"{n} {text(12)}"}, {"role": "assistant", "content": text(draw.randint(20, 60))}]
        for n in range(requests)
    ]


def bare(url: str, concurrency: int, conversations: Conversations) -> list[float]:
    """Return the scores of the same bodies over plain sockets, without any error handling."""
    place, bodies = urlsplit(url), deque(enumerate(conversations))
    scores = [0.0] * len(conversations)

    async def send() -> None:
        reader, writer = await asyncio.open_connection(place.hostname, place.port)
        while bodies:
            number, messages = bodies.popleft()
            body = {"model": MODEL, "messages": messages, "add_generation_prompt": False, "use_activation": False}
            content = json.dumps(body).encode()
            head = f"POST /pooling HTTP/1.1\r\nHost: {place.netloc}\r\nContent-Type: application/json\r\n"
            writer.write(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
            answer = await reader.readuntil(b"\r\n\r\n")
            length = int(re.search(rb"content-length: (\d+)", answer.lower())[1])  # type: ignore[index]
            scores[number] = json.loads(await reader.readexactly(length))["data"][0]["data"][0]
        writer.close()

    async def run() -> None:
        await asyncio.gather(*(send() for _ in range(concurrency)))

    asyncio.run(run())
    return scores


def shuffled(conversations: Conversations) -> Conversations:
    return random.Random(0).sample(conversations, len(conversations))


def speed(score: Callable[[list[Any]], Any], some: list[Any]) -> float:
    started = time.perf_counter()
    score(some)
    return len(some) / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base_url", default=BASE_URL)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[16, 64, 128])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=16, help="long prompts with 16 answers each; 0 skips them")
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    args = parser.parse_args()
    figures: dict[str, Any] = {"arguments": vars(args)}
    conversations = short(args.requests)
    warm = RewardClient(args.base_url).score_many(conversations[:200])  # the server's first requests are slower
    assert np.allclose(warm, bare(args.base_url, 8, conversations[:200]), atol=1e-3)
    one = RewardClient(args.base_url, concurrency=1)
    for concurrency in args.concurrency:
        many = RewardClient(args.base_url, concurrency=concurrency)
        rounds = []
        for _ in range(args.rounds):
            generator = speed(partial(bare, args.base_url, concurrency), conversations)
            ours = speed(many.score_many, conversations)
            rounds.append((generator, ours, speed(one.score_many, conversations[: args.requests // 10])))
        speeds = np.array(rounds)
        generator, ours, alone = np.median(speeds, 0)
        print(
            f"{concurrency} at a time: {ours:.1f} conversations/s, {np.median(speeds[:, 1] / speeds[:, 0]):.2f} of a "
            f"bare load generator ({generator:.1f}), {ours / alone:.1f} times one by one ({alone:.1f})",
            flush=True,
        )
        figures[f"concurrency {concurrency}"] = speeds.tolist()
    # Use new prompts in every round, because the server caches those that it has seen.
    groups = best_of_n(args.prompts * 3 * args.rounds, 16)
    ways: dict[str, Callable[[list[Conversations]], Any]] = {
        "as rows of a file": lambda some: list(many.map(many.score_group, some)),
        "grouped by prompt": lambda some: many.score_many([one for group in some for one in group]),
        "shuffled": lambda some: many.score_many(shuffled([one for group in some for one in group])),
    }
    for way, score in ways.items() if args.prompts else []:
        speeds = []
        for _ in range(args.rounds):
            some, groups = groups[: args.prompts], groups[args.prompts :]
            speeds.append(16 * speed(score, some))
        print(f"best of 16, long prompts, {way}: {np.median(speeds):.1f} conversations/s", flush=True)
        figures[f"best of 16, {way}"] = speeds
    if args.json:
        args.json.write_text(json.dumps(figures, default=str, indent=2) + "\n")


if __name__ == "__main__":
    main()
