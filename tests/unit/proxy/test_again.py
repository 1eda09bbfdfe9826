"""What is sent once more: to another server, when the one that had it is lost."""

from typing import Any

from tests.helpers import exact
from tests.unit.proxy.scene import EXEC_NS, Scene, ends, virtual
from tests.virtual_loop import VirtualLoop
from tritonsched import errors
from tritonsched.backend.scripted import Step, lose
from tritonsched.core.variant import Variant
from tritonsched.tensors import GrpcReply, MergedReply


def two_servers(loop: VirtualLoop, *steps: Step, **fields: Any) -> Scene:
    """`echo` on two servers, in the same time."""
    scene = Scene(loop, *steps, **fields)
    scene.driver.set_variant(Variant("echo", 8, ("l", "r"), servers=("left", "right")))
    for device in ("l", "r"):
        scene.scheduler.set_profile("echo", device, exact(dict.fromkeys(range(1, 9), EXEC_NS)))
    return scene


@virtual
async def test_what_was_lost_with_a_server_is_merged_again_on_another(loop: VirtualLoop) -> None:
    scene = two_servers(loop, lose())
    first, second = await ends(scene.send(), scene.send())
    assert isinstance(first, MergedReply)
    assert isinstance(second, MergedReply)
    assert [call.device for call in scene.backend.batches] == ["l", "r"]
    assert [call.rows for call in scene.backend.batches] == [2, 2]
    assert (scene.lost, scene.taken_apart, scene.outcomes()) == (["left"], [], {"served": 2})


@virtual
async def test_it_is_sent_again_once(loop: VirtualLoop) -> None:
    scene = two_servers(loop, lose(), lose(), lose())
    (only,) = await ends(scene.send())
    assert isinstance(only, errors.TritonUnavailable)
    assert (len(scene.backend.batches), scene.outcomes()) == (2, {"failed": 1})


@virtual
async def test_a_lone_call_goes_to_another_server_and_says_which(loop: VirtualLoop) -> None:
    scene = two_servers(loop, lose())
    (answer,) = await ends(scene.send(lone="no-batching"))
    assert answer == GrpcReply("OK", "", b"")
    assert scene.lost == ["left"]
    assert {call.server for call in scene.backend.lone} == {"right"}  # one call, sent on twice
    assert len(scene.backend.lone) == 2


@virtual
async def test_what_triton_keeps_a_state_for_is_not_sent_again(loop: VirtualLoop) -> None:
    scene = two_servers(loop, lose())
    (answer,) = await ends(scene.send(lone="sequence", in_sequence=True))
    assert isinstance(answer, errors.TritonUnavailable)
    assert len(scene.backend.lone) == 1


@virtual
async def test_who_forbids_it_has_nothing_executed_twice(loop: VirtualLoop) -> None:
    scene = two_servers(loop, lose(), resend_lost=False)
    (answer,) = await ends(scene.send())
    assert isinstance(answer, errors.TritonUnavailable)
    assert len(scene.backend.batches) == 1


@virtual
async def test_a_client_that_left_a_lost_batch_is_not_served_again(loop: VirtualLoop) -> None:
    scene = two_servers(loop, lose(EXEC_NS))
    leaver, stayer = scene.send(id="leaver"), scene.send(id="stayer")
    await scene.settle()
    leaver.cancel()
    assert isinstance(await stayer, MergedReply)
    assert [call.rows for call in scene.backend.batches] == [2, 1]
    assert scene.outcomes() == {"cancelled": 1, "served": 1}
