"""The region's life with Triton: never used again in doubt, registered as often as needed."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.backend.conftest import POOL_BYTES, Setup
from tests.unit.backend.contract import COLUMNS, batch, executed, outputs_of, row
from tests.unit.backend.fake_triton import Refusal, offset_of
from tritonsched.errors import BackendError, StartupError, TritonUnavailable

OTHER = "tritonsched-1-0123abcd"  # a region of a sidecar that is gone


def raising(error: Exception) -> Callable[[], None]:
    def raise_it() -> None:
        raise error

    return raise_it


# -- memory of unknown fate ------------------------------------------------------------------------


async def break_with_a_batch_out(setup: Setup) -> None:
    """The connection breaks while a batch is executed."""
    setup.grpc.hold.clear()
    out = asyncio.ensure_future(executed(setup.backend, batch(row(0))))
    while not setup.grpc.requests:
        await asyncio.wait({out}, timeout=0)
    setup.grpc.is_up = False
    setup.grpc.hold.set()
    with pytest.raises(TritonUnavailable):
        await out


async def test_memory_of_a_broken_batch_is_not_used_again(there: Setup) -> None:
    """Triton may still write there: the next batches lie elsewhere."""
    await break_with_a_batch_out(there)
    assert there.backend.region.quarantined == 2
    held = {offset_of(t) for t in (*there.grpc.requests[0].inputs, *there.grpc.requests[0].outputs)}
    there.grpc.is_up = True
    for _ in range(3):
        await outputs_of(there.backend, batch(row(0)))
        request = there.grpc.requests[-1]
        assert held.isdisjoint(offset_of(t) for t in (*request.inputs, *request.outputs))


async def test_after_a_break_a_new_region_takes_the_place_of_the_old_one(there: Setup) -> None:
    """All room is there again, and Triton has forgotten the old region."""
    old = there.region
    await break_with_a_batch_out(there)
    there.grpc.is_up = True
    await there.backend.connect()
    assert there.region != old
    assert there.files() == [there.region]
    assert (there.backend.region.quarantined, there.backend.region.in_use_bytes) == (0, 0)


async def test_a_region_that_triton_still_uses_is_unregistered_later(there: Setup) -> None:
    """2.51 refuses while a batch uses it."""
    old = there.region
    await break_with_a_batch_out(there)
    there.grpc.is_up = True
    there.grpc.in_use.add(old)
    await there.backend.connect()
    assert old in there.grpc.regions
    there.grpc.in_use.clear()
    await there.backend.connect()
    assert old not in there.grpc.regions


async def test_an_answer_that_is_out_survives_a_new_region(there: Setup) -> None:
    """Its memory stays mapped until it is released."""
    reply = await executed(there.backend, batch(row(5)))
    await break_with_a_batch_out(there)
    there.grpc.is_up = True
    await there.backend.connect()
    assert bytes(reply.outputs[0].data) == row(5)
    reply.release()
    assert there.backend.region.in_use_bytes == 0


async def test_a_broken_stream_is_no_answer(there: Setup) -> None:
    """gRPC reports it as a status, but Triton did not send one."""
    there.grpc.before_infer = raising(Refusal("INTERNAL", "Received RST_STREAM with error code 2"))
    with pytest.raises(BackendError):
        await executed(there.backend, batch(row(0)))
    assert there.backend.region.quarantined == 2


async def test_memory_of_a_batch_that_triton_failed_is_free_at_once(there: Setup) -> None:
    """It has answered, so it is done."""
    there.grpc.before_infer = raising(Refusal("INVALID_ARGUMENT", "bad rows"))
    with pytest.raises(BackendError, match="bad rows") as caught:
        await executed(there.backend, batch(row(0)))
    assert caught.value.grpc_code_name == "INVALID_ARGUMENT"
    region = there.backend.region
    assert (region.quarantined, region.in_use_bytes) == (0, 0)


# -- registering -----------------------------------------------------------------------------------


async def test_the_region_is_registered_whole_from_offset_0(there: Setup) -> None:
    """And shown by Triton's own status."""
    assert await there.backend.region_status() == {there.region: POOL_BYTES}
    assert there.backend.transport_info == "system shared memory, 0.0625 MiB"


async def test_a_region_that_triton_has_forgotten_is_registered_again(there: Setup) -> None:
    """Every shared-memory example of Triton begins by unregistering all regions."""
    name = there.region
    there.grpc.regions.clear()
    assert await outputs_of(there.backend, batch(row(2))) == [("OUTPUT", (1, COLUMNS), row(2))]
    assert there.region == name
    assert there.backend.batches_shm == 2
    assert there.backend.region.in_use_bytes == 0


async def test_batches_at_once_register_a_forgotten_region_only_once(there: Setup) -> None:
    """Each is sent again and answered."""
    there.grpc.regions.clear()
    calls = [batch(row(n)) for n in range(8)]
    answers = await asyncio.gather(*(outputs_of(there.backend, call) for call in calls))
    assert [data for ((_, _, data),) in answers] == [row(n) for n in range(8)]
    assert there.grpc.calls.count("SystemSharedMemoryRegister") == 2


async def test_if_registering_again_fails_the_batch_goes_inline(there: Setup) -> None:
    """And so do the next ones, until Triton is connected anew."""
    there.grpc.regions.clear()
    (path,) = there.directory.iterdir()
    path.unlink()
    for number in range(2):
        assert (await outputs_of(there.backend, batch(row(number))))[0][2] == row(number)
    assert there.backend.batches_inline == 2


async def test_connecting_twice_to_the_same_triton_keeps_the_region(there: Setup) -> None:
    """A health check that was only slow costs nothing."""
    name = there.region
    await there.backend.connect()
    assert there.region == name
    await outputs_of(there.backend, batch(row(0)))
    assert there.backend.batches_shm == 1


async def test_a_new_triton_gets_the_same_region(there: Setup) -> None:
    """No batch was out when the old one went."""
    name = there.region
    there.grpc.regions.clear()
    await there.backend.connect()
    assert there.region == name


async def test_regions_of_dead_sidecars_are_forgotten_and_others_are_not(tmp_path: Path) -> None:
    """Only names of ours whose file is gone."""
    setup = Setup(tmp_path)
    for name in (OTHER, "somebodys"):
        setup.grpc.regions[name] = (tmp_path / name, 10)
    await setup.backend.connect()
    assert OTHER not in setup.grpc.regions
    assert "somebodys" in setup.grpc.regions
    await setup.backend.close()


async def test_auto_goes_inline_where_triton_cannot_open_the_region(tmp_path: Path) -> None:
    """It is on another host: our memory is given back and its regions are left alone."""
    setup = Setup(tmp_path, pool=None)
    (tmp_path / "other").mkdir()
    setup.grpc.directory = tmp_path / "other"
    setup.grpc.regions[OTHER] = (tmp_path / OTHER, 10)
    await setup.backend.connect()
    assert setup.backend.transport_info.startswith("inline (no shared memory: Unable to open")
    assert setup.files() == ["other"]
    assert OTHER in setup.grpc.regions
    await outputs_of(setup.backend, batch(row(0)))
    assert (setup.backend.batches_inline, setup.backend.fallbacks) == (1, 0)
    await setup.backend.close()


async def test_system_says_why_triton_cannot_open_the_region(tmp_path: Path) -> None:
    """No silent second best where shared memory was asked for."""
    setup = Setup(tmp_path, "system")
    (tmp_path / "other").mkdir()
    setup.grpc.directory = tmp_path / "other"
    with pytest.raises(BackendError, match="Unable to open shared memory region"):
        await setup.backend.connect()
    await setup.backend.close()


async def test_a_triton_that_does_not_show_the_region_is_not_trusted(
    there: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another region of that name, with another size, is not ours."""
    there.grpc.regions[there.region] = (there.directory, 1)
    await there.backend.connect()
    assert "does not show region" in there.backend.transport_info


@pytest.mark.parametrize("transport", ["system", "auto"])
def test_a_size_asked_for_must_be_had_at_start(tmp_path: Path, transport: str) -> None:
    """2^46 bytes fit into no machine's memory: an error now, not inline in silence."""
    with pytest.raises(StartupError, match="--transport inline"):
        Setup(tmp_path, transport, pool=1 << 46)


async def test_auto_without_room_goes_inline_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody asked for shared memory: the sidecar serves all the same."""
    monkeypatch.setattr("tritonsched.backend.shared_memory.POOL_BYTES_MIN", 1 << 46)
    setup = Setup(tmp_path, pool=None)
    await setup.backend.connect()
    assert setup.backend.transport_info.startswith("inline (no shared memory: shared memory: ")
    await outputs_of(setup.backend, batch(row(0)))
    await setup.backend.close()
