"""What stands between the bytes and a request: versions, lengths, chunks, `Expect`, sizes."""

import json

from tests.differential.cases import HttpCase, http, tensor
from tests.differential.wire import PROBE, HttpAsk

PATH = "/v2/models/num/infer"
BODY = json.dumps({"inputs": [tensor()]}).encode()
LENGTH = f"Content-Length: {len(BODY)}"
CHUNKED = "Transfer-Encoding: chunked"
CHUNK = b"%x\r\n%b\r\n" % (len(BODY), BODY)
END = b"0\r\n\r\n"


def infer(*headers: str | bytes, body: bytes = BODY, rule: str = "", **more: str) -> HttpCase:
    """Its lengths are the headers' business."""
    made = http("POST", PATH, *headers, body=body, length=False, **more)
    return HttpCase(HttpAsk((made,)), rule)


def ask(*headers: str | bytes, path: str = "/v2", method: str = "GET", rule: str = "",
        version: str = "1.1") -> HttpCase:  # fmt: skip
    made = http(method, path, *headers, length=False, version=version)
    return HttpCase(HttpAsk((made,)), rule)


def raw(*steps: bytes, replies: int = 1, rule: str = "") -> HttpCase:
    return HttpCase(HttpAsk(steps, replies), rule)


def expecting(word: str, *, chunked: bool = False) -> HttpCase:
    """The body comes when the server says so."""
    framing = CHUNKED if chunked else LENGTH
    head = http("POST", PATH, f"Expect: {word}", framing, length=False)
    return HttpCase(HttpAsk((head, CHUNK + END if chunked else BODY)))


def many(count: int, size: int) -> list[str]:
    return [f"f{index}: {'a' * size}" for index in range(count)]


INFER = http("POST", PATH, body=BODY)
TABLE: dict[str, HttpCase] = {
    "of a length": infer(LENGTH),
    "chunked": infer(CHUNKED, body=CHUNK + END),
    "chunked in two": infer(
        CHUNKED, body=b"5\r\n%b\r\n%x\r\n%b\r\n" % (BODY[:5], len(BODY) - 5, BODY[5:]) + END
    ),
    "chunked by the byte": infer(
        CHUNKED, body=b"".join(b"1\r\n%c\r\n" % byte for byte in BODY) + END
    ),
    "chunked in capitals": infer(
        "TRANSFER-ENCODING: Chunked", body=b"%X\r\n%b\r\n" % (len(BODY), BODY) + END
    ),
    "chunks with zeros": infer(CHUNKED, body=b"000" + CHUNK + END),
    "no chunks": infer(CHUNKED, body=END),
    "chunk extensions": infer(
        CHUNKED, body=b"%x;a=b\r\n%b\r\n" % (len(BODY), BODY) + END, rule="lenient"
    ),
    "trailers": infer(CHUNKED, body=CHUNK + b"0\r\nX: y\r\n\r\n", rule="lenient"),
    "a chunk of no number": infer(CHUNKED, body=b"zz\r\n", rule="not-http"),
    "a negative chunk": infer(CHUNKED, body=b"-1\r\n", rule="not-http"),
    "a length and chunks": infer(LENGTH, CHUNKED, body=CHUNK + END, rule="strict"),
    "another transfer coding": infer(
        "Transfer-Encoding: gzip, chunked", body=CHUNK + END, rule="strict"
    ),
    "no length": infer(body=b""),
    "a length of 0": infer("Content-Length: 0", body=b""),
    "a length with zeros": infer(f"Content-Length: 000{len(BODY)}"),
    "a length with spaces": infer(f"Content-Length:   {len(BODY)}  "),
    "a length twice": infer(LENGTH, LENGTH, rule="strict"),
    "two lengths": infer(LENGTH, "Content-Length: 5", rule="strict"),
    "a negative length": infer("Content-Length: -1", body=b"", rule="not-http"),
    "a length in words": infer("Content-Length: abc", body=b"", rule="not-http"),
    "a length with a plus": infer(f"Content-Length: +{len(BODY)}", rule="not-http"),
    "a length beyond counting": infer(f"Content-Length: {'9' * 23}", body=b"", rule="not-http"),
    "expected": expecting("100-continue"),
    "expected in capitals": expecting("100-Continue"),
    "expected in chunks": expecting("100-continue", chunked=True),
    "something else expected": expecting("200-ok"),
    "nothing expected": expecting(""),
    "expected and sent": infer("Expect: 100-continue", LENGTH),
    "expected for nothing": infer("Expect: 100-continue", "Content-Length: 0", body=b""),
    "expected in a get": ask("Expect: 100-continue"),
    "two pipelined": raw(PROBE + PROBE, replies=2),
    "two infers pipelined": raw(INFER + INFER, replies=2),
    "a get and an infer pipelined": raw(PROBE + INFER, replies=2),
    "one after the other": raw(INFER, INFER, PROBE, INFER, replies=4),
    "an error and another": raw(http("POST", PATH, body=b"{"), INFER, replies=2),
    "HTTP/1.0": ask(version="1.0"),
    "HTTP/1.0 infer": infer(LENGTH, version="1.0"),
    "HTTP/1.0 kept": infer(LENGTH, "Connection: keep-alive", version="1.0"),
    "HTTP/1.0 get kept": ask("Connection: Keep-Alive", version="1.0"),
    "HTTP/1.0 closed": ask("Connection: close", version="1.0"),
    "HTTP/1.0 error": ask(path="/nothing", version="1.0"),
    "HTTP/1.0 expecting": infer("Expect: 100-continue", LENGTH, version="1.0"),
    "HTTP/2": raw(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", rule="not-http"),
    "closed": ask("Connection: close"),
    "closed in capitals": ask("Connection: Close"),
    "infer and close": infer(LENGTH, "Connection: close"),
    "an error and close": ask("Connection: close", path="/nothing"),
    "kept": ask("Connection: keep-alive"),
    "no host": raw(b"GET /v2 HTTP/1.1\r\n\r\n"),
    "two hosts": ask("Host: y"),
    "an upgrade": infer("Connection: Upgrade", "Upgrade: h2c", LENGTH),
    "a websocket": ask("Connection: Upgrade", "Upgrade: websocket"),
    "bare line feeds": raw(b"GET /v2 HTTP/1.1\nHost: x\n\n", rule="not-http"),
    "an empty line before": raw(b"\r\nGET /v2 HTTP/1.1\r\nHost: x\r\n\r\n", rule="lenient"),
    "closed among other words": ask("Connection: foo, close", rule="lenient"),
    "all options": ask(method="OPTIONS", path="*", rule="lenient"),
    "half-closed": HttpCase(HttpAsk((INFER,), half_close=True), "half-closed"),
    "HEAD": ask(method="HEAD", rule="head"),
    "HEAD of infer": ask(method="HEAD", path=PATH, rule="head"),
    "an unknown method": ask(method="FOO", rule="strict"),
    "an unknown method nowhere": ask(method="FOO", path="/nothing", rule="strict"),
    "CONNECT": ask(method="CONNECT", path="elsewhere:80"),
    "a method in lower case": ask(method="get", rule="not-http"),
    "a method of WebDAV": ask(method="PROPFIND"),
    "TLS": raw(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", rule="not-http"),
    "a body for a get": raw(http("GET", "/v2", body=b"abc")),
    "chunks for a get": raw(
        http("GET", "/v2", CHUNKED, body=b"3\r\nabc\r\n0\r\n\r\n", length=False)
    ),
    "a header without a colon": ask("foo", rule="not-http"),
    "a folded header": ask("foo: a\r\n b", rule="not-http"),
    "a space before a colon": ask("foo : bar", rule="strict"),
    "a control byte in a header": ask(b"foo: a\x01b", rule="strict"),
    "a NUL in a header": ask(b"foo: a\x00b", rule="strict"),
    "a high byte in a header": ask(b"foo: a\xe9b"),
    "UTF-8 in a header": ask("foo: é".encode()),
    "an empty header": ask("foo:"),
    "a header of nothing": ask(": bar", rule="not-http"),
    "a space in a path": ask(path="/v2/a b", rule="not-http"),
    "a relative path": ask(path="v2", rule="not-http"),
    "a high byte in a path": raw("GET /v2/é HTTP/1.1\r\nHost: x\r\n\r\n".encode(), rule="strict"),
    "a header of 4 kB": ask(f"foo: {'a' * 4000}"),
    "a header of 8 kB": ask(f"foo: {'a' * 8000}"),
    "a hundred headers": ask(*many(100, 70)),
    "a header of 20 kB": ask(f"foo: {'a' * 20_000}", rule="too-long"),
    "an infer with 20 kB of a header": infer(f"foo: {'a' * 20_000}", LENGTH, rule="too-long"),
    "four hundred headers": ask(*many(400, 70)),
    "headers of 64 kB": ask(*many(8, 8000)),
    "a name of 9 kB": ask("f" * 9000 + ": x", rule="too-long"),
    "a path of 9 kB": ask(path="/" + "a" * 9000, rule="too-long"),
    "a path of 7 kB": ask(path="/v2/" + "a" * 7000),
}
