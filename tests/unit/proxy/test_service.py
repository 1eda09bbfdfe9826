"""The door between front ends and driver: what it knows of models, what it lets in, what it counts.

On virtual time, with a scripted Triton whose answers about models can be held back.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import replace

import pytest

from tests.helpers import MS
from tests.unit.proxy.calls import ECHO, call, hints, tensor
from tests.unit.proxy.scene import EXEC_NS, Scene, data, ends, filled, virtual
from tests.virtual_loop import VirtualLoop
from tritonsched import errors
from tritonsched.backend.catalogue import ModelInfo
from tritonsched.backend.scripted import ScriptedBackend, Step, hang, lose
from tritonsched.core.request import SloClass
from tritonsched.proxy import model_cache, service
from tritonsched.proxy.client_regions import ClientRegions
from tritonsched.proxy.intake import Intake
from tritonsched.proxy.recount import Recount
from tritonsched.proxy.room import RETRY_NS
from tritonsched.proxy.service import Proxy
from tritonsched.proxy.tallies import Count, Key, Tallies
from tritonsched.tensors import Answer, GrpcReply, InferCall, MergedReply, Tensor

BYTES_MAX = 100
CANNED = GrpcReply("OK", "", b"")


class Asked(ScriptedBackend):
    """Notes who asks about models; holds its answer back while `gate` is closed."""

    asked: list[tuple[str, str]]
    gate: asyncio.Event
    answers: dict[str, ModelInfo | None]

    async def model_info(self, model: str, version: str) -> ModelInfo | None:
        self.asked.append((model, version))
        info = self.answers.get(model)  # as it is when asked, told when the gate opens
        await self.gate.wait()
        self._require_up()
        return None if info is None else replace(info, version=version)


class Door(Scene):
    """A Proxy on the driver's stage."""

    backend: Asked

    def __init__(self, loop: VirtualLoop, *steps: Step) -> None:
        super().__init__(loop, *steps, kind=Asked)
        self.backend.asked = []
        self.backend.gate = asyncio.Event()
        self.backend.gate.set()
        self.backend.answers = {"echo": ECHO}
        self.lone: list[tuple[str, str]] = []
        self.losses = 0
        self.tallies = Tallies()
        self.is_up = True
        classes = {"default": SloClass("default"), "tight": SloClass("tight", 20 * MS)}
        self.proxy = Proxy(
            self.driver,
            self.backend,
            Intake(classes, lambda _: "default", self.reservations.of),
            held=self.held,
            regions=ClientRegions(is_local=lambda: True),
            recount=Recount(self.tallies, self._counts),
            reservations=self.reservations,
            tensor_bytes_max=BYTES_MAX,
            triton_is_up=lambda: self.is_up,
            lost=self._note_loss,
            on_lone=lambda model, reason: self.lone.append((model, reason)),
        )

    async def _counts(self) -> Mapping[Key, Count]:
        return {}

    def _note_loss(self) -> None:
        self.losses += 1

    def ask(self, made: InferCall | None = None) -> asyncio.Task[Answer]:
        made = made or call()
        made.received_ns = self.loop.now_ns()
        return asyncio.ensure_future(self.proxy.infer(made))


# -- what it knows of models ------------------------------------------------------------------


@virtual
async def test_a_model_is_asked_about_once_by_many_calls_at_once(loop: VirtualLoop) -> None:
    door = Door(loop)
    door.backend.gate.clear()
    tasks = [door.ask(call(filled(number))) for number in range(4)]
    await door.settle()
    door.backend.gate.set()
    assert [data(answer) for answer in await ends(*tasks)] == [bytes([n, n]) for n in range(4)]
    assert data(await door.ask())
    assert door.backend.asked == [("echo", "")]
    assert [made.rows for made in door.backend.batches] == [4, 1]


@virtual
async def test_each_version_of_a_model_is_asked_about(loop: VirtualLoop) -> None:
    door = Door(loop)
    await ends(door.ask(), door.ask(call(version="2")))
    assert door.backend.asked == [("echo", ""), ("echo", "2")]


@virtual
async def test_who_asked_first_may_leave_and_the_others_still_learn(loop: VirtualLoop) -> None:
    door = Door(loop)
    door.backend.gate.clear()
    leaver, stayer = door.ask(), door.ask()
    await door.settle()
    leaver.cancel()
    await door.settle()
    door.backend.gate.set()
    assert data(await stayer)
    assert leaver.cancelled()
    assert door.backend.asked == [("echo", "")]
    assert door.proxy.tensor_bytes == 0


@virtual
async def test_a_model_that_triton_does_not_serve_is_forwarded_and_asked_about_again(
    loop: VirtualLoop,
) -> None:
    """Triton words the error; the next call may find the model loaded."""
    door = Door(loop)
    first, second = await ends(door.ask(call(model="none")), door.ask(call(model="none")))
    assert first == second
    assert isinstance(first, GrpcReply)
    assert first.code == "NOT_FOUND"
    await door.ask(call(model="none"))
    assert door.backend.asked == [("none", "")] * 2
    assert door.ledger.submitted.total() == 0


@pytest.mark.parametrize("how", ["invalidate", "reconnected"])
def test_what_was_known_is_void_after(how: str) -> None:
    """A load, an unload, another Triton: the next call asks again and heeds the answer."""

    async def story(loop: VirtualLoop) -> None:
        door = Door(loop)
        assert data(await door.ask())
        door.backend.answers["echo"] = replace(ECHO, lone_reason="sequence")
        if how == "invalidate":
            await door.proxy.invalidate("echo")
        else:
            door.proxy.reconnected()
        assert await door.ask() == CANNED
        assert door.backend.asked == [("echo", "")] * 2
        assert door.lone == [("echo", "sequence")]

    virtual(story)()


@virtual
async def test_an_answer_from_before_a_load_is_used_by_nobody(loop: VirtualLoop) -> None:
    """Asked while Triton was loading: the answer may be of the old model. It is asked again, for
    who waited and for who comes later.
    """
    door = Door(loop)
    door.backend.gate.clear()
    before = door.ask()
    await door.settle()
    door.backend.answers["echo"] = replace(ECHO, lone_reason="sequence")
    await door.proxy.invalidate("echo")
    after = door.ask()
    await door.settle()
    door.backend.gate.set()
    assert await ends(before, after) == [CANNED] * 2
    assert await door.ask() == CANNED
    assert door.backend.asked == [("echo", "")] * 2


@virtual
async def test_triton_lost_while_asking_is_told_to_all_and_to_health(loop: VirtualLoop) -> None:
    door = Door(loop)
    door.backend.is_up = False
    tasks = door.ask(), door.ask()
    assert [type(error) for error in await ends(*tasks)] == [errors.TritonUnavailable] * 2
    assert door.losses >= 1
    door.backend.is_up = True
    assert data(await door.ask())


@virtual
async def test_triton_lost_with_a_batch_out_is_the_drivers_to_tell(loop: VirtualLoop) -> None:
    door = Door(loop, lose())
    (error,) = await ends(door.ask())
    assert isinstance(error, errors.TritonUnavailable)
    assert (door.losses, door.lost) == (0, [""])


@virtual
async def test_the_entries_remembered_are_bounded_and_the_oldest_is_asked_about_again(
    loop: VirtualLoop,
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model_cache, "MODELS_MAX", 2)
        door = Door(loop)
        for version in ("1", "2", "1", "3", "2", "1"):
            await door.ask(call(version=version))
    assert [version for _, version in door.backend.asked] == ["1", "2", "3", "1"]


# -- how it judges ----------------------------------------------------------------------------


@virtual
async def test_a_call_that_may_not_be_merged_goes_alone_and_is_counted(loop: VirtualLoop) -> None:
    door = Door(loop)
    assert await door.ask(call(lone_reason="typed-contents", explain=True)) != CANNED
    assert door.lone == [("echo", "typed-contents")]
    (sent,) = door.backend.lone
    assert sent.raw == b"original"


@virtual
async def test_calls_with_equal_heads_are_judged_once_and_merged(loop: VirtualLoop) -> None:
    door = Door(loop)
    await door.ask(call(form=b"head"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(service, "lone_reason", _not_again)
        tasks = door.ask(call(filled(1), form=b"head")), door.ask(call(filled(2), form=b"head"))
        assert [data(answer) for answer in await ends(*tasks)] == [b"\1\1", b"\2\2"]
    assert [made.rows for made in door.backend.batches] == [1, 2]


def _not_again(made: InferCall, info: ModelInfo) -> str:
    raise AssertionError(f"judged again: {made.model} {info.name}")


@virtual
async def test_a_judgement_is_of_one_model_and_one_version(loop: VirtualLoop) -> None:
    door = Door(loop)
    door.backend.answers["other"] = replace(ECHO, name="other", lone_reason="decoupled")
    await door.ask(call(form=b"head"))
    await door.ask(call(form=b"head", model="other"))
    await door.ask(call(form=b"head", version="latest"))
    assert door.lone == [("other", "decoupled"), ("echo", "version-form")]


@virtual
async def test_text_is_judged_by_its_data_each_time(loop: VirtualLoop) -> None:
    """Whether BYTES fit their shape cannot be told from the head."""
    info = {"INPUT": replace(ECHO.inputs["INPUT"], datatype="BYTES", dims=(1,))}
    door = Door(loop)
    door.backend.answers["echo"] = replace(ECHO, inputs=info)
    good, bad = b"\1\0\0\0x", b"\\9\0\0\0x"
    for text in (good, bad, good):
        await door.ask(call(Tensor("INPUT", "BYTES", (1, 1), text), form=b"head"))
    assert door.lone == [("echo", "bytes-differ")]


@virtual
async def test_the_judgements_remembered_are_bounded(loop: VirtualLoop) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(service, "JUDGEMENTS_MAX", 2)
        door = Door(loop)
        for form in (b"a", b"b", b"c", b"a"):
            assert data(await door.ask(call(form=form)))
            assert len(door.proxy._judgements) <= 2


@virtual
async def test_a_new_answer_about_a_model_voids_its_judgements(loop: VirtualLoop) -> None:
    door = Door(loop)
    await door.ask(call(form=b"head"))
    door.backend.answers["echo"] = replace(ECHO, max_batch_size=1)
    await door.proxy.invalidate("echo")
    await door.ask(call(tensor(2), form=b"head"))
    assert door.lone == [("echo", "rows-exceed")]


@virtual
async def test_a_class_and_a_deadline_are_the_clients_to_name(loop: VirtualLoop) -> None:
    door = Door(loop)
    wanted = call(slo="tight", hints=hints(header_ms="30"), explain=True)
    answer = await door.ask(wanted)
    assert isinstance(answer, MergedReply)
    assert answer.explain is not None
    assert (answer.explain.clipped, answer.explain.slack_ns) == (True, 20 * MS - EXEC_NS)
    bad = await ends(door.ask(call(slo="gold")), door.ask(call(hints=hints(header_ms="soon"))))
    assert [type(error) for error in bad] == [errors.UnknownClass, errors.BadDeadline]
    assert door.proxy.tensor_bytes == 0


@virtual
async def test_a_call_that_still_arrives_is_refused_if_it_cannot_be_in_time(
    loop: VirtualLoop,
) -> None:
    """Once, in the driver's words; what is wrong otherwise is said when it is whole."""
    door = Door(loop)
    hopeless = call(hints=hints(header_ms="7"))
    hopeless.received_ns = loop.now_ns()
    assert door.proxy.hopeless(hopeless) is None  # nothing is known of the model yet
    first = door.ask()
    await loop.pause(1 * MS)
    assert isinstance(door.proxy.hopeless(hopeless), errors.DeadlineUnreachable)
    for other in (call(), call(slo="gold"), replace(hopeless, reservation="cam")):
        assert door.proxy.hopeless(other) is None
    await first
    assert door.log.count((1 * MS, "reject")) == 1
    door.proxy.drain()
    assert door.proxy.hopeless(hopeless) is None


# -- what it lets in --------------------------------------------------------------------------


@virtual
async def test_requests_over_the_bytes_in_flight_are_refused_with_a_hint(
    loop: VirtualLoop,
) -> None:
    door = Door(loop, hang())
    first = door.ask(call(raw=bytes(BYTES_MAX - 10)))
    await door.settle()
    (error,) = await ends(door.ask(call(raw=bytes(11))))
    assert isinstance(error, errors.MemoryFull)
    assert str(error) == "90 bytes of requests are in flight; try again later"
    assert error.retry_after_ns == RETRY_NS
    fits = door.ask(call(raw=bytes(10)))
    await door.settle()
    assert door.proxy.tensor_bytes == BYTES_MAX
    door.backend.resume()
    assert all(map(data, await ends(first, fits)))
    assert door.proxy.tensor_bytes == 0


@virtual
async def test_a_request_over_the_bound_is_let_in_when_it_is_the_only_one(
    loop: VirtualLoop,
) -> None:
    """Else it could never be served; how large one may be is the front end's bound."""
    door = Door(loop)
    assert data(await door.ask(call(raw=bytes(BYTES_MAX + 1))))


@virtual
async def test_while_draining_what_is_new_is_refused_and_what_was_accepted_is_finished(
    loop: VirtualLoop,
) -> None:
    door = Door(loop, hang())
    accepted = door.ask()
    await door.settle()
    door.proxy.is_draining = True
    drained = asyncio.ensure_future(door.proxy.drained())
    (error,) = await ends(door.ask())
    assert isinstance(error, errors.Draining)
    assert error.retry_after_ns is not None
    await door.settle()
    assert not drained.done()
    door.backend.resume()
    assert data(await accepted)
    await drained


@virtual
async def test_an_idle_door_is_drained_at_once(loop: VirtualLoop) -> None:
    await Door(loop).proxy.drained()


@virtual
async def test_it_is_ready_while_triton_is_up_and_it_is_not_draining(loop: VirtualLoop) -> None:
    door = Door(loop)
    assert door.proxy.is_ready
    door.is_up = False
    assert not door.proxy.is_ready
    door.is_up = True
    door.proxy.is_draining = True
    assert not door.proxy.is_ready
