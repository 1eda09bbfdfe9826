"""The sidecar's own questions to Triton, over gRPC. Rule: one method a question, nothing kept.

Source: KServe v2 gRPC protocol with Triton's model configuration and system shared-memory
extensions.
"""

from collections.abc import Callable
from typing import Any

from tritonclient.grpc import service_pb2 as pb

from tritonsched.backend import wire
from tritonsched.backend.base import GrpcCalls
from tritonsched.backend.catalogue import ModelInfo, model_info
from tritonsched.backend.upstream_grpc import SERVICE
from tritonsched.errors import BackendError

RTT_SAMPLES = 20
Index = frozenset[tuple[str, str, str]]
"""(model, version, state) of a repository."""


class Control:
    """Every method raises TritonUnavailable, or BackendError with Triton's own text and code."""

    def __init__(self, grpc: GrpcCalls) -> None:
        self._grpc = grpc

    async def _ask(self, method: str, request: Any, answer: Any) -> Any:
        reply = await self._grpc.unary(SERVICE + method, request.SerializeToString())
        if reply.code != "OK":
            raise BackendError(reply.details, grpc_code_name=reply.code)
        return wire.parse(answer, reply.message)

    async def is_live(self) -> bool:
        """Triton answers inference requests. `ServerReady` says less: it is false while any model
        of the repository loads or is broken, though the others serve.
        """
        request = pb.ServerLiveRequest()
        return bool((await self._ask("ServerLive", request, pb.ServerLiveResponse)).live)

    async def server_version(self) -> str:
        """Triton's own version, as `2.51.0`."""
        request = pb.ServerMetadataRequest()
        return str((await self._ask("ServerMetadata", request, pb.ServerMetadataResponse)).version)

    async def repository_index(self) -> Index:
        """Every model and version of the repository, and its state."""
        request = pb.RepositoryIndexRequest()
        models = (await self._ask("RepositoryIndex", request, pb.RepositoryIndexResponse)).models
        return frozenset((model.name, model.version, model.state) for model in models)

    async def rtt_ns(self, clock: Callable[[], int], samples: int = RTT_SAMPLES) -> int:
        """Median round trip of an empty call, in ns. clock: monotonic nanoseconds."""
        times = []
        for _ in range(samples):
            start_ns = clock()
            await self._ask("ServerLive", pb.ServerLiveRequest(), pb.ServerLiveResponse)
            times.append(clock() - start_ns)
        return sorted(times)[samples // 2]

    async def model_info(self, model: str, version: str) -> ModelInfo:
        """A model's configuration; an empty version is the newest."""
        request = pb.ModelConfigRequest(name=model, version=version)
        reply = await self._ask("ModelConfig", request, pb.ModelConfigResponse)
        return model_info(reply.config, version)

    async def batch_times_ns(self) -> dict[str, dict[int, int]]:
        """What Triton measured itself: mean execution, in ns, by model and rows of a batch.

        Source: `compute_infer` of the statistics extension; models that never ran are absent.
        """
        request = pb.ModelStatisticsRequest()
        stats = (
            await self._ask("ModelStatistics", request, pb.ModelStatisticsResponse)
        ).model_stats
        times: dict[str, dict[int, int]] = {}
        for model in stats:
            for batch in model.batch_stats:
                if batch.compute_infer.count:
                    mean_ns = batch.compute_infer.ns // batch.compute_infer.count
                    times.setdefault(model.name, {})[int(batch.batch_size)] = mean_ns
        return times

    async def request_counts(self) -> dict[tuple[str, str], tuple[int, int]]:
        """Requests (succeeded, failed) by model and version, as Triton counts them; those of all
        that it serves.
        """
        request = pb.ModelStatisticsRequest()
        stats = await self._ask("ModelStatistics", request, pb.ModelStatisticsResponse)
        return {
            (model.name, model.version): (
                int(model.inference_stats.success.count),
                int(model.inference_stats.fail.count),
            )
            for model in stats.model_stats
        }

    async def region_status(self) -> dict[str, int]:
        """The system shared-memory regions that Triton knows: bytes by name."""
        request = pb.SystemSharedMemoryStatusRequest()
        answer = pb.SystemSharedMemoryStatusResponse
        regions = (await self._ask("SystemSharedMemoryStatus", request, answer)).regions
        return {name: int(region.byte_size) for name, region in sorted(regions.items())}

    async def register_region(self, *, name: str, key: str, byte_size: int) -> None:
        """Have Triton open a region; well too if it has it already.

        Always from offset 0: 2.51 reads foreign memory with any other. Raises BackendError if it
        cannot, say because it is on another host.
        """
        request = pb.SystemSharedMemoryRegisterRequest(
            name=name, key=key, offset=0, byte_size=byte_size
        )
        answer = pb.SystemSharedMemoryRegisterResponse
        try:
            await self._ask("SystemSharedMemoryRegister", request, answer)
        except BackendError as error:
            if error.grpc_code_name != "ALREADY_EXISTS":
                raise
        if (await self.region_status()).get(name) != byte_size:
            raise BackendError(f"Triton does not show region {name} after registering it")

    async def unregister_region(self, name: str) -> None:
        """Have Triton close a region. 2.51 refuses while a request uses it."""
        assert name, "an empty name would unregister everybody's regions"
        request = pb.SystemSharedMemoryUnregisterRequest(name=name)
        answer = pb.SystemSharedMemoryUnregisterResponse
        await self._ask("SystemSharedMemoryUnregister", request, answer)

    async def cuda_status(self) -> dict[str, tuple[int, int]]:
        """The CUDA shared-memory regions that Triton has open: (device, bytes) by name."""
        request = pb.CudaSharedMemoryStatusRequest()
        answer = pb.CudaSharedMemoryStatusResponse
        regions = (await self._ask("CudaSharedMemoryStatus", request, answer)).regions
        return {
            name: (int(region.device_id), int(region.byte_size))
            for name, region in sorted(regions.items())
        }

    async def register_cuda(self, *, name: str, handle: bytes, device: int, byte_size: int) -> None:
        """Have Triton open device memory by its handle; well too if it has it already.

        Raises BackendError if it cannot: another GPU, another pid namespace, no GPU support.
        """
        request = pb.CudaSharedMemoryRegisterRequest(
            name=name, raw_handle=handle, device_id=device, byte_size=byte_size
        )
        answer = pb.CudaSharedMemoryRegisterResponse
        try:
            await self._ask("CudaSharedMemoryRegister", request, answer)
        except BackendError as error:
            if error.grpc_code_name != "ALREADY_EXISTS":
                raise
        if (await self.cuda_status()).get(name) != (device, byte_size):
            raise BackendError(f"Triton does not show CUDA region {name} after registering it")

    async def unregister_cuda(self, name: str) -> None:
        """Have Triton close device memory. 2.51 refuses while a request uses it."""
        assert name, "an empty name would unregister everybody's regions"
        request = pb.CudaSharedMemoryUnregisterRequest(name=name)
        answer = pb.CudaSharedMemoryUnregisterResponse
        await self._ask("CudaSharedMemoryUnregister", request, answer)
