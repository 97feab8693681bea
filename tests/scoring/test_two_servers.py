"""Two real servers, one killed and started again, and the client killed: every row once, and the same scores."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import PAIRS, ROOT, Server, is_gone, jsonl, run


@pytest.mark.slow
def test_rows_survive_servers_and_clients(serve, runs, tmp_path: Path) -> None:
    model, second = runs["usual template"].model, runs["usual template"]
    (first,) = serve(model)
    turns = [pair[side] for pair in PAIRS for side in ("chosen", "rejected")]
    rows = [{"id": n, "messages": [{"role": "user", "content": f"{n}?"}, turns[n % 48][-1]]} for n in range(800)]
    source, undisturbed, output = jsonl(tmp_path / "in.jsonl", rows), tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    urls = ["--base_url", first.url, "--base_url", second.url]
    run(sys.executable, "client.py", *urls, "--input", source, "--output", undisturbed)

    def lines() -> int:
        return output.read_bytes().count(b"\n") if output.exists() else 0

    def until(count: int) -> None:
        while lines() < count and asking.poll() is None:
            time.sleep(0.02)

    command = [sys.executable, "client.py", *urls, "--input", str(source), "--output", str(output)]
    asking = subprocess.Popen(command, cwd=ROOT)
    until(100)
    os.killpg(first.process.pid, signal.SIGKILL)
    until(300)  # which the other server gives
    asking.kill()
    asking.wait()
    assert 300 <= lines() < 800, "the client was to be killed before its end"
    first.process.wait()
    assert is_gone(first.process.pid)
    again = Server(model, tmp_path / "again.log", int(first.url.rsplit(":", 1)[1]))
    again.wait()
    try:
        run(*command)
    finally:
        again.process.terminate()
        again.process.wait(timeout=60)
    scores = [
        {row["id"]: row["score"] for row in map(json.loads, file.read_text().splitlines())}
        for file in (undisturbed, output)
    ]
    assert lines() == 800 and list(scores[1]) == list(range(800))
    assert scores[1] == pytest.approx(scores[0], abs=1e-4)
