"""The client with servers that fail on purpose, which a real vLLM does not do."""

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from helpers import ROOT, conversation, jsonl, run

import client
from reward_model.data.conversations import read_conversations
from reward_model.scoring.reference_check import compare_scores, longrope_problem, text_difference

QUESTION = conversation("Hi?", "Hello.")
# Replies with status 200 that are not a score, by the name of the model, and the message of the client.
ODD = {
    "no JSON": (b"<html>welcome</html>", "must return one score, not b'<html>"),
    "no data": (b"{}", "must return one score, not b'{}'"),
    "an empty list": (b'{"data": []}', "must return one score"),
    "two numbers": (b'{"data": [{"data": [1.0, 2.0]}]}', "must return one score"),
    "a string": (b'{"data": [{"data": ["1.5"]}]}', "must return one score"),
    "null": (b'{"data": [{"data": [null]}]}', "must return one score"),
    "true": (b'{"data": [{"data": [true]}]}', "returned the score True|must return one score"),
    "nan": (b'{"data": [{"data": [NaN]}]}', "returned the score nan; check the weights"),
    "infinity": (b'{"data": [{"data": [-Infinity]}]}', "returned the score -inf"),
}
STATUS = {
    "key": (401, "returned 401: no memory Set VLLM_API_KEY"),
    "name": (404, "returned 404: no memory Check --model and --base_url"),
    "too long": (400, "returned 400: no memory"),
    "moved": (301, "returned 301"),
}


class Handler(BaseHTTPRequestHandler):
    """Does what the name of the model says; the score of an answer is its length."""

    protocol_version = "HTTP/1.1"  # keeps connections
    wbufsize = -1  # head and body of an answer in one packet

    def setup(self) -> None:
        super().setup()
        self.server.open.append(self.connection)

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server, what, text = self.server, request["model"], request["messages"][-1]["content"]
        server.received.append(json.dumps(request["messages"]))
        server.connections.add(self.client_address)
        answer = json.dumps({"data": [{"data": [len(text)]}]}).encode()
        if what == "hangs up once" and len(server.received) == 1:
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
        elif what == "slow":
            time.sleep(1)
            self.close_connection = True
        elif what.startswith("drips"):
            self.drip(what, answer)
        elif what == "broken" or text == "breaks" or (what in ("503 once", "429 once") and len(server.received) == 1):
            self.answer(429 if "429" in what else 503, b'{"error": {"message": "no memory"}}')
        elif text == "too long" or what in STATUS:
            self.answer(STATUS.get(what, (400,))[0], b'{"error": {"message": "no memory"}}')
        else:
            time.sleep(server.delay)
            self.answer(200, ODD.get(what, (answer,))[0])

    def do_GET(self) -> None:
        self.answer(200, b"")

    def answer(self, status: int, text: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def drip(self, what: str, answer: bytes) -> None:
        """A byte at a time, slower than in time but faster than any timeout of a socket; from the head or the body."""
        head = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"
        if what == "drips its body":
            self.wfile.write(head)
            head = b""
        self.close_connection = True
        try:
            for byte in head + answer:
                self.wfile.write(bytes([byte]))
                self.wfile.flush()
                time.sleep(0.05)
        except OSError:
            pass  # hung up on

    def log_message(self, format: str, *args: object) -> None:
        """Not in the middle of the report of the tests."""


class Local(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, port: int = 0, delay: float = 0.0) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.received: list[str] = []
        self.connections: set = set()
        self.open: list[socket.socket] = []
        self.delay, self.url = delay, f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def die(self) -> None:
        """As a process that is killed: nothing listens, and what was open is closed."""
        self.shutdown()
        self.server_close()
        for connection in self.open:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def __exit__(self, *error: object) -> None:
        self.die()

    def handle_error(self, *request: object) -> None:
        """Clients hang up on it."""


@pytest.fixture
def server() -> Iterator[Local]:
    with Local() as one:
        yield one


def test_connections_are_kept(server) -> None:
    assert [client.score(QUESTION, server.url, "fine") for _ in range(3)] == [6.0] * 3
    assert len(server.connections) == 1


@pytest.mark.parametrize("what", ["hangs up once", "503 once", "429 once"])
def test_a_request_that_failed_is_sent_again(what) -> None:
    for retries in (1, 0):
        with Local() as server:
            if retries:
                assert client.score(QUESTION, server.url, what, timeout=5, retries=1) == 6 and len(server.received) == 2
            else:
                with pytest.raises(client.ServerError):
                    client.score(QUESTION, server.url, what, timeout=5, retries=0)


def test_odd_answers_of_a_server(server) -> None:
    """Each is reported in a sentence and not retried; the command shows it without a traceback."""
    messages = {what: message for what, (_, message) in [*ODD.items(), *STATUS.items()]}
    messages |= {"slow": r"did not answer within 1 s; raise --timeout"}
    messages |= {"drips its body": "did not answer within", "drips from the head": "did not answer within"}
    for what, words in messages.items():
        server.received.clear()
        with pytest.raises(client.ServerError, match=words):
            client.score(QUESTION, server.url, what, timeout=1)
        assert len(server.received) == 1, f"{what} is retried"
    with pytest.raises(client.ServerError, match=r"/pooling returned 503: no memory"):
        client.score(QUESTION, server.url, "broken", retries=1)
    shown = run(sys.executable, "client.py", "--base_url", server.url, "--model", "nan", "Hi?", "Hello.", check=False)
    assert shown.returncode == 1 and shown.stderr.startswith("error: ") and shown.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        ("--base_url 127.0.0.1:5001", {}, "is not an http:// or https:// address such as http://127"),
        ("--base_url http://127.0.0.1:port", {}, "is not an http:// or https:// address such as http://127"),
        ("--base_url http://127.0.0.1:99999 --retries 0", {}, "Cannot reach a server at http://127.0.0.1:99999"),
        ("--base_url ftp://127.0.0.1", {}, "is not an http:// or https:// address such as"),
        ("--timeout 0", {}, "timeout=0.0, retries=4"),
        ("--timeout -1", {}, "timeout=-1.0, retries=4"),
        ("--timeout nan", {}, "timeout=nan"),
        ("--timeout inf", {}, "timeout=inf"),
        ("--retries -1", {}, "retries=-1"),
        ("--concurrency 0", {}, "concurrency=0"),
        ("", {"VLLM_API_KEY": "a\nb"}, "VLLM_API_KEY contains a line break"),
        ("", {"VLLM_API_KEY": "schlüssel€"}, "VLLM_API_KEY contains a line break or another character"),
        ("--retries 0", {}, "5001: [Errno 111] Connection refused. Start one: sh infer_vllm.sh MODEL_DIR"),
        ("--input missing.jsonl --output x.jsonl", {}, "missing.jsonl"),
        ("--input scores.parquet --output x.jsonl", {}, "scores.parquet"),
    ],
)
def test_mistakes_of_users_are_reported_in_a_sentence(arguments, environment, message, tmp_path) -> None:
    what = [] if "--input" in arguments else ["Hi?", "Hello."]
    shown = run(sys.executable, ROOT / "client.py", *arguments.split(), *what, cwd=tmp_path, check=False, **environment)
    assert shown.returncode == 1 and message in shown.stderr and "Traceback" not in shown.stderr, shown.stderr
    assert not list(tmp_path.iterdir())


def test_a_copied_file_scores_without_the_package_and_without_a_proxy(server, tmp_path: Path) -> None:
    shutil.copy(ROOT / "client.py", tmp_path)
    command = [sys.executable, "client.py", "--base_url", server.url, "--model", "fine"]
    proxies = dict.fromkeys(("http_proxy", "HTTP_PROXY", "all_proxy"), "http://127.0.0.1:9") | {"no_proxy": ""}
    shown = run(*command, "Hi?", "Hello.", "Hi.", cwd=tmp_path, **proxies)
    assert shown.stdout == "+6.0000  Hello.\n+3.0000  Hi.\n"
    shown = run(*command, "--input", "a.jsonl", "--output", "b.jsonl", cwd=tmp_path, check=False)
    assert shown.returncode == 1 and shown.stderr == "error: No module named 'reward_model'\n"


def rows_to_score() -> list[dict]:
    """Return rows of every kind, with some bad ones, and with answers of different lengths."""
    rows: list = []
    for number in range(60):
        answers = ["a" * (3 * number + n + 1) for n in range(3)]
        both = dict(
            zip(("chosen", "rejected"), (conversation(f"Q{number}", answer) for answer in answers), strict=False)
        )
        rows += [{"messages": conversation(f"Q{number}", answers[0]), "id": number}, both]
        rows += [{"prompt": f"Q{number}", "responses": answers}, conversation(f"Q{number}", answers[1])]
    rows[17] = {"messages": conversation("Hi", "Hello.")[:1]}
    rows[18] = {"messages": conversation("Hi", "too long"), "chosen": []}
    rows[19] = {"prompt": "Hi", "responses": ["one", ""]}
    rows[20] = "a text"
    rows[21] = {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}, QUESTION[1]]}
    rows[22] = {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]}
    return rows


def test_a_file_is_scored_and_continued(server, tmp_path: Path) -> None:
    rows = rows_to_score()
    source, output = jsonl(tmp_path / "in.jsonl", rows), tmp_path / "new directory" / "scores.jsonl"
    source.write_text(source.read_text() + "{broken\n")
    command = [sys.executable, "client.py", "--base_url", server.url, "--input", source, "--output", output]
    shown = run(*command, check=False)
    assert shown.returncode == 1 and "241 rows -> " in shown.stdout and '5 of them have an "error"' in shown.stdout
    complete = output.read_bytes()
    written = [json.loads(line) for line in complete.splitlines()]
    for number, (row, result) in enumerate(zip(rows, written, strict=False)):
        if number in (17, 18, 19, 20):
            assert result["error"]
        elif isinstance(row, list):
            assert result == {"messages": row, "score": len(row[-1]["content"])}
        elif "responses" in row:
            assert result == row | {"scores": list(map(len, row["responses"]))}
        elif "chosen" in row:
            lengths = {f"{side}_score": len(row[side][-1]["content"]) for side in ("chosen", "rejected")}
            assert result == row | lengths
        else:
            assert result["score"] == 6 if number == 21 else result["score"] >= 1
    assert "in.jsonl:18: messages ends with the role 'user'" in written[17]["error"]
    assert "400: no memory" in written[18]["error"] and "answer 2 ends with an empty answer" in written[19]["error"]
    assert "in.jsonl:241" in written[-1]["error"]

    for cut in random.Random(0).sample(range(len(complete)), 4):  # runs that were killed
        output.write_bytes(complete[:cut])
        run(*command, check=False)
        assert output.read_bytes() == complete


CALL = {"name": "f", "arguments": {"town": "Zürich", "at": {"z": 1.5, "a": None}}}
AS_TEXT = {"id": "", "type": "function", "function": CALL | {"arguments": json.dumps(CALL["arguments"])}}
# Keys of the answer in a row, and those that are sent; or why the row is refused.
PARTS: list[tuple[dict, dict | str]] = [
    ({"tool_calls": [{"function": CALL}], "reasoning": None}, {"content": "", "tool_calls": [AS_TEXT]}),
    ({"content": None, "tool_calls": [AS_TEXT | {"id": None, "index": 0}]},
     {"content": "", "tool_calls": [AS_TEXT | {"index": 0}]}),
    ({"tool_calls": [AS_TEXT | {"id": "a"}]}, {"content": "", "tool_calls": [AS_TEXT | {"id": "a"}]}),
    ({"tool_calls": json.dumps([AS_TEXT])}, {"content": "", "tool_calls": [AS_TEXT]}),
    ({"function_call": CALL}, {"content": "", "tool_calls": [AS_TEXT]}),
    ({"content": "Hi", "reasoning_content": "", "tool_calls": []}, {"content": "Hi", "reasoning": ""}),
    ({"content": "Hi", "reasoning": "a", "reasoning_content": "a"}, {"content": "Hi", "reasoning": "a"}),
    ({"content": "Hi", "name": "me", "thinking": None}, {"content": "Hi", "name": "me"}),
    ({"content": "Hi", "language": "en"}, {"content": "Hi", "language": "en"}),
    ({"content": "Hi", "thinking": "Hm."}, "vLLM drops 'thinking'"),
    ({"tool_calls": [{"function": CALL | {"arguments": "[1]"}}]}, "a tool call is not"),
    ({"tool_calls": [{"function": CALL | {"arguments": "{town"}}]}, "a tool call is not"),
    ({"tool_calls": [CALL]}, "a tool call is not"),
    ({"tool_calls": "f(town)"}, "a tool call is not"),
]  # fmt: skip


def test_every_part_of_a_message_is_sent_or_its_row_refused(server) -> None:
    rows = [({"messages": [QUESTION[0], {"role": "assistant"} | keys]}, expected) for keys, expected in PARTS]
    rows.append(({"messages": [QUESTION[0] | {"reasoning": "a"}, QUESTION[1]]}, "vLLM drops 'reasoning'"))
    judge = client.RewardClient(server.url, "fine", concurrency=1)
    for row, expected in rows:
        read = read_conversations(row, "row")
        result = read.error or judge.score_group(read.conversations)
        if isinstance(expected, str):
            assert isinstance(result, str) and expected in result
        else:
            assert json.loads(server.received.pop(0))[1] == {"role": "assistant"} | expected
    with_result = [QUESTION[0], {"role": "assistant", "tool_calls": [AS_TEXT]}, {"role": "tool", "content": "Dry."}]
    judge.score([*with_result, QUESTION[1]])
    assert json.loads(server.received.pop(0))[2] == {"role": "tool", "content": "Dry.", "tool_call_id": ""}
    assert not server.received


def test_a_foreign_file_is_left_as_it_is(server, tmp_path: Path) -> None:
    source = jsonl(tmp_path / "in.jsonl", [{"messages": QUESTION}, {"messages": conversation("Hi?", "Yes.")}])
    foreign = {
        "text.jsonl": b"my notes\nwithout a last line break",
        "one line.jsonl": b'{"a": 1}',
        "other rows.jsonl": json.dumps({"messages": conversation("a", "b"), "score": 1.0}).encode() + b"\n{",
        "the same without scores.jsonl": source.read_bytes(),
        "of another model.jsonl": (json.dumps({"messages": QUESTION, "score": 5.0}) + '\n{"mess').encode(),
        "too many.jsonl": "".join(json.dumps({"messages": QUESTION, "score": 6.0}) + "\n" for _ in range(3)).encode(),
    }
    command = [sys.executable, "client.py", "--base_url", server.url, "--input", source, "--output"]
    for name, content in foreign.items():
        (tmp_path / name).write_bytes(content)
        shown = run(*command, tmp_path / name, check=False)
        assert shown.returncode == 1 and "choose a different --output" in shown.stderr, (name, shown.stderr)
        assert (tmp_path / name).read_bytes() == content, name
    (tmp_path / "link.jsonl").symlink_to(source)
    for name, message in {
        "link.jsonl": "is the same file as --input",
        "/dev/full": "/dev/full is the same file as --input, or not a regular file",
    }.items():
        shown = run(*command, tmp_path / name, check=False)
        assert shown.returncode == 1 and message in shown.stderr and "Traceback" not in shown.stderr
    assert len(source.read_bytes().splitlines()) == 2


def test_a_server_that_dies_is_taken_out_and_in_again(tmp_path: Path) -> None:
    """Answers to one prompt go to one server; both are used; when one dies, the other has its rows."""
    prompts = [[conversation(f"Q{number}", "a" * n) for n in range(1, 5)] for number in range(100)]
    conversations = [messages for group in prompts for messages in group]
    first, second = Local(delay=0.05), Local(delay=0.05)
    judge = client.RewardClient([first.url, second.url], "fine", concurrency=8)
    back: list[Local] = []
    threading.Timer(0.4, first.die).start()
    threading.Timer(0.8, lambda: back.append(Local(first.server_port))).start()
    assert judge.score_many(conversations) == [len(messages[-1]["content"]) for messages in conversations]
    assert min(len(first.received), len(second.received)) > 5, "one was not used"
    servers = {prompt: set() for prompt in range(100)}
    for one in (first, second):
        for text in one.received:
            servers[int(json.loads(text)[0]["content"][1:])].add(one)
    assert Counter(map(len, servers.values()))[2] <= 8, "answers to one prompt went to several servers"
    assert back[0].received, "it came back and was not used"
    back[0].die()
    second.die()


def test_what_one_server_does_not_answer_in_time_another_does() -> None:
    with Local(delay=5) as hung, Local() as other:
        judge = client.RewardClient([hung.url, other.url], "fine", timeout=0.3, concurrency=4)
        conversations = [conversation(f"Q{n}", "a" * n) for n in range(1, 100)]
        assert judge.score_many(conversations) == list(range(1, 100))


def test_poison_and_a_stop_lose_nothing(tmp_path: Path) -> None:
    """A row that always gives 503 gets an error; Ctrl-C prints one line, and the same command resumes."""
    rows = [{"messages": conversation("Hi?", "breaks" if number == 3 else "a" * number)} for number in range(1, 200)]
    source, output = jsonl(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    with Local(delay=0.05) as server:
        command = [sys.executable, "client.py", "--base_url", server.url, "--retries", "1", "--concurrency", "4"]
        command += ["--input", str(source), "--output", str(output)]
        process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True)
        while not output.exists() or output.read_bytes().count(b"\n") < 20:
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=20)
        assert process.returncode == 130 and "Traceback" not in errors
        assert errors.splitlines()[-1] == "Stopped. Scored rows are kept; run the same command to resume."
        assert output.read_bytes().count(b"\n") < 190
        shown = run(*command, check=False)
    assert shown.returncode == 1 and "1 of them have an" in shown.stdout
    written = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["messages"] for row in written] == [row["messages"] for row in rows]
    assert [row.get("score") for row in written] == [None if n == 3 else n for n in range(1, 200)]


def test_a_run_stops_when_no_server_is_left(server, tmp_path: Path) -> None:
    """Rows are not written off as errors because the server went away."""
    rows = [{"messages": conversation("Hi?", "a" * number)} for number in range(1, 400)]
    output = tmp_path / "out.jsonl"
    server.delay = 0.02
    command = [sys.executable, "client.py", "--base_url", server.url, "--retries", "1", "--concurrency", "2", "--input"]
    process = subprocess.Popen(
        [*command, str(jsonl(tmp_path / "in.jsonl", rows)), "--output", str(output)],
        cwd=ROOT, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while not output.exists() or output.read_bytes().count(b"\n") < 20:
        time.sleep(0.02)
    server.die()
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 1 and errors.splitlines()[-1].startswith("error: Cannot reach a server at"), errors
    assert b"error" not in output.read_bytes()


def test_rank(server, tmp_path: Path) -> None:
    rows = [{"prompt": "Q", "responses": ["aa", "a", "aaaa", "aaa"]}, {"prompt": "Q", "responses": ["b", "a"]}]
    output, pairs = tmp_path / "ranked.jsonl", tmp_path / "pairs.jsonl"
    source = jsonl(tmp_path / "in.jsonl", rows)
    run(sys.executable, "client.py", "rank", "--base_url", server.url, "--input", source, "--output", output,
        "--pairs_out", pairs)  # fmt: skip
    written = [json.loads(line) for line in output.read_text().splitlines()]
    assert [(row["order"], row["best"]) for row in written] == [([2, 3, 0, 1], 2), ([0, 1], 0)]
    best_and_worst = {"chosen": conversation("Q", "aaaa"), "rejected": conversation("Q", "a")}
    assert [json.loads(line) for line in pairs.read_text().splitlines()] == [best_and_worst], "no pair of a tie"


def test_reward_for_trl(server) -> None:
    judge = client.RewardClient(server.url, "fine")
    prompts = [[{"role": "user", "content": "Hi"}]] * 2 + ["Hi"]
    completions = [[{"role": "assistant", "content": "abc"}], [{"role": "assistant", "content": "too long"}], "ab"]
    assert judge.reward(prompts=prompts, completions=completions, some_column=[1, 2, 3]) == [3.0, None, 2.0]
    assert judge.reward.__name__ == "reward"


def test_broken_rules_are_named() -> None:
    text, here = "<|im_start|>user\nHi<|im_end|>\n", [2.0, -1.0, 0.5, 3.0]
    for served, message in {
        text + "<|im_end|>": "appends '<|im_end|>'",
        "<|im_start|>system\nBe kind.<|im_end|>\n" + text: "a system message before",
        text[:-1]: "leaves out '\\n'",
        text: "the same text has different tokens",
        text.replace("im_start", "user"): "renders with a different chat template: at character 3 'user",
    }.items():
        assert message in text_difference(text, served)
    dates = [f"Today Date: {day} Jul 2024\n{text}" for day in (25, 26)]
    assert "prints a different date" in text_difference(*dates)
    phi = '{"rope_parameters": {"rope_type": "longrope", "original_max_position_embeddings": 4096}}'
    assert longrope_problem(phi, 131072).endswith("Start the server with --max-model-len 4096.")
    assert longrope_problem(phi, 4096) == longrope_problem(phi.replace("longrope", "yarn"), 131072) == ""
    for served, message in {
        (0.8807971, 0.2689414, 0.6224593, 0.9525741): "applies a sigmoid",
        (0.0, 0.0, 0.0, 0.0): "served reward head is zero",
        (1.0, 1.0, 1.0, 1.0): "reads the first token",
        (1.0, 0.0, 0.2, 0.3): "mean pooling over all tokens",
        (2.01, -1.0, 0.5, 3.02): "bfloat16 explains it",
        (2.4, -1.1, 0.5, 3.3): "coarsely rounded",
        (-1.0, 3.0, 0.5, 0.2): "different weights",
    }.items():
        is_fault, why = compare_scores(here, list(served), 1e-4, 1e-2, [1.0, 0.0, 0.2, 0.3])
        assert message in why and is_fault == ("round" not in message and "bfloat16" not in message)
    # Rounding explains five times its noise. Scores that hardly differ prove nothing more.
    assert compare_scores(here, [2.2, -1.2, 0.4, 3.1], 0.05, 0.05) == (False, "")
    assert not compare_scores([0.01, 0.02, 0.0], [0.03, -0.01, 0.02], 0.004, 0.004)[0]
