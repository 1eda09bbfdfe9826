"""TLS from real clients through a sidecar to a real Triton, on either gRPC front end."""

import ssl
from pathlib import Path

import grpc
import numpy as np
import pytest
import tritonclient.grpc as sync_grpc
import tritonclient.http.aio as aio_http
import trustme

from tests.integration.sidecars import grpc_url, http_url, metric, running_sidecar
from tests.unit.frontend.wires import HOST
from tritonsched.backend.embedded import EmbeddedTriton
from tritonsched.options import GrpcFrontend, TlsFiles

ROW = np.arange(4, dtype=np.float32)[np.newaxis]


def write(ca: trustme.CA, files: TlsFiles) -> None:
    identity = ca.issue_cert(HOST)
    identity.private_key_pem.write_to_path(files.key)
    files.certificate.write_bytes(b"".join(blob.bytes() for blob in identity.cert_chain_pems))


@pytest.mark.parametrize("frontend", list(GrpcFrontend))
async def test_clients_with_certificates_are_served_and_a_new_one_is_taken_at_a_reload(
    triton: EmbeddedTriton, tmp_path: Path, frontend: GrpcFrontend
) -> None:
    ca, other = trustme.CA(), trustme.CA()
    ca.cert_pem.write_to_path(tmp_path / "ca.pem")
    files = TlsFiles(tmp_path / "cert.pem", tmp_path / "key.pem", tmp_path / "ca.pem")
    write(ca, files)
    own = ca.issue_cert("client")
    chain = b"".join(blob.bytes() for blob in own.cert_chain_pems)
    async with running_sidecar(triton, tls=files, grpc_frontend=frontend) as sidecar:
        for root in (ca, other):
            credentials = grpc.ssl_channel_credentials(
                root.cert_pem.bytes(), own.private_key_pem.bytes(), chain
            )
            async with grpc.aio.secure_channel(grpc_url(sidecar), credentials) as channel:
                stub = sync_grpc.service_pb2_grpc.GRPCInferenceServiceStub(channel)
                reply = await stub.ServerReady(sync_grpc.service_pb2.ServerReadyRequest())
                assert reply.ready
            assert await over_http(http_url(sidecar), root, own) == ROW.tolist()
            write(other, files)
            sidecar.reload_soon()
        with pytest.raises(ssl.SSLError):
            await over_http(http_url(sidecar), ca, own)
        assert await metric(sidecar, "tritonsched_connections_ended_total", reason="tls") >= 1


async def over_http(url: str, root: trustme.CA, own: trustme.LeafCert) -> object:
    """What `echo` answers to ROW."""
    context = ssl.create_default_context(cadata=root.cert_pem.bytes().decode())
    own.configure_cert(context)
    client = aio_http.InferenceServerClient(url, ssl=True, ssl_context=context)
    try:
        tensor = aio_http.InferInput("INPUT", ROW.shape, "FP32")
        tensor.set_data_from_numpy(ROW)
        return (await client.infer("echo", [tensor])).as_numpy("OUTPUT").tolist()
    finally:
        await client.close()
