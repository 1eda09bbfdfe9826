"""What a stream owes its client: who is heard, in which order, and what may run at once."""

import asyncio

import pytest
from tritonclient.grpc import service_pb2 as pb

from tests.unit.proxy.scene import virtual
from tests.virtual_loop import VirtualLoop
from tritonsched.frontend.stream_order import UNANSWERED_MAX, Message, Owed, asking

NAME = "triton_enable_empty_final_response"


def request(**parameter: object) -> bytes:
    made = pb.ModelInferRequest(model_name="m", id="a")
    for kind, value in parameter.items():
        setattr(made.parameters[NAME], kind, value)
    data: bytes = made.SerializeToString()
    return data


def reply(
    name: str, *, model: str = "m", last: bool = True, empty: bool = False, error: str = ""
) -> bytes:
    made = pb.ModelStreamInferResponse(error_message=error)
    made.infer_response.id = name
    if not error:
        made.infer_response.model_name = model
        made.infer_response.parameters["triton_final_response"].bool_param = last
        if not empty:
            made.infer_response.outputs.add(name="OUT")
    data: bytes = made.SerializeToString()
    return data


class Heard:
    """What the client of one `Owed` hears."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop
        self.said: list[bytes] = []
        self.owed = Owed(self.said.append)

    def sent(
        self, name: str, *, model: str = "m", decoupled: bool = False, asked: bool = False
    ) -> Message:
        message = Message(name, model, is_decoupled=decoupled, asked=asked)
        self.owed.sent(message)
        return message

    async def waits(self, is_decoupled: bool | None) -> bool:
        """Whether a message of such a model has to wait now."""
        clear = asyncio.ensure_future(self.owed.clear_for(is_decoupled))
        await self._loop.pause(1)
        return not clear.done() and clear.cancel()


@pytest.mark.parametrize("given", [{}, {"bool_param": False}])
def test_who_does_not_ask_for_the_end_is_asked_for(given: dict[str, object]) -> None:
    message, asked = asking(request(**given))
    assert not asked
    assert pb.ModelInferRequest.FromString(message).parameters[NAME].bool_param


@pytest.mark.parametrize("given", [{"bool_param": True}, {"int64_param": 1}, {"string_param": "x"}])
def test_who_asks_or_asks_wrongly_is_sent_as_he_is(given: dict[str, object]) -> None:
    assert asking(request(**given)) == (request(**given), True)


def test_the_name_in_an_id_is_no_asking() -> None:
    made = pb.ModelInferRequest(id=NAME).SerializeToString()
    message, asked = asking(made)
    assert not asked
    assert pb.ModelInferRequest.FromString(message).id == NAME


@virtual
async def test_an_end_without_an_answer_is_heard_by_who_asked(loop: VirtualLoop) -> None:
    client = Heard(loop)
    answers = {name: reply(name, empty=True) for name in ("quiet", "asked", "stranger")}
    quiet = client.sent("quiet", decoupled=True)
    client.sent("asked", decoupled=True, asked=True)
    for answer in answers.values():
        client.owed.heard(answer)
    assert client.said == [answers["asked"], answers["stranger"]]
    assert quiet.answered.result()


@virtual
async def test_an_answer_without_outputs_is_one(loop: VirtualLoop) -> None:
    """Of a model that is not decoupled."""
    client = Heard(loop)
    client.sent("void")
    answer = reply("void", empty=True)
    client.owed.heard(answer)
    assert client.said == [answer]


@virtual
async def test_decoupled_and_ordinary_messages_are_not_at_triton_together(
    loop: VirtualLoop,
) -> None:
    client = Heard(loop)
    client.sent("d", decoupled=True)
    assert [await client.waits(kind) for kind in (True, False, None)] == [False, True, True]
    client.owed.heard(reply("d", last=False))
    assert await client.waits(False)
    client.owed.heard(reply("d", empty=True))
    assert not await client.waits(None)
    client.sent("o")
    assert [await client.waits(kind) for kind in (True, False)] == [True, False]
    client.owed.heard(
        reply("o", last=False)
    )  # an older Triton does not say it: it was the only one
    assert not await client.waits(True)


@virtual
async def test_an_error_is_the_last_word_on_its_message(loop: VirtualLoop) -> None:
    client = Heard(loop)
    message = client.sent("d", decoupled=True)
    client.owed.heard(reply("d", error="bad"))
    assert not message.answered.result()
    assert not await client.waits(False)


@virtual
async def test_of_messages_with_one_id_the_oldest_of_the_model_is_answered(
    loop: VirtualLoop,
) -> None:
    client = Heard(loop)
    first, other, second = client.sent("a"), client.sent("a", model="n"), client.sent("a")
    client.owed.heard(reply("a"))
    assert (first.answered.done(), other.answered.done()) == (True, False)
    client.owed.heard(reply("a", model="n"))
    assert (other.answered.done(), second.answered.done()) == (True, False)


@virtual
async def test_a_refusal_waits_for_the_first_answers_before_it(loop: VirtualLoop) -> None:
    """Of a decoupled model, too, but not for its last."""
    client = Heard(loop)
    client.sent("a", decoupled=True)
    client.owed.refused("b", b"no")
    assert client.said == []
    answer = reply("a", last=False)
    client.owed.heard(answer)
    assert client.said == [answer, b"no"]


@virtual
async def test_at_the_end_all_are_told(loop: VirtualLoop) -> None:
    client = Heard(loop)
    message = client.sent("a")
    client.owed.refused("b", b"no")
    client.owed.heard(b"\xff")
    waiting = asyncio.ensure_future(client.owed.clear_for(True))
    await loop.pause(1)
    client.owed.end()
    await waiting
    assert client.said == [b"\xff", b"no"]
    assert not message.answered.result()


@virtual
async def test_no_more_than_so_many_are_unanswered(loop: VirtualLoop) -> None:
    client = Heard(loop)
    for number in range(UNANSWERED_MAX):
        assert not await client.waits(False)
        client.sent(str(number))
    assert await client.waits(False)
    client.owed.heard(reply("7"))
    assert not await client.waits(False)
