"""Ask a reward model served by infer_vllm.sh for scores.

    python client.py "question" "answer" ["another answer" …]      # the score of each answer, best first

    from client import get_score_api, score
    get_score_api("What is 2 + 2?", "4.")                           # float, higher is better
    score([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}])

A score is the raw logit of the reward head: any real number, to be compared between answers to the same question. The
API key, if the server has one, is read from the environment variable VLLM_API_KEY.
"""

import argparse
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import Any, Self

import requests
from requests.adapters import HTTPAdapter
from urllib3 import Retry
from urllib3.exceptions import ReadTimeoutError

BASE_URL = "http://127.0.0.1:5001"
MODEL = "base_reward"
TIMEOUT = 60.0  # seconds for one answer of the server
RETRIES = 4  # after a connection error or a 5xx: at once, then after 1, 2 and 4 seconds


class ServerError(RuntimeError):
    """The server is not there, or refused; the message is its own where it gave one."""


class _Retry(Retry):
    """Not after a timeout: the server has the request, and asking twice makes it no faster."""

    def increment(self, *args: Any, **kwargs: Any) -> Self:
        if isinstance(kwargs.get("error"), ReadTimeoutError):
            raise kwargs["error"]
        return super().increment(*args, **kwargs)


@cache
def _session(retries: int) -> requests.Session:
    """Connections that stay open between requests, also of several threads."""
    status, session = range(500, 600), requests.Session()
    retry = _Retry(retries, backoff_factor=0.5, status_forcelist=status, allowed_methods=None, raise_on_status=False)
    for scheme in ("http://", "https://"):
        session.mount(scheme, HTTPAdapter(pool_maxsize=256, max_retries=retry))
    return session


def score(
    messages: list[dict],
    base_url: str = BASE_URL,
    model: str = MODEL,
    timeout: float = TIMEOUT,
    retries: int = RETRIES,
    tools: list[dict] | None = None,
) -> float:
    """The score of a conversation that ends with an answer of an assistant who had `tools`; raises ServerError."""
    url = f"{base_url.rstrip('/')}/pooling"
    body: dict[str, Any] = {
        "model": model,
        "messages": messages,
        "add_generation_prompt": False,
        "use_activation": False,
    }
    if tools:
        body["chat_template_kwargs"] = {"tools": tools}  # the field for what a chat template is given besides messages
    key = os.environ.get("VLLM_API_KEY")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        response = _session(retries).post(url, json=body, headers=headers, timeout=timeout)
    except requests.ConnectionError as error:
        raise ServerError(f"No server answers at {base_url}; start one: sh infer_vllm.sh MODEL_DIR") from error
    except requests.Timeout:
        raise ServerError(f"{url} gave no answer within {timeout:g} s; allow it more: --timeout") from None
    if not response.ok:
        raise ServerError(f"{url} answered {response.status_code}: {_message(response)}")
    (value,) = response.json()["data"][0]["data"]
    return float(value)


def get_score_api(query: str, response: str, system: str | None = None, **server: Any) -> float:
    """The score of one answer to one question. A system message is sent only if given: training adds none."""
    messages = [{"role": "user", "content": query}, {"role": "assistant", "content": response}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    return score(messages, **server)


def _message(response: requests.Response) -> str:
    try:
        return response.json()["error"]["message"]
    except (ValueError, KeyError, TypeError):
        return response.text[:500]


def main() -> None:
    parser = argparse.ArgumentParser(description="Scores of answers to a question, best first.")
    parser.add_argument("question")
    parser.add_argument("answers", nargs="+", metavar="answer")
    parser.add_argument("--system", help="a system message; only if the training data had one")
    parser.add_argument("--base_url", default=BASE_URL, help="default: %(default)s")
    parser.add_argument("--model", default=MODEL, help="the name it is served under, default: %(default)s")
    parser.add_argument("--timeout", type=float, default=TIMEOUT, help="seconds, default: %(default)g")
    parser.add_argument("--retries", type=int, default=RETRIES, help="on connection errors, 5xx; default: %(default)s")
    args = parser.parse_args()
    server = {name: getattr(args, name) for name in ("base_url", "model", "timeout", "retries")}
    ask = partial(get_score_api, args.question, system=args.system, **server)
    with ThreadPoolExecutor(8) as pool:
        scores = list(pool.map(ask, args.answers))
    for value, answer in sorted(zip(scores, args.answers, strict=True), reverse=True):
        print(f"{value:+.4f}  {answer}")


if __name__ == "__main__":
    try:
        main()
    except ServerError as error:
        sys.exit(f"error: {error}")
