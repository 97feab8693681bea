"""Ask reward models served by infer_vllm.sh for scores. This file needs nothing but Python: copy it where you need it.

    python client.py "question" "answer" ["another answer" …]                    # the score of each answer, best first
    python client.py --input rows.jsonl --output scores.jsonl --base_url http://a:5001 --base_url http://b:5001
    python client.py rank --input rows.jsonl --output ranked.jsonl --pairs_out pairs.jsonl           # best of n answers
    python client.py check --model_dir save/demo            # are the served scores those that the model was saved with?

    from client import RewardClient, get_score_api, score
    get_score_api("What is 2 + 2?", "4.")                           # float, higher is better
    score([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}])
    RewardClient(["http://a:5001", "http://b:5001"]).score_many(conversations)

A score is the raw logit of the reward head: any real number, to be compared between answers to the same question. A row
is {"messages": […]}, {"prompt": …, "responses": […]} or {"chosen": …, "rejected": …}, with "tools" if the assistant had
any. The API key, if the servers have one, is read from the environment variable VLLM_API_KEY.
"""

import argparse
import contextlib
import hashlib
import http.client
import json
import logging
import math
import os
import random
import re
import socket
import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from itertools import chain, count
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

BASE_URL = "http://127.0.0.1:5001"
MODEL = "base_reward"
TIMEOUT = 60.0  # seconds for one whole answer of a server
RETRIES = 4  # after a connection error, 429 or 5xx: at once, then after about 1, 2 and 4 seconds
CONCURRENCY = 64
CONNECT = 10.0  # seconds for a connection
IDLE = 3.0  # seconds after which a kept connection is opened anew: vLLM closes it after 5
# Scores differ by at most DRIFT times the noise that rounding makes, as measured when the model was saved: 35 correct
# computations in bfloat16 of five models differed by up to 3.3 times that noise, wrong weights by 40 times and more.
DRIFT = 5
# Noise of a dtype as a share of bfloat16's: float16 has three more bits.
ROUNDING = {"float32": 0.0, "float16": 1 / 8, "bfloat16": 1.0}
FP32_NOISE = 1e-4  # vLLM on a CPU with AVX-512 was 2e-4 off for a model of 30 layers, where Transformers was exact
CURES = {401: " Set VLLM_API_KEY.", 404: " --model and --base_url must name what the server serves."}
DATE = r"\d{4}-\d\d-\d\d|\d\d? [A-Z][a-z]{2,8},? \d{4}|[A-Z][a-z]{2,8} \d\d?, \d{4}"
# Keys of messages that chat templates read and vLLM 0.32 drops. Other keys (a date, a language) are never rendered.
DROPPED = "thinking thought tool_plan tool_responses reasoning_details recipient channel documents images audio".split()
OF_ASSISTANT = ["tool_calls", "reasoning", "reasoning_content"]  # which vLLM drops from messages of other roles
log = logging.getLogger("client")
Messages = list[dict[str, Any]]


class ServerError(RuntimeError):
    """No server is there, or none that serves this model; the message is its own where it gave one."""


class Refused(ServerError):
    """One conversation that has no score; others may have one."""


class FileError(ValueError):
    """A file that cannot be the input or output."""


class Server:
    """An address, its kept connections, and whether it answers."""

    def __init__(self, url: str) -> None:
        try:
            split = urlsplit(url.rstrip("/"))
            self.address, self.path = (split.hostname or "", split.port), split.path
        except ValueError as error:
            raise ServerError(f"--base_url {url}: {error}.") from None
        if split.scheme not in ("http", "https") or not split.hostname:
            raise ServerError(f"--base_url {url}: not an address such as {BASE_URL}, with http:// or https://.")
        self.url, self.in_flight, self.down, self.look_again = url.rstrip("/"), 0, False, 0.0
        self.connect = http.client.HTTPSConnection if split.scheme == "https" else http.client.HTTPConnection
        self.idle: list[tuple[http.client.HTTPConnection, float]] = []

    def request(self, path: str, body: bytes | None, timeout: float) -> tuple[int, bytes]:
        """Status and text of the answer to a POST, without a body to a GET; raises OSError, HTTPException."""
        key, deadline = os.environ.get("VLLM_API_KEY", ""), time.monotonic() + timeout
        if not key.isprintable() or not key.isascii():
            raise ServerError("VLLM_API_KEY holds a line break or another character that no HTTP header may have.")
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        try:
            connection, used = self.idle.pop()
        except IndexError:
            connection, used = self.connect(*self.address), 0.0
        if time.monotonic() - used > IDLE:
            connection.close()
        watch(os.getpid())
        connected = False
        try:
            if connection.sock is None:
                connection.timeout = min(timeout, CONNECT)
                try:
                    connection.connect()
                except TimeoutError:
                    raise ConnectionError("no connection in time") from None
            connected = True
            connection.sock.settimeout(timeout)
            # A socket's timeout is one for each of its bytes; so that it is one for the answer, see watch.
            number = next(NUMBERS)
            WATCHED[number] = connection.sock, deadline
            try:
                connection.request("POST" if body else "GET", self.path + path, body, headers)
                response = connection.getresponse()
                answer = response.status, response.read()
            finally:
                del WATCHED[number]
            if time.monotonic() >= deadline:  # half an answer without a length looks like a whole one
                raise TimeoutError
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            # A connection that was hung up looks like one that the server closed.
            raise TimeoutError if connected and time.monotonic() >= deadline else error from None
        self.idle.append((connection, time.monotonic()))
        return answer


NUMBERS = count()
WATCHED: dict[int, tuple[socket.socket, float]] = {}  # sockets that wait for an answer, and until when


@cache
def watch(process: int) -> None:
    """Hang up when the time of a request is over, in a thread that each process has once."""

    def hang_up() -> None:
        while True:
            time.sleep(0.05)
            for sock, deadline in WATCHED.copy().values():
                if time.monotonic() >= deadline:
                    with contextlib.suppress(OSError):
                        sock.shutdown(socket.SHUT_RDWR)

    threading.Thread(target=hang_up, daemon=True).start()


class RewardClient:
    """Servers of one model, any of which may die and come back; safe to use from several threads."""

    def __init__(
        self,
        base_urls: str | list[str] = BASE_URL,
        model: str = MODEL,
        timeout: float = TIMEOUT,
        retries: int = RETRIES,
        concurrency: int = CONCURRENCY,
    ) -> None:
        if not 0 < timeout < threading.TIMEOUT_MAX or retries < 0 or concurrency < 1:
            found = f"timeout {timeout:g}, retries {retries}, concurrency {concurrency}"
            raise ServerError(f"{found}: give seconds above 0, a number from 0 and a number from 1.")
        self.servers = [Server(url) for url in ([base_urls] if isinstance(base_urls, str) else base_urls)]
        self.model, self.timeout, self.retries, self.concurrency = model, timeout, retries, concurrency
        self.lock = threading.Lock()
        self.asked_last: dict[int, Server] = {}

    def score(self, messages: Messages, tools: Any = None, **options: Any) -> float:
        """The score of a conversation that ends with an answer of an assistant who had `tools`."""
        body = self._body(messages, tools) | (options or {"use_activation": False})
        return self._value(*self._ask("/pooling", body, hash(str(messages[:-1]))))

    def score_many(self, conversations: Iterable[Messages], tools: Iterable[Any] | None = None) -> list[float]:
        """Scores in the order given; `tools` has for each conversation those that the assistant had, or None."""
        conversations = list(conversations)
        return list(self.scores(zip(conversations, tools or [None] * len(conversations), strict=True)))

    def scores(self, each: Iterable[tuple[Messages, Any]]) -> Iterator[float]:
        """Scores of (conversation, tools) in order, as they come."""
        return self._map(lambda one: self.score(*one), each)

    def reward(self, prompts: list[Any], completions: list[Any], **columns: Any) -> list[float | None]:
        """For reward_funcs of trl's trainers; None, which trl leaves out, for a conversation that is refused."""

        def score_or_none(messages: Messages) -> float | None:
            with contextlib.suppress(Refused):
                return self.score(messages)
            return None

        both = zip(map(prompt_messages, prompts), map(answer_messages, completions), strict=True)
        return list(self._map(score_or_none, (prompt + answer for prompt, answer in both)))

    def score_rows(self, readings: Iterable["Reading"]) -> Iterator[tuple["Reading", list[float] | str]]:
        """Each row with its scores or an error, in order, as soon as they are there."""

        def score_row(reading: Reading) -> tuple[Reading, list[float] | str]:
            try:  # one after the other: when the second is asked, the prompt of the first is in the server's cache
                return reading, reading.error or [self.score(one, reading.tools) for one in reading.conversations]
            except Refused as error:
                return reading, str(error)

        return self._map(score_row, readings)

    def tokens(self, messages: Messages, tools: Any = None) -> tuple[list[int], str, int] | None:
        """Return the token ids that the server makes of a conversation, their text, and the server's --max-model-len;
        None where it has no /tokenize."""
        try:
            answer = json.loads(self._ask("/tokenize", self._body(messages, tools))[1])
            text = json.loads(self._ask("/detokenize", {"model": self.model, "tokens": answer["tokens"]})[1])["prompt"]
            return answer["tokens"], text, answer["max_model_len"]
        except ServerError:
            return None

    def _map(self, function: Callable, items: Iterable[Any]) -> Iterator[Any]:
        """Results in order, each as soon as it is there, while others are asked for."""
        pool, flying = ThreadPoolExecutor(self.concurrency), deque[Future]()
        try:
            for item in items:
                flying.append(pool.submit(function, item))
                while flying and (flying[0].done() or len(flying) >= 4 * self.concurrency):
                    yield flying.popleft().result()
            while flying:
                yield flying.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _body(self, messages: Messages, tools: Any) -> dict[str, Any]:
        sent = [message_to_send(one) for one in messages]
        body: dict[str, Any] = {"model": self.model, "messages": sent, "add_generation_prompt": False}
        # The field for what a chat template is given besides messages.
        return body | {"chat_template_kwargs": {"tools": tools}} if tools else body

    def _ask(self, path: str, body: dict[str, Any], prompt: int = 0) -> tuple[str, bytes]:
        """URL and text of an answer with status 200, whichever server gave it."""
        content = json.dumps(body).encode()
        for attempt in count():
            server = self._choose(prompt)
            url = server.url + path
            try:
                status, text = server.request(path, content, self.timeout)
                if status == 200:
                    server.down = server.down and len(self.servers) > 1  # of several, /health says it
                    return url, text
                # Of one conversation; of the key, the name of the model or the address: no other would fare better.
                kind = Refused if status in (400, 413, 422, 429) or status >= 500 else ServerError
                failure = kind(f"{url} answered {status}: {words(text)}{CURES.get(status, '')}")
                if status < 500 and status != 429:
                    raise failure
                if status >= 500:
                    self._take_out(server, f"answered {status}")
            except TimeoutError:
                self._take_out(server, "does not answer in time")
                failure = Refused(f"{url} gave no answer within {self.timeout:g} s; allow it more: --timeout")
                if all(server.down for server in self.servers):  # asking the same one again makes it no faster
                    raise failure from None
            except (OSError, http.client.HTTPException) as error:
                self._take_out(server, f"does not answer ({error or type(error).__name__})")
                failure = ServerError(f"No server answers at {server.url}; start one: sh infer_vllm.sh MODEL_DIR")
            finally:
                with self.lock:
                    server.in_flight -= 1
            if attempt >= self.retries:
                raise failure
            if attempt:
                time.sleep(random.uniform(0.75, 1.25) * min(2 ** (attempt - 1), 30))
        raise AssertionError

    def _choose(self, prompt: int) -> Server:
        """The server that had this prompt last, whose cache may hold it, or else the one with the least to do."""
        for server in self.servers if len(self.servers) > 1 else []:
            if server.down and time.monotonic() >= server.look_again:
                server.look_again = time.monotonic() + 2
                with contextlib.suppress(OSError, http.client.HTTPException):
                    if server.request("/health", None, min(self.timeout, 5))[0] == 200:
                        server.down = False
                        log.warning("%s answers again.", server.url)
        with self.lock:
            up = [server for server in self.servers if not server.down] or self.servers
            last = self.asked_last.pop(prompt, None)
            server = last if last in up else min(up, key=lambda server: server.in_flight)
            self.asked_last[prompt] = server
            if len(self.asked_last) > 4096:
                del self.asked_last[next(iter(self.asked_last))]
            server.in_flight += 1
            return server

    def _take_out(self, server: Server, why: str) -> None:
        with self.lock:
            was_down, server.down, server.look_again = server.down, True, time.monotonic() + 1
            server.idle.clear()
        if not was_down:
            log.warning("%s %s; trying again.", server.url, why)

    def _value(self, url: str, text: bytes) -> float:
        try:
            (value,) = json.loads(text)["data"][0]["data"]
            finite = math.isfinite(value) and not isinstance(value, bool)
        except (ValueError, LookupError, TypeError, OverflowError):
            found = text[:200].decode(errors="replace")
            raise ServerError(f"{url} is no reward model of infer_vllm.sh: not one score but {found!r}") from None
        if not finite:
            raise Refused(f"{url} gave the score {value}; look at the weights, and at the dtype that is served.")
        return float(value)


def words(text: bytes) -> str:
    """What a server says of an error."""
    try:
        return json.loads(text)["error"]["message"]
    except (ValueError, LookupError, TypeError):
        return text[:500].decode(errors="replace")


@cache
def _client(base_url: str, model: str, timeout: float, retries: int) -> RewardClient:
    return RewardClient(base_url, model, timeout, retries)


def score(
    messages: Messages,
    base_url: str = BASE_URL,
    model: str = MODEL,
    timeout: float = TIMEOUT,
    retries: int = RETRIES,
    tools: Any = None,
) -> float:
    """The score of a conversation that ends with an answer of an assistant who had `tools`; raises ServerError."""
    if error := fault(messages):
        raise Refused(error)
    return _client(base_url, model, timeout, retries).score(messages, tools)


def get_score_api(query: str, response: str, system: str | None = None, **server: Any) -> float:
    """The score of one answer to one question. A system message is sent only if given: training adds none."""
    before = [] if system is None else [{"role": "system", "content": system}]
    return score(before + prompt_messages(query) + answer_messages(response), **server)


# --- Rows of a file and their scores, also for infer_transformers.py --------------------------------------------------

ROLES = {"human": "user", "gpt": "assistant", "observation": "tool"}  # of turns {"from": …, "value": …}
RESULTS = {"pair": ("chosen_score", "rejected_score"), "responses": ("scores",), "messages": ("score",)}
WRITTEN = {"score", "scores", "chosen_score", "rejected_score", "error"}


class Reading(NamedTuple):
    """A row, what kind of row it is, and its conversations; or what is wrong with it."""

    row: dict[str, Any]
    kind: str = ""
    conversations: list[Messages] = []  # noqa: RUF012
    tools: Any = None
    error: str = ""


def read_row(row: Any, place: str) -> Reading:
    """The one place where it is decided what a row is."""
    row = {"messages": row} if isinstance(row, list) else row
    if not isinstance(row, dict):
        found = row if isinstance(row, Exception) else f"an object is needed, found {type(row).__name__}."
        return Reading({}, error=f"{place}: {found}")
    row = {name: value for name, value in row.items() if name not in WRITTEN}
    turns = row.get("messages") or row.get("conversations")
    prompt: Any = next((row[name] for name in ("prompt", "question", "conversations") if row.get(name)), [])
    if row.get("chosen") and row.get("rejected"):
        kind, answers = "pair", [row["chosen"], row["rejected"]]
    elif isinstance(row.get("responses"), list) and row["responses"]:
        kind, answers = "responses", row["responses"]
    elif isinstance(turns, list):
        kind, answers = "messages", [turns]
    else:
        keys = ", ".join(map(str, row))
        return Reading(row, error=f"{place}: no messages, no prompt and responses, no chosen and rejected ({keys}).")
    conversations = [answer_messages(answer) for answer in answers]
    if kind != "messages":
        before = prompt_messages(prompt)
        conversations = [answer if is_whole(answer) else before + answer for answer in conversations]
    tools = row.get("tools")
    try:
        tools = json.loads(tools) if isinstance(tools, str) and tools.strip() else tools
    except ValueError:
        return Reading(row, error=f"{place}: tools is not JSON: {tools[:60]!r}.")
    for number, messages in enumerate(conversations):
        if error := fault(messages):
            name = ("chosen", "rejected")[number] if kind == "pair" else f"{kind} {number + 1}"
            return Reading(row, error=f"{place}: {name}: {error}")
    return Reading(row, kind, conversations, tools or None)


def prompt_messages(prompt: Any) -> Messages:
    return [message(turn) for turn in prompt] if isinstance(prompt, list) else [{"role": "user", "content": prompt}]


def answer_messages(answer: Any) -> Messages:
    if isinstance(answer, str):
        return [{"role": "assistant", "content": answer}]
    return [message(turn) for turn in (answer if isinstance(answer, list) else [answer])]


def is_whole(answer: Messages) -> bool:
    return bool(answer) and isinstance(answer[0], dict) and answer[0].get("role") != "assistant"


def message(turn: Any) -> Any:
    """Return a turn as a message: from/value as role/content, text parts as one text (joined as vLLM joins them), and
    OpenAI's earlier function_call as tool_calls. Return anything else as it is."""
    if isinstance(turn, dict) and "from" in turn:
        turn = {"role": ROLES.get(turn["from"], turn["from"]), "content": turn.get("value")}
    if isinstance(turn, dict) and turn.get("function_call") and not turn.get("tool_calls"):
        turn = turn | {"function_call": None, "tool_calls": [{"function": from_json(turn["function_call"])}]}
    with contextlib.suppress(KeyError, TypeError):
        if isinstance(turn["content"], list):
            return turn | {"content": "\n".join(part["text"] for part in turn["content"])}
    return turn


def from_json(value: Any) -> Any:
    """Return the value of a JSON text; anything else as it is."""
    with contextlib.suppress(ValueError):
        return json.loads(value) if isinstance(value, str) else value
    return value


def message_to_send(one: Any) -> Any:
    """Return the message as vLLM accepts it, such that the chat template renders what it rendered in training.

    Raises:
        Refused: If vLLM would drop or change a part of the message without an error.
    """
    if not isinstance(one := message(one), dict):
        return one
    # Templates compare the id of a result with those of the calls: where neither has one, both are sent as empty.
    empty = {"content": "", "tool_call_id": ""} if one.get("role") == "tool" else {"content": ""}
    sent = empty | {key: value for key, value in one.items() if value is not None}
    dropped = DROPPED if sent.get("role") == "assistant" else DROPPED + OF_ASSISTANT
    if lost := [key for key in dropped if sent.get(key)]:
        raise Refused(f"vLLM drops {lost[0]!r}; remove it, or score with infer_transformers.py: {str(one)[:80]!r}")
    if "reasoning_content" in sent:  # vLLM reads `reasoning`, and gives it to the template under both names
        sent["reasoning"] = sent.pop("reasoning_content")
    if calls := from_json(sent.pop("tool_calls", None)):
        sent["tool_calls"] = list(map(call_to_send, calls))
    return sent


def call_to_send(call: Any) -> dict[str, Any]:
    """Return the tool call with an id, and its arguments as JSON text, as vLLM requires; it renders them as an object.

    A call without an id is sent with an empty one, which templates render like none.
    """
    function: Any = call.get("function") if isinstance(call, dict) else None
    arguments = from_json(function.get("arguments") or {}) if isinstance(function, dict) else None
    if not isinstance(arguments, dict):
        raise Refused(f'a tool call is not {{"function": {{"name": "…", "arguments": {{…}}}}}}: {str(call)[:200]}')
    sent = {"id": "", "type": "function"} | {key: value for key, value in call.items() if value is not None}
    return sent | {"function": function | {"arguments": json.dumps(arguments)}}


def fault(messages: Any) -> str:
    """Why a conversation can have no score, if that is so."""
    if not isinstance(messages, list) or not messages:
        return f"no list of messages but {str(messages)[:60]!r}."
    for number, one in enumerate(messages, 1):
        if not isinstance(one, dict) or not isinstance(one.get("role"), str):
            return f'message {number} is not {{"role": …, "content": …}}: {str(one)[:60]!r}.'
        if not isinstance(one.get("content"), str) and not one.get("tool_calls"):
            return f"message {number} has a content that is no text: {str(one.get('content'))[:60]!r}."
    first, last = messages[0]["role"], messages[-1]
    if first == "assistant" or last["role"] != "assistant":
        return f"it begins with {first!r} and ends with {last['role']!r}; a score is that of an assistant's answer."
    return "" if (last.get("content") or "").strip() or last.get("tool_calls") else "the answer is empty."


def with_scores(reading: Reading, scores: list[float]) -> dict[str, Any]:
    """The row as it is written."""
    names = RESULTS[reading.kind]
    return reading.row | ({"scores": scores} if names == ("scores",) else dict(zip(names, scores, strict=True)))


def ranked(reading: Reading, scores: list[float]) -> dict[str, Any]:
    """The row with the numbers, from 0, of its answers, best first."""
    order = sorted(range(len(scores)), key=lambda number: -scores[number])
    return with_scores(reading, scores) | {"order": order, "best": order[0]}


class Output(NamedTuple):
    """A file of scores as it was found: rows, those with an error, bytes (half a line may stand behind them), up to 16
    rows with their scores, by which the model is known; and the rows that are still to be scored."""

    file: Path
    done: int
    failed: int
    size: int
    known: list[tuple[Reading, list[float]]]
    readings: Iterator[Reading]


def look_at(output: Path, rows: Iterable[tuple[str, Any]]) -> Output:
    """What stands in `output`, if anything, of rows of (place, row); raises FileError where it is not ours."""
    readings: Iterator[Reading] = (read_row(row, place) for place, row in rows)
    done = failed = size = 0
    known: list[tuple[Reading, list[float]]] = []
    if output.exists() and not output.is_file():
        raise FileError(f"{output} is no file; choose another --output.")
    with open(output if output.exists() else os.devnull, "rb") as lines:
        for line in lines:
            reading, earlier = next(readings, Reading({"": None})), dict[str, Any]()
            begin = as_line(reading.row).encode(errors="backslashreplace")[:-1]
            if whole := line.endswith(b"\n"):
                with contextlib.suppress(ValueError):
                    earlier = json.loads(line) if line.startswith(begin) else {}
            names = RESULTS.get(reading.kind, ("error",))
            ours = "error" in earlier or earlier.keys() >= set(names)
            if not (ours if whole else line.startswith(begin) or begin.startswith(line)):
                raise FileError(f"{output}:{done + 1} is no row with scores of these rows; choose another --output.")
            if not whole:
                readings = chain([reading], readings)
                break
            done, failed, size = done + 1, failed + ("error" in earlier), size + len(line)
            if "error" not in earlier and len(known) < 16:
                scores = [earlier[name] for name in names]
                known.append((reading, scores[0] if reading.kind == "responses" else scores))
    return Output(output, done, failed, size, known, readings)


def score_file(
    output: Output,
    score_rows: Callable[[Iterable[Reading]], Iterable[tuple[Reading, list[float] | str]]],
    exact: bool,
    as_written: Callable[[Reading, list[float]], dict[str, Any]] = with_scores,
    total: int = 0,
) -> int:
    """Append each row with its scores or an "error", and return how many have an error.

    Raises FileError where another model has begun: one whose scores differ by more than 5e-4 if the model computes in
    fp32 (`exact`), and otherwise by more than 0.3 of their deviation.
    """
    file, done, failed, size, known, readings = output
    earlier = [score for _, scores in known for score in scores]
    tolerance = 5e-4 if exact else max(0.1, 0.3 * statistics.pstdev(earlier or [0.0]))
    for (_, found), (_, then) in zip(score_rows([reading for reading, _ in known]), known, strict=True):
        if isinstance(found, str) or any(abs(a - b) > tolerance for a, b in zip(found, then, strict=True)):
            raise FileError(f"{file} has scores of another model: {then}, now {found}; choose another --output.")
    print(f"{done:,} rows are in {file} already." if done else f"Scoring into {file}", flush=True)
    file.parent.mkdir(parents=True, exist_ok=True)
    began = said = time.monotonic()
    with open(file, "a", encoding="utf-8", errors="backslashreplace") as lines:
        lines.truncate(size)
        for new, (reading, found) in enumerate(score_rows(readings), 1):
            row = reading.row | {"error": found} if isinstance(found, str) else as_written(reading, found)
            lines.write(as_line(row) + "\n")
            lines.flush()
            done, failed = done + 1, failed + ("error" in row)
            if (now := time.monotonic()) > said + 5:
                said = now
                left = f" of {total:,}, {(total - done) / new * (now - began):.0f} s left" if total else ""
                print(f"{done:,} rows{left}, {new / (now - began):.1f} rows/s", file=sys.stderr)
    print(f"{done:,} rows -> {file}" + (f'; {failed:,} of them with an "error" and no score' if failed else ""))
    return failed


def as_line(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False, default=str)


def input_rows(file: Path) -> Iterator[tuple[str, Any]]:
    """(place, row) of a file of JSON lines; what is none is an exception in its place."""
    with open(file, "rb") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                try:
                    yield f"{file}:{number}", json.loads(line.decode("utf-8-sig"))
                except ValueError as error:
                    yield f"{file}:{number}", error


def write_pairs(ranked_rows: Path, pairs_out: Path) -> None:
    """The best answer of each prompt against the worst, for train.py."""
    pairs = 0
    with open(pairs_out, "w", encoding="utf-8") as file:
        for place, row in input_rows(ranked_rows):
            if len(set(row.get("scores", []))) > 1:
                both = [read_row(row, place).conversations[row["order"][end]] for end in (0, -1)]
                tools = {"tools": row["tools"]} if row.get("tools") else {}
                file.write(as_line(dict(zip(("chosen", "rejected"), both, strict=True)) | tools) + "\n")
                pairs += 1
    print(f"{pairs:,} pairs of best and worst -> {pairs_out}")


# --- The score contract: what a reward model was saved with ----------------------------------------------------------


def check(folder: Path, client: RewardClient, dtype: str | None = None) -> str:
    """A sentence on a server that gives the scores of the contract; raises ServerError with the rule that it breaks."""
    if not (folder / "reference_scores.json").is_file():
        fix = f"python evaluate.py reference {folder}"
        return f"{folder} has no reference_scores.json, so scores are not checked: {fix}"
    contract = json.loads((folder / "reference_scores.json").read_text(encoding="utf-8"))
    if not all(math.isfinite(one["score"]) for one in contract["conversations"]):
        raise ServerError(f"{folder}/reference_scores.json has scores that are not finite: the model is broken.")
    template = folder / "chat_template.jinja"
    if template.is_file() and contract["template"] != hashlib.sha256(template.read_bytes()).hexdigest():
        raise ServerError(f"{template} is not the template that the scores of {folder} were made with.")
    if contract["pad_token_id"] != json.loads((folder / "config.json").read_text()).get("pad_token_id"):
        raise ServerError(f"pad_token_id in {folder}/config.json was changed: Transformers looks for the end by it.")
    here, rounded, served, means, too_long, received = [], [], [], [], 0, None
    for one in contract["conversations"]:
        try:
            served.append(client.score(one["messages"], one["tools"], encoding_format="float"))
        except Refused as error:
            if "answered 400" not in str(error):
                raise
            too_long += 1
            continue
        received = client.tokens(one["messages"], one["tools"])
        if received and hashlib.sha256(json.dumps(received[0]).encode()).hexdigest() != one["tokens"]:
            raise ServerError(difference(one["text"], received[1]))
        here.append(one["score"])
        rounded.append(one.get("rounded_score", one["score"]))
        means.append(one["mean_score"])
    if not here:
        raise ServerError(f"none of {too_long} conversations has a score: see the log of the server.")
    half = max(abs(a - b) for a, b in zip(here, rounded, strict=True)) or 0.1 * statistics.pstdev(here)
    noise = max(FP32_NOISE, half * ROUNDING.get(dtype or contract["dtype"], 1.0))
    worst = max(abs(a - b) for a, b in zip(here, served, strict=True))
    is_fault, why = compare_scores(here, served, noise, half, means)
    if why and received:
        why = longrope((folder / "config.json").read_text(encoding="utf-8"), received[2]) or why
    if is_fault:
        raise ServerError(f"scores differ by up to {worst:.2g}: {why}")
    if why:
        return f"warning: scores differ by up to {worst:.2g}, where rounding explains {DRIFT * noise:.2g}: {why}"
    left_out = f"; {too_long} longer than the server takes" if too_long else ""
    return f"{len(here)} scores are those that {folder} was saved with, within {worst:.1e}{left_out}."


def longrope(config: str, max_model_len: int) -> str:
    """Return why a server of a longrope model (Phi-3.5, Phi-4-mini) gives other scores, or "" if that is not the cause.

    Transformers uses the long factors for texts above original_max_position_embeddings, vLLM for every text if
    --max-model-len is above it.
    """
    original = re.search(r'"original_max_position_embeddings": *(\d+)', config)
    if not original or '"longrope"' not in config or max_model_len <= int(original[1]):
        return ""
    served = f"with --max-model-len {max_model_len} vLLM uses the long factors of this longrope model for every text."
    return f"{served} Start the server with --max-model-len {original[1]}."


def compare_scores(
    expected: list[float], served: list[float], noise: float, half: float, means: list[float] | None = None
) -> tuple[bool, str]:
    """Return whether the served scores of equal tokens are structurally wrong, and why; "" if rounding explains them.

    Args:
        expected: The scores that the model was saved with.
        served: The scores of the server.
        noise: Largest change of a score that rounding in the served dtype made when the model was saved.
        half: The same in bfloat16.
        means: The scores that the mean of all tokens would have.
    """

    def distance(others: Iterable[float]) -> float:
        return max(abs(a - b) for a, b in zip(others, served, strict=True))

    worst = distance(expected)
    if worst <= DRIFT * noise:
        return False, ""
    patterns = [
        ((0.5 + math.tanh(value / 2) / 2 for value in expected), "the server applies a sigmoid; start it with "
         "use_activation false, as infer_vllm.sh does."),
        ([0.0] * len(expected), "the reward head that is served is zero."),
        (means or [math.inf] * len(expected), "the server reads the mean of all tokens; start it with pooling_type "
         "LAST, as infer_vllm.sh does."),
    ]  # fmt: skip
    for scores, why in patterns:
        if distance(scores) < min(worst / 2, max(1e-2, DRIFT * noise)):
            return True, why
    if len(expected) > 2 and max(served) == min(served):
        return True, "the server reads the first token, which all share; start it with pooling_type LAST."
    residual = math.sqrt(statistics.fmean((a - b) ** 2 for a, b in zip(expected, served, strict=True)))
    if len(expected) > 2 and worst > 2 * DRIFT * noise and residual > 0.5 * statistics.pstdev(expected):
        return True, "the server has the same tokens but other weights: another checkpoint, adapter or reward head."
    if worst <= DRIFT * half:
        return False, "as bfloat16 would make it: the server's dtype, or its weights, are rounded."
    return False, "the weights that are served are a coarse rounding (quantized?) or a near relative."


def difference(text: str, served: str) -> str:
    """How the text that a server makes of a conversation differs from that of training."""
    if served == text:
        return "the server's tokenizer is another: the same text has other tokens."
    if served.startswith(text):
        return f"the server appends {served[len(text) :]!r} to the conversation."
    if served.endswith(text):
        before = served[: -len(text)]
        what = "a system message" if "system" in before else "a text"
        return f"the server puts {what} before the conversation that training did not have: {before!r}."
    if text.startswith(served) or text.endswith(served):
        missing = text[len(served) :] if text.startswith(served) else text[: -len(served)]
        return f"the server leaves out {missing!r}, which training had."
    at = next(at for at, (a, b) in enumerate(zip(text, served, strict=False)) if a != b)
    around = [re.search(DATE, one[max(at - 20, 0) : at + 20]) for one in (text, served)]
    what = "prints another date" if all(around) else "renders with another chat template"
    return f"the server {what}: at character {at + 1} {served[at : at + 40]!r} instead of {text[at : at + 40]!r}."


def main(argv: list[str]) -> None:
    command = argv.pop(0) if argv[:1] in (["rank"], ["check"]) else ""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base_url", action="append", help=f"again for each further server; default: {BASE_URL}")
    parser.add_argument("--model", default=MODEL, help="the name it is served under, default: %(default)s")
    parser.add_argument("--timeout", type=float, default=TIMEOUT, help="seconds, default: %(default)g")
    parser.add_argument("--retries", type=int, default=RETRIES, help="on connection errors, 429, 5xx: %(default)s")
    parser.add_argument("--concurrency", type=int, default=CONCURRENCY, help="rows asked for at a time: %(default)s")
    if command == "check":
        parser.add_argument("--model_dir", type=Path, required=True, help="the folder that is served")
        parser.add_argument("--dtype", help="in which it is served; default: that of its weights")
    else:
        parser.add_argument("question_and_answers", nargs="*", metavar="question answer")
        parser.add_argument("--system", help="a system message; only if the training data had one")
        parser.add_argument("--input", type=Path, help="rows to score, .jsonl")
        parser.add_argument("--output", type=Path, help="the rows with their scores; continued if it is there")
    if command == "rank":
        parser.add_argument("--pairs_out", type=Path, help="pairs for train.py: the best answer and the worst")
    args = parser.parse_args(argv)
    client = RewardClient(args.base_url or BASE_URL, args.model, args.timeout, args.retries, args.concurrency)
    if command == "check":
        print(check(args.model_dir, client, args.dtype))
    elif args.input and args.output and not args.question_and_answers:
        if args.system is not None:
            raise FileError("--system is for a question; rows have their own system messages.")
        if args.input.suffix != ".jsonl":
            raise FileError(f"{args.input}: a .jsonl file is needed.")
        if args.output.exists() and args.output.samefile(args.input):
            raise FileError("--output is the --input; choose another.")
        if command == "rank" and args.pairs_out and args.pairs_out.exists():
            raise FileError(f"{args.pairs_out} exists already; choose another --pairs_out.")
        with open(args.input, "rb") as lines:
            total = sum(not line.isspace() for line in lines)
        output = look_at(args.output, input_rows(args.input))
        failed = score_file(output, client.score_rows, False, ranked if command == "rank" else with_scores, total)
        if command == "rank" and args.pairs_out:
            write_pairs(args.output, args.pairs_out)
        sys.exit(1 if failed else 0)
    elif len(args.question_and_answers) > 1 and not (command or args.input or args.output):
        question, *answers = args.question_and_answers
        system = [{"role": "system", "content": args.system}] if args.system is not None else []
        prompt = system + prompt_messages(question)
        scores = client.score_many([prompt + answer_messages(answer) for answer in answers])
        for value, answer in sorted(zip(scores, answers, strict=True), reverse=True):
            print(f"{value:+.4f}  {answer}")
    else:
        parser.error("give a question and answers, or --input and --output.")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (ServerError, FileError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("\nStopped. What was scored is kept; the same command goes on.", file=sys.stderr, flush=True)
        os._exit(130)  # without waiting for the answers that are under way
