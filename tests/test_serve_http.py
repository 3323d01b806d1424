"""What stands around the bodies of requests has an end."""

import json
import select
import socket

import httpx
import pytest
from serve_parts import KEY

pytestmark = pytest.mark.allow_hosts(["127.0.0.1"])
PIECE = 64 * 1024
HEAD = f"POST /v1/completions HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {KEY}\r\n".encode()
CHUNKED = HEAD + b"content-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
ENDLESS = {
    "a path": (b"GET /", b"x" * PIECE),
    "a header": (HEAD + b"a: ", b"x" * PIECE),
    "headers": (HEAD, b"a: b\r\n" * (PIECE // 6)),
    "a chunk's extension": (CHUNKED + b"1;a=", b"x" * PIECE),
    "extensions": (CHUNKED, b"1;" + b"x" * 1000 + b"\r\n{\r\n"),
    "a trailer": (CHUNKED + b"0\r\na: ", b"x" * PIECE),
    "trailers": (CHUNKED + b"0\r\n", b"a: b\r\n" * (PIECE // 6)),
}
BODY = json.dumps({"model": "demo", "prompt": "Where?", "max_tokens": 2}).encode()


@pytest.mark.parametrize("kind", ENDLESS)
def test_nothing_beside_a_body_is_without_end(server, kind):
    begin, piece = ENDLESS[kind]
    with socket.create_connection(server.address, timeout=10) as connection:
        connection.sendall(begin)
        with pytest.raises(ConnectionError):
            connection.sendall(piece * (16 * 2**20 // len(piece)))
    assert httpx.get(f"{server.root}/health").status_code == 200


@pytest.mark.parametrize("piece", [1, 7, 1000])
def test_a_body_may_come_in_small_chunks(server, piece):
    """Each chunk has a frame, which together are longer than what may stand beside a body."""
    blanks = b" " * 100_000
    body = BODY + blanks if piece == 1000 else BODY + blanks[:20_000]
    chunks = [body[at : at + piece] for at in range(0, len(body), piece)]
    response = httpx.post(
        f"{server.root}/v1/completions",
        content=iter(chunks),
        headers={"authorization": f"Bearer {KEY}", "content-type": "application/json"},
        timeout=60,
    )
    assert response.status_code == 200


def test_many_requests_on_one_connection(server):
    """The bound is that of each request."""
    with httpx.Client(headers={"authorization": f"Bearer {KEY}", "x-long": "x" * 30_000}) as client:
        for _ in range(5):
            assert client.get(f"{server.root}/v1/models").status_code == 200


def test_long_headers_are_refused_with_a_message(server):
    response = httpx.get(f"{server.root}/health", headers={"x-long": "x" * 60_000})
    assert response.status_code == 200
    with socket.create_connection(server.address, timeout=10) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nhost: a\r\na: ")
        for _ in range(20):  # in pieces, so that nothing is unread when the server closes the connection
            connection.sendall(b"x" * 10_000)
            if select.select([connection], [], [], 0.1)[0]:
                break
        answer = connection.recv(1000)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.endswith(b"The request line and the headers have more than 65536 bytes.")
