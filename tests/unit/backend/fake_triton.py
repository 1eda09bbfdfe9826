"""A Triton in this process: regions, models and the wire form of 2.51, and faults on demand.

What it does was observed on Triton 2.51: outputs in shared memory come back with an empty raw entry
and no parameters; texts and codes are Triton's.
"""

import asyncio
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from tritonclient.grpc import service_pb2 as pb

from tritonsched.backend.scripted_cuda import ScriptedCuda
from tritonsched.backend.upstream_grpc import SERVICE, GrpcUpstream
from tritonsched.backend.upstream_http import HttpUpstream
from tritonsched.errors import CudaFault, TritonUnavailable
from tritonsched.tensors import Buffer, GrpcReply, HttpReply

Edit = Callable[[Any], None]
_UNKNOWN = "Request for unknown model: '{}' is not found"


class Refusal(Exception):
    """Triton's error status."""

    def __init__(self, code: str, details: str) -> None:
        super().__init__(details)
        self.code = code


class FakeHttp(HttpUpstream):
    """Answers 200 with the body sent, or Triton's 404."""

    def __init__(self) -> None:
        super().__init__("127.0.0.1:1")
        self.requests: list[tuple[str, str, tuple[tuple[str, str | bytes], ...], bytes]] = []

    async def request(
        self, method: str, raw_path: str, headers: Iterable[tuple[str, str | bytes]], body: Buffer
    ) -> HttpReply:
        self.requests.append((method, raw_path, tuple(headers), bytes(body)))
        model = raw_path.split("/")[3]
        if model != "echo":
            return HttpReply(404, "Not Found", (), _UNKNOWN.format(model).encode())
        return HttpReply(200, "OK", (), body)


class FakeGrpc(GrpcUpstream):
    """Triton behind its gRPC port. directory: its /dev/shm.

    before_infer: called before each inference; may raise. edit: changes each inference's answer.
    hold: while cleared, inferences wait. calls: methods, in order. is_up: else TritonUnavailable.
    cuda: the GPUs as Triton sees them; None: it was built without.
    """

    def __init__(self, directory: Path, cuda: ScriptedCuda | None = None) -> None:
        super().__init__("127.0.0.1:1")
        self.directory = directory
        self.cuda = cuda
        self.cuda_regions: dict[str, tuple[int, int, int]] = {}
        self.regions: dict[str, tuple[Path, int]] = {}
        self.calls: list[str] = []
        self.requests: list[Any] = []
        self.is_up = True
        self.version = "2.51.0"
        self.in_use: set[str] = set()
        self.ensembles: dict[str, tuple[str, ...]] = {}
        self.on_gpu: dict[str, int] = {}
        self.echo_gpus = [0]
        self.before_infer: Callable[[], None] = lambda: None
        self.edit: Edit = lambda _: None
        self.writes = True
        self.hold = asyncio.Event()
        self.hold.set()

    async def unary(
        self, method: str, message: Buffer, metadata: Iterable[tuple[str, str | bytes]] = ()
    ) -> GrpcReply:
        name = method.removeprefix(SERVICE)
        self.calls.append(name)
        self._require_up()
        request = getattr(pb, f"{name}Request").FromString(bytes(message))
        try:
            answer = await getattr(self, f"_{name}")(request)
        except Refusal as refusal:
            return GrpcReply(refusal.code, str(refusal), b"")
        self._require_up()
        return GrpcReply("OK", "", answer.SerializeToString())

    def _require_up(self) -> None:
        if not self.is_up:
            raise TritonUnavailable("nobody there")

    async def _ServerLive(self, _: Any) -> Any:  # noqa: N802  # the RPC's name
        return pb.ServerLiveResponse(live=True)

    async def _ServerMetadata(self, _: Any) -> Any:  # noqa: N802
        if not self.version:
            raise Refusal("UNAVAILABLE", "This protocol is restricted")
        return pb.ServerMetadataResponse(version=self.version)

    async def _RepositoryIndex(self, _: Any) -> Any:  # noqa: N802
        answer = pb.RepositoryIndexResponse()
        answer.models.add(name="echo", version="1", state="READY")
        return answer

    async def _ModelConfig(self, request: Any) -> Any:  # noqa: N802
        answer = pb.ModelConfigResponse()
        if request.name in self.ensembles:
            for step in self.ensembles[request.name]:
                answer.config.ensemble_scheduling.step.add(model_name=step)
            answer.config.name = request.name
            return answer
        if request.name in self.on_gpu:
            answer.config.instance_group.add(gpus=[self.on_gpu[request.name]])
            return answer
        self._require_model(request.name)
        answer.config.name = "echo"
        if self.cuda is not None:
            answer.config.instance_group.add(gpus=self.echo_gpus)
        answer.config.max_batch_size = 64
        answer.config.input.add(name="INPUT", data_type="TYPE_FP32", dims=[-1])
        answer.config.output.add(name="OUTPUT", data_type="TYPE_FP32", dims=[-1])
        return answer

    def _require_model(self, name: str) -> None:
        if name != "echo":
            raise Refusal("NOT_FOUND", _UNKNOWN.format(name))

    async def _SystemSharedMemoryRegister(self, request: Any) -> Any:  # noqa: N802
        if request.name in self.regions:
            text = f"shared memory region '{request.name}' already in manager"
            raise Refusal("ALREADY_EXISTS", text)
        path = self.directory / request.key.removeprefix("/")
        if not path.exists():
            raise Refusal("INTERNAL", f"Unable to open shared memory region: '{request.key}'")
        self.regions[request.name] = (path, request.byte_size)
        return pb.SystemSharedMemoryRegisterResponse()

    async def _SystemSharedMemoryUnregister(self, request: Any) -> Any:  # noqa: N802
        if request.name in self.in_use:
            raise Refusal("INTERNAL", f"Cannot unregister '{request.name}', in use")
        if request.name:
            self.regions.pop(request.name, None)
        else:
            self.regions.clear()
        return pb.SystemSharedMemoryUnregisterResponse()

    async def _SystemSharedMemoryStatus(self, _: Any) -> Any:  # noqa: N802
        answer = pb.SystemSharedMemoryStatusResponse()
        for name, (_path, size) in self.regions.items():
            answer.regions[name].byte_size = size
        return answer

    async def _CudaSharedMemoryRegister(self, request: Any) -> Any:  # noqa: N802
        if self.cuda is None:
            raise Refusal("INVALID_ARGUMENT", "failed to register CUDA shared memory region")
        if request.name in self.cuda_regions:
            raise Refusal("ALREADY_EXISTS", f"region '{request.name}' already in manager")
        try:
            address = self.cuda.open_handle(request.device_id, request.raw_handle)
        except CudaFault as fault:
            raise Refusal("INVALID_ARGUMENT", f"failed to open CUDA IPC handle: {fault}") from fault
        self.cuda_regions[request.name] = (address, request.device_id, request.byte_size)
        return pb.CudaSharedMemoryRegisterResponse()

    async def _CudaSharedMemoryUnregister(self, request: Any) -> Any:  # noqa: N802
        if request.name in self.in_use:
            raise Refusal("INTERNAL", f"Cannot unregister '{request.name}', in use")
        for name in [request.name] if request.name else list(self.cuda_regions):
            found = self.cuda_regions.pop(name, None)
            if found is not None and self.cuda is not None:
                self.cuda.close_handle(found[1], found[0])
        return pb.CudaSharedMemoryUnregisterResponse()

    async def _CudaSharedMemoryStatus(self, _: Any) -> Any:  # noqa: N802
        answer = pb.CudaSharedMemoryStatusResponse()
        for name, (_, device, size) in self.cuda_regions.items():
            answer.regions[name].byte_size = size
            answer.regions[name].device_id = device
        return answer

    async def _ModelInfer(self, request: Any) -> Any:  # noqa: N802
        self.requests.append(request)
        self._require_model(request.model_name)
        self.before_infer()
        inline = iter(request.raw_input_contents)
        data = [
            self._slot(tensor).read() if _is_shared(tensor) else next(inline)
            for tensor in request.inputs
        ]
        await self.hold.wait()
        answer = pb.ModelInferResponse(model_name=request.model_name, model_version="1")
        for index, output in enumerate(request.outputs):
            source = request.inputs[min(index, len(data) - 1)]
            content = data[min(index, len(data) - 1)]
            answer.outputs.add(name=output.name, datatype=source.datatype, shape=source.shape)
            if _is_shared(output):
                slot = self._slot(output)
                if self.writes:
                    slot.write(content)
                content = b""
            answer.raw_output_contents.append(content)
        self.edit(answer)
        return answer

    def _slot(self, tensor: Any) -> "_Slot | _CudaSlot":
        region = tensor.parameters["shared_memory_region"].string_param
        if region in self.cuda_regions and self.cuda is not None:
            address = self.cuda_regions[region][0] + offset_of(tensor)
            return _CudaSlot(self.cuda, address, size_of(tensor))
        if region not in self.regions:
            raise Refusal("NOT_FOUND", f"Unable to find shared memory region: '{region}'")
        return _Slot(self.regions[region][0], offset_of(tensor), size_of(tensor))


def offset_of(tensor: Any) -> int:
    return int(tensor.parameters["shared_memory_offset"].int64_param)


def size_of(tensor: Any) -> int:
    return int(tensor.parameters["shared_memory_byte_size"].int64_param)


def region_of(tensor: Any) -> str:
    return str(tensor.parameters["shared_memory_region"].string_param)


def _is_shared(tensor: Any) -> bool:
    return "shared_memory_region" in tensor.parameters


class _Slot:
    def __init__(self, path: Path, offset: int, size: int) -> None:
        self.path = path
        self.offset = offset
        self.size = size

    def read(self) -> bytes:
        with self.path.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.size)

    def write(self, data: bytes) -> None:
        assert len(data) == self.size
        with self.path.open("r+b") as file:
            file.seek(self.offset)
            file.write(data)


class _CudaSlot:
    def __init__(self, cuda: ScriptedCuda, address: int, size: int) -> None:
        self._cuda = cuda
        self._address = address
        self.size = size

    def read(self) -> bytes:
        return self._cuda.read(self._address, self.size)

    def write(self, data: bytes) -> None:
        assert len(data) == self.size
        self._cuda.write(self._address, data)
