"""Heads of answers and header values: what each version of HTTP says aloud, and what survives."""

import pytest

from tritonsched.frontend.http_message import encode_head, encode_reply, text_of
from tritonsched.tensors import HttpReply


@pytest.mark.parametrize(
    ("version", "keep_alive", "said"),
    [
        ("1.1", True, b""),
        ("1.1", False, b"Connection: close\r\n"),
        ("1.0", True, b"Connection: keep-alive\r\n"),
        ("1.0", False, b""),
    ],
)
def test_a_version_says_what_it_does_not_do_by_itself(
    version: str, keep_alive: bool, said: bytes
) -> None:
    head = encode_head(200, "", (), length=0, keep_alive=keep_alive, version=version)
    assert head == f"HTTP/{version} 200 OK\r\nContent-Length: 0\r\n".encode() + said + b"\r\n"


def test_no_length_means_chunks_and_no_body_no_length() -> None:
    assert b"\r\nTransfer-Encoding: chunked\r\n" in encode_head(200, "", (), keep_alive=True)
    assert encode_head(204, "", (), length=0, keep_alive=True) == b"HTTP/1.1 204 No Content\r\n\r\n"


def test_a_value_cannot_start_another_header() -> None:
    reply = HttpReply(200, "Fine", (("X", "a\r\nY: b"),), b"body")
    whole = encode_reply(reply, keep_alive=True)
    assert whole == b"HTTP/1.1 200 Fine\r\nX: a  Y: b\r\nContent-Length: 4\r\n\r\nbody"


@pytest.mark.parametrize(
    ("value", "text", "sent_on"),
    [(b"a", "a", b"a"), ("é".encode(), "é", "é".encode()), (b"\xe9", "é", "é".encode())],
)
def test_utf_8_stays_and_other_bytes_are_latin_1(value: bytes, text: str, sent_on: bytes) -> None:
    assert text_of(value) == text
    assert b"X: " + sent_on + b"\r\n" in encode_head(200, "", (("X", text),), keep_alive=True)
