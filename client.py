"""Score conversations with reward models served by infer_vllm.sh.

    python client.py "question" "answer" ["another answer" ...]      # the score of each answer, best first
    python client.py --input rows.jsonl --output scores.jsonl --base_url http://a:5001 --base_url http://b:5001
    python client.py rank --input rows.jsonl --output ranked.jsonl --pairs_out pairs.jsonl      # best of n answers
    python client.py check --model_dir save/demo      # check the server against the model's reference scores
    from client import RewardClient, get_score_api, score
    get_score_api("What is 2 + 2?", "4.")      # a float, higher is better; score(messages) takes a conversation
    RewardClient(["http://a:5001", "http://b:5001"]).score_many(conversations)

A score is a raw logit: compare it only with the scores of other answers to the same prompt. This file depends only on
`requests`, so you can copy it into another project; --input and `check` also need the reward_model package.
"""

import argparse
import json
import logging
import math
import os
import re
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any

import requests

BASE_URL = "http://127.0.0.1:5001"
MODEL = "base_reward"
ADDRESS = re.compile(r"https?://(\[[\da-f:]+\]|[^/:\s]+)(:\d{1,5})?(/\S*)?")
LOCAL = re.compile(r"https?://(localhost|127\.|\[::1\])")
NO_CONNECTION, TIMED_OUT = 0, -1  # returned in place of an HTTP status code
REJECTED = {400, 413, 422, 429, TIMED_OUT}  # caused by the conversation, not by the key, model or address
HINTS = {401: " Set VLLM_API_KEY.", 404: " Check --model and --base_url.", 0: " Start one: sh infer_vllm.sh MODEL_DIR"}
DROPPED = "thinking thought tool_plan tool_responses reasoning_details recipient channel documents images audio".split()
ASSISTANT_ONLY = ["tool_calls", "reasoning", "reasoning_content"]  # vLLM 0.32 drops these keys for other roles
Messages = list[dict[str, Any]]


class ServerError(RuntimeError):
    """No server responds, or none of them serves this model."""


class ConversationError(ServerError):
    """This conversation cannot be scored, but others can."""


@dataclass(eq=False)
class RewardClient:
    """Score conversations on one or more servers of the same model. Thread-safe."""

    base_urls: str | list[str] = BASE_URL  # a server that fails is skipped until it responds again
    model: str = MODEL
    timeout: float = 60.0  # seconds for a complete reply
    retries: int = 4  # after connection errors, 429 and 5xx: immediately, then after about 1, 2 and 4 seconds
    concurrency: int = 64  # requests in flight

    def __post_init__(self) -> None:
        if not 0 < self.timeout < math.inf or self.retries < 0 or self.concurrency < 1:
            raise ServerError(f"timeout, retries or concurrency is out of range in {self}.")
        key = os.environ.get("VLLM_API_KEY", "")
        if not (key.isascii() and key.isprintable()):
            raise ServerError("VLLM_API_KEY contains a line break or another character that HTTP does not allow.")
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        self.request = requests.Request("POST", BASE_URL, headers).prepare()
        self.servers: dict[str, dict[str, str]] = {}  # each server's proxies
        self.down: dict[str, float] = {}  # when to retry each server that failed
        for url in [self.base_urls] if isinstance(self.base_urls, str) else self.base_urls:
            if not ADDRESS.fullmatch(url):
                raise ServerError(f"--base_url {url} is not an http:// or https:// address such as {BASE_URL}.")
            # A proxy from the environment could not reach a server on this machine.
            self.servers[url.rstrip("/")] = {} if LOCAL.match(url) else requests.utils.get_environ_proxies(url)
        self.lock, self.adapter = threading.Lock(), requests.adapters.HTTPAdapter(len(self.servers), self.concurrency)

    def score(self, messages: Messages, tools: Any = None, **options: Any) -> float:
        """Return the score of a conversation; `tools` are the assistant's tools."""
        body = self.body(messages, tools) | (options or {"use_activation": False})
        return read_score(*self.post("/pooling", body, str(messages[:-1])))

    def score_many(self, conversations: Iterable[Messages], tools: Iterable[Any] | None = None) -> list[float]:
        """Return the score of each conversation; `tools` has an entry for each one: its tools, or None."""
        conversations = list(conversations)
        return list(self.map(self.score, conversations, tools or [None] * len(conversations)))

    def score_group(self, conversations: list[Messages], tools: Any = None, **options: Any) -> list[float] | str:
        """Return the scores of several answers to a prompt, or the reason why one of them cannot be scored."""
        try:  # one after another, so that the server has the prompt in its prefix cache
            return [self.score(messages, tools, **options) for messages in conversations]
        except ConversationError as error:
            return str(error)

    def reward(self, prompts: list[Any], completions: list[Any], **columns: Any) -> list[float | None]:
        """Return rewards for trl's `reward_funcs`: None, which trl ignores, if the server rejects a conversation."""
        groups = ([conversation(*both)] for both in zip(prompts, completions, strict=True))
        return [None if isinstance(scores, str) else scores[0] for scores in self.map(self.score_group, groups)]

    def map(self, function: Callable, *iterables: Iterable[Any]) -> Iterator[Any]:
        """Behave like `map`, but call the function in `concurrency` threads and read only a few items ahead."""
        pool, pending = ThreadPoolExecutor(self.concurrency), deque[Future]()
        try:
            for items in zip(*iterables, strict=True):
                pending.append(pool.submit(function, *items))
                while pending and (pending[0].done() or len(pending) >= 4 * self.concurrency):
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def body(self, messages: Messages, tools: Any = None) -> dict[str, Any]:
        """Return the fields that /pooling and /tokenize have in common."""
        sent = [to_wire(message) for message in messages]
        body = {"model": self.model, "messages": sent, "add_generation_prompt": False}
        return body | ({"chat_template_kwargs": {"tools": tools}} if tools else {})

    def post(self, path: str, body: dict[str, Any], prompt: str = "") -> tuple[str, bytes]:
        """Send a request to one of the servers, with retries; return the URL and content of a reply with status 200."""
        for attempt in range(self.retries + 1):
            if attempt > 1:
                time.sleep(min(2 ** (attempt - 2), 30))
            server = self._choose(prompt)
            status, reply = self._request(server, path, body)
            if status == 200:
                self.down.pop(server, None)
                return server + path, reply
            answer = f"{server}{path} returned {status}: " if status > 0 else ""
            problem = f"{answer}{error_message(reply)}{HINTS.get(status, '')}"
            if 0 < status < 500 and status != 429:
                self.down.pop(server, None)
                break
            with self.lock:  # held while logging, so that no other thread reports its error before this warning
                if server not in self.down and attempt < self.retries:
                    logging.getLogger("client").warning("%s; retrying.", problem)
                self.down[server] = time.monotonic() + 1
            if status == TIMED_OUT and len(self.down) == len(self.servers):  # a retry would time out again
                break
        raise (ConversationError if status in REJECTED or status >= 500 else ServerError)(problem)

    def _request(self, server: str, path: str, body: Any) -> tuple[int, bytes]:
        """Return the status and content of a reply or, if there is none, NO_CONNECTION or TIMED_OUT and the reason."""
        deadline, content = time.monotonic() + self.timeout, b""
        limits, verify = (min(self.timeout, 10), self.timeout), os.environ.get("REQUESTS_CA_BUNDLE", True)
        request = self.request.copy()  # Session.post would take three times the CPU time
        request.url = server + path
        request.prepare_body(json.dumps(body).encode(), None)
        try:
            with self.adapter.send(request, True, limits, verify, proxies=self.servers[server]) as reply:
                for chunk in reply.iter_content(256):
                    content += chunk
                    if time.monotonic() >= deadline:
                        raise requests.Timeout
                return reply.status_code, content
        except requests.RequestException as error:
            if time.monotonic() >= deadline:
                return TIMED_OUT, f"{server} did not answer within {self.timeout:g} s; raise --timeout".encode()
            cause = str(error).rsplit(": ")[-1].strip("')\"")
            return NO_CONNECTION, f"Cannot reach a server at {server}: {cause}.".encode()

    def _choose(self, prompt: str) -> str:
        """Choose a server, always the same one for a given prompt, because the prompt is in its prefix cache."""
        for url in self.servers if len(self.down) < len(self.servers) else []:
            if self.down.get(url, math.inf) <= time.monotonic():
                self.down[url] = time.monotonic() + self.timeout  # only one request at a time retries it
                return url
        up = [url for url in self.servers if url not in self.down] or self.servers
        return max(up, key=lambda url: hash((prompt, url)))


def read_score(url: str, reply: bytes) -> float:
    """Return the score in a reply; raise ServerError or ConversationError if the reply has no valid score."""
    try:
        (value,) = json.loads(reply)["data"][0]["data"]
        is_finite = math.isfinite(value) and not isinstance(value, bool)
    except (ValueError, LookupError, TypeError, OverflowError) as error:
        raise ServerError(f"{url} must return one score, not {reply[:200]!r}; serve with infer_vllm.sh.") from error
    if not is_finite:
        raise ConversationError(f"{url} returned the score {value}; check the weights and the served dtype.")
    return float(value)


def error_message(reply: bytes) -> str:
    """Return the error message in a reply, or the start of the reply."""
    try:
        return json.loads(reply)["error"]["message"]
    except (ValueError, LookupError, TypeError):
        return reply[:500].decode(errors="replace")


def to_wire(message: dict[str, Any]) -> dict[str, Any]:
    """Convert a message to vLLM's format; raise ConversationError if vLLM would silently drop some of it."""
    # Templates compare the id of a tool result with the ids of the calls; where ids are missing, send empty ones.
    empty = {"content": "", "tool_call_id": ""} if message.get("role") == "tool" else {"content": ""}
    sent = empty | {key: value for key, value in message.items() if value is not None}
    for key in DROPPED if sent.get("role") == "assistant" else DROPPED + ASSISTANT_ONLY:
        if sent.get(key):
            raise ConversationError(f"vLLM drops {key!r}; remove it or use infer_transformers.py: {str(message)[:80]}")
    if "reasoning_content" in sent:  # vLLM reads `reasoning` and passes it to the template under both names
        sent["reasoning"] = sent.pop("reasoning_content")
    if calls := sent.pop("tool_calls", None):
        sent["tool_calls"] = [call_to_wire(call) for call in calls]
    return sent


def call_to_wire(call: Any) -> dict[str, Any]:
    """Give a tool call an id, and convert its arguments to JSON text, which vLLM parses before rendering."""
    try:
        arguments = call["function"].get("arguments") or {}
        text = json.dumps(dict(json.loads(arguments) if isinstance(arguments, str) else arguments))
        given = {key: value for key, value in call.items() if value is not None}
        return {"id": "", "type": "function"} | given | {"function": call["function"] | {"arguments": text}}
    except (AttributeError, TypeError, ValueError, LookupError) as error:
        raise ConversationError(f"a tool call is not a function with arguments: {str(call)[:200]}") from error


def conversation(query: str | Messages, response: str | Messages, system: str | None = None) -> Messages:
    """Build a conversation from a prompt and an answer. Pass `system` only if the training data had system messages."""
    before = [] if system is None else [{"role": "system", "content": system}]
    prompt = query if isinstance(query, list) else [{"role": "user", "content": query}]
    return before + prompt + (response if isinstance(response, list) else [{"role": "assistant", "content": response}])


_client = cache(RewardClient)


def score(messages: Messages, base_url: str = BASE_URL, model: str = MODEL, tools: Any = None, **options: Any) -> float:
    """Return the score of a conversation; `options` are arguments of RewardClient. Raises ServerError."""
    if not messages or messages[-1].get("role") != "assistant":
        raise ConversationError(f"a conversation must end with an assistant message: {str(messages[-1:])[:80]}")
    return _client(base_url, model, **options).score(messages, tools)


def get_score_api(query: str, response: str, system: str | None = None, **options: Any) -> float:
    """Return the score of an answer to a question; `options` are further arguments of `score`."""
    return score(conversation(query, response, system), **options)


def main(argv: list[str]) -> None:
    """Run the command-line interface."""
    command = argv.pop(0) if argv[:1] in (["rank"], ["check"]) else ""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", metavar="question answer")
    parser.add_argument("--system", help="system message; pass it only if the training data had system messages")
    parser.add_argument("--input", help="rows to score: .jsonl, .jsonl.gz, .json, .csv or .parquet")
    parser.add_argument("--output", help=".jsonl file for the rows and their scores; resumed if it exists")
    parser.add_argument("--pairs_out", help="rank: .jsonl file to write training pairs to: best and worst answers")
    parser.add_argument("--model_dir", required=command == "check", help="check: directory of the model")
    parser.add_argument("--dtype", help="check: dtype of the server; default: the dtype of the weights")
    parser.add_argument("--base_url", action="append", help=f"repeat to use several servers; default: {BASE_URL}")
    parser.add_argument("--model", default=MODEL, help="served model name, default: %(default)s")
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds to wait for a reply, default: %(default)g")
    parser.add_argument("--retries", type=int, default=4, help="retries after a server fails, default: %(default)s")
    parser.add_argument("--concurrency", type=int, default=64, help="concurrent requests, default: %(default)s")
    args = parser.parse_args(argv)
    client = RewardClient(args.base_url or BASE_URL, args.model, args.timeout, args.retries, args.concurrency)
    if command == "check" or (args.input and args.output and not (args.words or args.system)):
        from reward_model.scoring.commands import run_command

        run_command(command, client, args)
    elif len(args.words) > 1 and not (command or args.input or args.output):
        scores = client.score_many([conversation(args.words[0], answer, args.system) for answer in args.words[1:]])
        for value, answer in sorted(zip(scores, args.words[1:], strict=True), reverse=True):
            print(f"{value:+.4f}  {answer}")
    else:
        parser.error("pass a question and answers, or --input and --output (without --system)")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (ServerError, ValueError, OSError, ImportError) as error:
        sys.exit(f"error: {error}" if "REWARD_MODEL_DEBUG" not in os.environ else traceback.format_exc())
    except KeyboardInterrupt:
        print("\nStopped. Scored rows are kept; run the same command to resume.", file=sys.stderr, flush=True)
        os._exit(130)  # without waiting for requests in flight
