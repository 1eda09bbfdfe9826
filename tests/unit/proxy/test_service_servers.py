"""The door when there are several servers: who serves a model changes, sequences have a home."""

from dataclasses import replace

from tests.helpers import exact
from tests.unit.proxy.calls import ECHO, call
from tests.unit.proxy.scene import EXEC_NS, ends, virtual
from tests.unit.proxy.test_service import CANNED, Door
from tests.virtual_loop import VirtualLoop
from tritonsched.backend.scripted import hang
from tritonsched.core.variant import ServerState
from tritonsched.tensors import MergedReply


@virtual
async def test_a_server_that_comes_up_adds_its_devices_and_what_waits_stays_mergeable(
    loop: VirtualLoop,
) -> None:
    door = Door(loop, hang())
    door.backend.answers["echo"] = replace(ECHO, devices=("l/g",), servers=("left",))
    for device in ("l/g", "r/g"):
        door.scheduler.set_profile("echo", device, exact(dict.fromkeys(range(1, 9), EXEC_NS)))
    running = door.ask()
    await door.settle()
    waiting = [door.ask(), door.ask()]
    await door.settle()
    both = replace(ECHO, devices=("l/g", "r/g"), servers=("left", "right"))
    door.backend.answers["echo"] = both
    await door.proxy.refresh()
    door.driver.set_server(ServerState.READY, "right")
    assert isinstance((await ends(*waiting))[0], MergedReply)
    assert [batch.rows for batch in door.backend.batches] == [1, 2]
    assert [batch.device for batch in door.backend.batches] == ["l/g", "r/g"]
    door.backend.resume()
    await running


@virtual
async def test_a_model_that_no_server_has_any_more_is_forgotten(loop: VirtualLoop) -> None:
    door = Door(loop)
    await ends(door.ask())
    door.backend.answers["echo"] = None
    await door.proxy.refresh()
    assert not door.proxy.knows("echo")


@virtual
async def test_a_sequence_is_given_its_server_before_it_is_scheduled(loop: VirtualLoop) -> None:
    door = Door(loop)
    stateful = replace(
        ECHO, lone_reason="sequence", devices=("l/g", "r/g"), servers=("left", "right")
    )
    door.backend.answers["echo"] = stateful
    steps = [
        call(parameters={"sequence_id": who, "sequence_start": start})
        for start in (True, False)
        for who in (1, 2)
    ]
    for step in steps:
        assert await ends(door.ask(step)) == [CANNED]
    assert [made.server for made in door.backend.lone] == ["left", "right", "left", "right"]
