"""Malformed, oversized and broken-off requests are told what is wrong."""

import json
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from bad_bodies import GOOD, MALFORMED, sent
from served_chat import NAME, Server, serving

from qfpass.serving.server.app import Served

ROWS = 3


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving(rows=ROWS, queue=200) as running:
        yield running


@pytest.mark.parametrize(("path", "body"), MALFORMED, ids=range(len(MALFORMED)))
def test_a_malformed_request_is_told_what_is_wrong(server: Server, path: str, body: Any) -> None:
    with server.http() as client:
        answer = client.post(path, content=sent(body), headers={"content-type": "application/json"})
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error" and 5 < len(error["message"]) < 3000
    assert not server.scheduler.rows_in_use


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("POST", "/v1/completions", {"content-type": "text/plain"}, 415),
        ("POST", "/v1/completions", {}, 415),
        ("POST", "/v1/completions", {"content-type": "application/json", "x-session-id": "a" * 999}, 400),
        ("GET", "/v1/completions", {}, 405),
        ("POST", "/load_model", {"content-type": "application/json"}, 404),
        ("GET", "/../../etc/passwd", {}, 404),
        ("GET", "/v1/models/%2e%2e%2fetc", {}, 404),
    ],
)
def test_other_wrong_requests(
    server: Server, method: str, path: str, headers: dict[str, str], status: int
) -> None:
    with server.http() as client:
        content = json.dumps(GOOD).encode() if method == "POST" else None
        answer = client.request(method, path, content=content, headers=headers)
    assert answer.status_code == status and answer.json()["error"]["message"]


def test_a_large_body_is_refused_however_it_is_sent(server: Server) -> None:
    body = json.dumps({**GOOD, "prompt": "a" * 30_000}).encode()

    def pieces() -> Iterator[bytes]:
        for at in range(0, len(body), 1000):
            yield body[at : at + 1000]

    with server.http() as client:
        for content in (body, pieces()):
            headers = {"content-type": "application/json"}
            answer = client.post("/v1/completions", content=content, headers=headers)
            assert answer.status_code == 413 and "20000 bytes" in answer.json()["error"]["message"]


def test_a_token_is_asked_for() -> None:
    with serving(Served(NAME, token="heron"), rows=1) as server, server.http() as client:
        assert client.get("/health").status_code == 200
        for given in (None, "heron", "Bearer egret", "Bearer h\u00e9ron".encode()):
            headers = {} if given is None else {"authorization": given}
            for path in ("/v1/models", "/metrics"):
                assert client.get(path, headers=headers).status_code == 401
        assert server.client(api_key="heron").models.list().data[0].id == NAME


@pytest.mark.parametrize("streamed", [False, True])
def test_a_client_that_leaves_cancels_its_answer(server: Server, streamed: bool) -> None:
    server.wait_until_idle()
    body = json.dumps({**GOOD, "max_tokens": 250, "stream": streamed}).encode()
    address = server.address.removeprefix("http://").split(":")
    head = "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    head += f"content-length: {len(body)}\r\n\r\n"
    with socket.create_connection((address[0], int(address[1]))) as connection:
        connection.sendall(head.encode() + body)
        while not server.scheduler.rows_in_use:
            pass
        if streamed:
            assert b"200 OK" in connection.recv(1000)
    server.wait_until_idle()
    assert 'qfpass_answers_total{reason="cancelled"}' in server.http().get("/metrics").text
