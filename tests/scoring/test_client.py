"""The client and servers that fail, which a real vLLM does not do when it is told to."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from conftest import conversation

import client

QUESTION = conversation("Hi?", "Hello.")


class Handler(BaseHTTPRequestHandler):
    """Does what the name of the model says, the first time or always; the score is the number of the connection."""

    protocol_version = "HTTP/1.1"  # keeps connections
    connections: list[tuple[str, int]]
    requests: int

    def do_POST(self) -> None:
        Handler.requests += 1
        Handler.connections += [self.client_address] if self.client_address not in Handler.connections else []
        what = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["model"]
        if what == "hangs up once" and Handler.requests == 1:
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return
        if what == "slow":
            time.sleep(1)
            self.close_connection = True
            return
        fails = what == "broken" or (what == "busy once" and Handler.requests == 1)
        answer = {"error": {"message": "no memory"}} if fails else {"data": [{"data": [len(Handler.connections)]}]}
        self.send_response(503 if fails else 200)
        self.send_header("Content-Length", str(len(json.dumps(answer))))
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def log_message(self, format: str, *args: object) -> None:
        """Not in the middle of the report of the tests."""


@pytest.fixture
def url() -> Iterator[str]:
    Handler.connections, Handler.requests = [], 0
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_connections_are_kept(url) -> None:
    assert [client.score(QUESTION, url, "fine") for _ in range(3)] == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("what", ["hangs up once", "busy once"])
def test_a_request_that_failed_is_sent_again(url, what) -> None:
    assert client.score(QUESTION, url, what, timeout=5) > 0 and Handler.requests == 2
    Handler.requests = 0
    with pytest.raises(client.ServerError):
        client.score(QUESTION, url, what, timeout=5, retries=0)


def test_failures_in_the_words_of_the_server(url) -> None:
    with pytest.raises(client.ServerError, match=r"/pooling answered 503: no memory"):
        client.score(QUESTION, url, "broken", retries=1)
    assert Handler.requests == 2
    with pytest.raises(client.ServerError, match=r"gave no answer within 0\.2 s; allow it more: --timeout"):
        client.score(QUESTION, url, "slow", timeout=0.2)
    assert Handler.requests == 3, "a timeout is not tried again"
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        with pytest.raises(client.ServerError, match=r"No server answers at http://127.*sh infer_vllm\.sh"):
            client.score(QUESTION, f"http://127.0.0.1:{closed.getsockname()[1]}", retries=1)
