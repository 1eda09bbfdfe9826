"""The scripted GPU is as strict as CUDA, or stricter: what code gets away with here, is right."""

import pytest

from tritonsched.backend.cuda import device_number
from tritonsched.backend.scripted_cuda import ScriptedCuda
from tritonsched.errors import CudaFault


@pytest.fixture
def cuda() -> ScriptedCuda:
    return ScriptedCuda(("A", "B"))


def test_a_copy_has_not_arrived_before_its_stream_was_waited_for(cuda: ScriptedCuda) -> None:
    host, there = cuda.allocate_host(0, 8), cuda.allocate(0, 8)
    stream = cuda.stream(0)
    host.view[:] = b"12345678"
    stream.copy(there, host.address, 8)
    assert cuda.read(there, 8) == bytes(8)
    stream.finish()
    assert cuda.read(there, 8) == b"12345678"
    assert cuda.copies == [(there, host.address, 8)]


def test_everything_that_was_not_given_back_is_told(cuda: ScriptedCuda) -> None:
    other = cuda.process()
    there, host, stream = cuda.allocate(1, 4), cuda.allocate_host(0, 2), cuda.stream(0)
    opened = other.open_handle(1, cuda.handle(1, there))
    assert cuda.held() == ["2 bytes of host memory", "4 bytes of GPU 1", "a stream"]
    assert other.held() == ["a handle of GPU 1"]
    other.close_handle(1, opened)
    cuda.free(1, there)
    cuda.free_host(host)
    stream.close()
    assert cuda.held() == other.held() == []


def test_memory_that_another_process_has_open_is_not_freed(cuda: ScriptedCuda) -> None:
    """Undefined in CUDA; here it is an error."""
    there = cuda.allocate(0, 4)
    cuda.process().open_handle(0, cuda.handle(0, there))
    with pytest.raises(CudaFault, match="has open"):
        cuda.free(0, there)


def test_a_handle_is_for_other_processes_on_the_same_gpu(cuda: ScriptedCuda) -> None:
    handle = cuda.handle(0, cuda.allocate(0, 4))
    other = cuda.process()
    for opener, device in ((cuda, 0), (other, 1), (other, 2)):
        with pytest.raises(CudaFault):
            opener.open_handle(device, handle)
    address = other.open_handle(0, handle)
    assert other.extent(0, address) == 4
    with pytest.raises(CudaFault):
        cuda.extent(0, address)


def test_memory_is_reached_by_who_has_it_and_within_its_bounds(cuda: ScriptedCuda) -> None:
    there = cuda.allocate(0, 4)
    other = cuda.process()
    for who, address, size in ((cuda, there, 5), (cuda, there - 1, 2), (other, there, 4)):
        with pytest.raises(CudaFault, match="IllegalAddress"):
            who.read(address, size)
        with pytest.raises(CudaFault, match="IllegalAddress"):
            who.write(address, bytes(size))


def test_what_is_not_there_cannot_be_freed_or_closed(cuda: ScriptedCuda) -> None:
    there = cuda.allocate(0, 4)
    for wrong in (
        lambda: cuda.free(1, there),
        lambda: cuda.free(0, there + 1),
        lambda: cuda.process().free(0, there),
        lambda: cuda.close_handle(0, there),
        lambda: cuda.allocate(2, 4),
    ):
        with pytest.raises(CudaFault):
            wrong()
    cuda.free(0, there)
    with pytest.raises(CudaFault):
        cuda.free(0, there)


@pytest.mark.parametrize(
    ("label", "number"),
    [
        ("gpu:0", 0),
        ("gpu:15", 15),
        ("north/gpu:1", 1),
        ("cpu:echo:0", None),
        ("gpu", None),
        ("gpu:", None),
        ("gpu:x", None),
        ("emulated", None),
        ("", None),
    ],
)
def test_a_gpu_is_known_by_its_label(label: str, number: int | None) -> None:
    assert device_number(label) == number
