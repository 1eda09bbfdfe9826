"""TLS on both clients' ports: real clients, a CA made for the test, and what is no TLS."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
import tritonclient.http.aio as triton_http
import trustme
import uvloop
from tritonclient.grpc import service_pb2 as pb

from tests.unit.frontend.h2_client import INFER, REQUEST
from tests.unit.frontend.services import Service
from tests.unit.frontend.wires import HOST
from tritonsched.backend.upstream_grpc import GrpcUpstream
from tritonsched.backend.upstream_http import HttpUpstream
from tritonsched.errors import StartupError
from tritonsched.frontend import door
from tritonsched.frontend.gate import TLS, TOO_MANY, Gate, Limits
from tritonsched.frontend.grpc_h2_server import H2GrpcServer
from tritonsched.frontend.grpc_server import GrpcServer
from tritonsched.frontend.http_server import HttpServer
from tritonsched.frontend.tls import H2, HTTP1, Tls
from tritonsched.options import TlsFiles

LIMIT = 1 << 20


class Identity:
    """Files of a server, and who made them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.ca = trustme.CA()
        self.ca_file = directory / "ca.pem"
        self.ca.cert_pem.write_to_path(self.ca_file)
        self.files = TlsFiles(directory / "cert.pem", directory / "key.pem")
        self.renew()

    def renew(self, ca: trustme.CA | None = None) -> None:
        """A new certificate, by the same CA unless another one is given."""
        made = (ca or self.ca).issue_cert(HOST)
        made.private_key_pem.write_to_path(self.files.key)
        self.files.certificate.unlink(missing_ok=True)
        for blob in made.cert_chain_pems:
            blob.write_to_path(self.files.certificate, append=True)

    def client(self, alpn: str = "") -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=self.ca_file)
        if alpn:
            context.set_alpn_protocols([alpn])
        return context


@pytest.fixture
def identity(tmp_path: Path) -> Identity:
    return Identity(tmp_path)


@contextlib.asynccontextmanager
async def grpc_serving(
    tls: Tls, gate: Gate | None = None, *, grpcio: bool = False
) -> AsyncIterator[int]:
    upstream = GrpcUpstream(f"{HOST}:1")
    await upstream.start()
    given = {"host": HOST, "port": 0, "request_bytes_max": LIMIT}
    server: H2GrpcServer | GrpcServer
    if grpcio:
        server = GrpcServer(Service(), upstream, **given, tls=tls.grpcio())  # type: ignore[arg-type]  # a mapping of both
    else:
        server = H2GrpcServer(Service(), upstream, **given, gate=gate, tls=tls.context(H2))  # type: ignore[arg-type]  # as above
    await server.start()
    try:
        yield server.port
    finally:
        await server.stop()
        await upstream.close()


@contextlib.asynccontextmanager
async def http_serving(tls: Tls, gate: Gate | None = None) -> AsyncIterator[int]:
    upstream = HttpUpstream(f"{HOST}:1")
    await upstream.start()
    server = HttpServer(
        Service(), upstream,
        host=HOST, port=0, request_bytes_max=LIMIT, gate=gate, tls=tls.context(HTTP1),
    )  # fmt: skip
    await server.start()
    try:
        yield server.port
    finally:
        await server.stop()
        await upstream.close()


async def ask_grpc(port: int, credentials: grpc.ChannelCredentials) -> pb.ModelInferResponse:
    async with grpc.aio.secure_channel(f"{HOST}:{port}", credentials) as channel:
        answer = await channel.unary_unary(INFER, None, None)(REQUEST, timeout=20)
        return pb.ModelInferResponse.FromString(answer)


async def ask_http(port: int, context: ssl.SSLContext) -> bytes:
    reader, writer = await asyncio.open_connection(HOST, port, ssl=context)
    writer.write(
        b"POST /v2/models/m/infer HTTP/1.1\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
    )
    answer = await reader.read()
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return answer


# -- real clients ----------------------------------------------------------------------------------


@pytest.mark.parametrize("grpcio", [False, True])
async def test_a_grpc_client_is_served_over_tls(identity: Identity, grpcio: bool) -> None:
    credentials = grpc.ssl_channel_credentials(identity.ca_file.read_bytes())
    async with grpc_serving(Tls(identity.files), grpcio=grpcio) as port:
        assert (await ask_grpc(port, credentials)).id == "x"


async def test_tritonclient_is_served_over_tls(identity: Identity) -> None:
    async with http_serving(Tls(identity.files)) as port:
        client = triton_http.InferenceServerClient(
            f"{HOST}:{port}", ssl=True, ssl_context=identity.client()
        )
        tensor = triton_http.InferInput("IN", [1, 4], "FP32")
        tensor.set_data_from_numpy(np.zeros((1, 4), np.float32))
        answer = await client.infer("m", [tensor])
        assert answer.get_response()["model_version"] == "3"
        await client.close()


@pytest.mark.parametrize("grpcio", [False, True])
async def test_a_client_without_a_certificate_is_turned_away_where_one_is_asked_for(
    identity: Identity, grpcio: bool
) -> None:
    files = TlsFiles(identity.files.certificate, identity.files.key, identity.ca_file)
    root = identity.ca_file.read_bytes()
    own = identity.ca.issue_cert("client")
    chain = b"".join(blob.bytes() for blob in own.cert_chain_pems)
    stranger = trustme.CA().issue_cert("client")
    theirs = b"".join(blob.bytes() for blob in stranger.cert_chain_pems)
    async with grpc_serving(Tls(files), grpcio=grpcio) as port:
        known = grpc.ssl_channel_credentials(root, own.private_key_pem.bytes(), chain)
        assert (await ask_grpc(port, known)).id == "x"
        for credentials in (
            grpc.ssl_channel_credentials(root),
            grpc.ssl_channel_credentials(root, stranger.private_key_pem.bytes(), theirs),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await ask_grpc(port, credentials)
            assert caught.value.code() == grpc.StatusCode.UNAVAILABLE


# -- what is negotiated ----------------------------------------------------------------------------


async def test_the_ports_name_their_protocols(identity: Identity) -> None:
    tls = Tls(identity.files)
    async with grpc_serving(tls) as grpc_port, http_serving(tls) as http_port:
        for port, alpn in ((grpc_port, H2), (http_port, HTTP1)):
            context = identity.client()
            context.set_alpn_protocols([HTTP1, H2])
            _, writer = await asyncio.open_connection(HOST, port, ssl=context)
            assert writer.get_extra_info("ssl_object").selected_alpn_protocol() == alpn
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


async def test_tls_below_1_2_is_refused(identity: Identity) -> None:
    context = Tls(identity.files).context(HTTP1)()
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert all(
        "GCM" in cipher["name"] or "POLY1305" in cipher["name"] for cipher in context.get_ciphers()
    )


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_request_that_comes_with_the_handshake_is_answered(
    identity: Identity, new_loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    """In one piece with its last message, before the connection is handed over."""

    async def run() -> None:
        async with http_serving(Tls(identity.files)) as port:
            reader, writer = await asyncio.open_connection(HOST, port)
            coming, going = ssl.MemoryBIO(), ssl.MemoryBIO()
            engine = identity.client().wrap_bio(coming, going, server_hostname=HOST)
            while True:
                try:
                    engine.do_handshake()
                except ssl.SSLWantReadError:
                    writer.write(going.read())
                    coming.write(await reader.read(1 << 16))
                else:
                    break
            engine.write(b"POST /v2/models/m/infer HTTP/1.1\r\nContent-Length: 0\r\n\r\n")
            writer.write(going.read())  # with the handshake's last message
            answer = b""
            while b"\r\n\r\n" not in answer:
                coming.write(await reader.read(1 << 16))
                with contextlib.suppress(ssl.SSLWantReadError):
                    while True:
                        answer += engine.read(1 << 16)
            assert answer.startswith(b"HTTP/1.1 200")
            writer.close()
            await writer.wait_closed()

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(run())


# -- what is no TLS, and too much of it ------------------------------------------------------------


async def test_what_is_no_tls_is_closed_and_counted_and_others_are_served(
    identity: Identity,
) -> None:
    told: list[str] = []
    async with http_serving(Tls(identity.files), Gate(ended=told.append)) as port:
        reader, writer = await asyncio.open_connection(HOST, port)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            await reader.read()
        assert b"200" in await ask_http(port, identity.client())
        writer.close()
        assert told == [TLS]


async def test_a_handshake_that_does_not_come_is_ended(
    identity: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door, "SHAKE_S", 0.01)
    told: list[str] = []
    gate = Gate(ended=told.append)
    async with http_serving(Tls(identity.files), gate) as port:
        reader, writer = await asyncio.open_connection(HOST, port)
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
        assert (told, len(gate)) == ([TLS], 0)
        writer.close()


async def test_handshakes_count_as_connections(identity: Identity) -> None:
    told: list[str] = []
    gate = Gate(Limits(connections_max=1), ended=told.append)
    async with http_serving(Tls(identity.files), gate) as port:
        _, first = await asyncio.open_connection(HOST, port)
        while not len(gate):
            await ask_nothing()
        reader, second = await asyncio.open_connection(HOST, port)
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
        assert told == [TOO_MANY]
        first.close()
        second.close()


async def ask_nothing() -> None:
    """A turn of the loop."""
    turned = asyncio.Event()
    asyncio.get_running_loop().call_soon(turned.set)
    await turned.wait()


# -- files -----------------------------------------------------------------------------------------


async def test_a_reload_is_for_new_connections_and_a_bad_one_changes_nothing(
    identity: Identity,
) -> None:
    tls = Tls(identity.files)
    other = trustme.CA()
    async with http_serving(tls) as port:
        reader, writer = await asyncio.open_connection(HOST, port, ssl=identity.client())
        identity.renew(other)
        tls.reload()
        with pytest.raises(ssl.SSLCertVerificationError):
            await ask_http(port, identity.client())
        other.cert_pem.write_to_path(identity.ca_file)
        assert b"200" in await ask_http(port, identity.client())
        identity.files.key.write_text("no key")
        with pytest.raises(StartupError):
            tls.reload()
        assert b"200" in await ask_http(port, identity.client())
        writer.write(b"POST /v2/models/m/infer HTTP/1.1\r\nContent-Length: 0\r\n\r\n")
        assert b"200" in await reader.readline()
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def faults(identity: Identity) -> Iterator[tuple[TlsFiles, str]]:
    good = identity.files
    none, text, locked = (identity.directory / name for name in ("none", "text", "locked.pem"))
    text.write_text("no PEM")
    locked.write_text(
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMIIBvTBXBgkqhkiG9w0BBQ0wSjApBgkqhkiG9w0B\n"
        "-----END ENCRYPTED PRIVATE KEY-----\n"
    )
    other = trustme.CA().issue_cert(HOST)
    other_key = identity.directory / "other.pem"
    other.private_key_pem.write_to_path(other_key)
    yield TlsFiles(none, good.key), "No such file"
    yield TlsFiles(good.certificate, text), "--tls-key"
    yield TlsFiles(good.certificate, locked), "--tls-key"
    yield TlsFiles(good.certificate, other_key), "--tls-key"
    yield TlsFiles(good.certificate, good.key, none), "--tls-client-ca"
    yield TlsFiles(good.certificate, good.key, text), "--tls-client-ca"


def test_files_that_cannot_be_used_are_told_with_their_option(identity: Identity) -> None:
    for files, text in faults(identity):
        with pytest.raises(StartupError, match=text):
            Tls(files)
