"""Models with variants at the proxy's door: who belongs, who serves, what the client is told."""

from dataclasses import replace

import pytest
from tritonclient.grpc import service_pb2 as pb

from tests.unit.proxy.calls import ECHO, call
from tests.unit.proxy.scene import data, ends, virtual
from tests.unit.proxy.test_service import Door
from tests.virtual_loop import VirtualLoop
from tritonsched import errors
from tritonsched.backend.catalogue import ModelInfo, TensorInfo
from tritonsched.proxy.families import VERSION, Families, addressed, combined, is_version, told
from tritonsched.tensors import GrpcReply, HttpReply, MergedReply, Wire

GOOD = replace(ECHO, name="good", accuracy=0.8)
FAST = replace(ECHO, name="fast", accuracy=0.6, max_batch_size=4, devices=("cpu:fast:0",))


# -- who belongs to it ------------------------------------------------------------------------


def test_a_family_is_what_its_variants_have_in_common() -> None:
    family, faults = combined("c", "", [FAST, GOOD])
    assert faults == []
    assert family is not None
    assert (family.name, family.variants, family.max_batch_size) == ("c", ("fast", "good"), 8)
    assert family.devices == ("cpu:fast:0", "cpu:echo:0")
    assert family.inputs == ECHO.inputs


@pytest.mark.parametrize(
    ("odd", "why"),
    [
        (replace(GOOD, inputs={"X": TensorInfo("X", "UINT8", (2,))}), "has other inputs than"),
        (replace(GOOD, outputs={}), "has other outputs than 'fast'"),
        (replace(GOOD, is_decoupled=True, lone_reason="decoupled"), "answers more than once"),
        (replace(GOOD, lone_reason="sequence"), "keeps an order"),
    ],
)
def test_who_could_not_stand_in_for_the_others_is_left_out_and_it_is_said(
    odd: ModelInfo, why: str
) -> None:
    family, (fault,) = combined("c", "", [FAST, odd])
    assert family is not None
    assert family.variants == ("fast",)
    assert fault.startswith("model 'c': variant 'good' ")
    assert why in fault


def test_a_family_of_nobody_is_none() -> None:
    assert combined("c", "", []) == (None, [])
    assert combined("c", "", [replace(GOOD, lone_reason="sequence")])[0] is None


def test_one_that_goes_alone_makes_all_go_alone() -> None:
    family, _ = combined("c", "", [FAST, replace(GOOD, lone_reason="no-batching")])
    assert family is not None
    assert family.lone_reason == "no-batching"


def test_what_the_policy_file_says_of_accuracy_counts() -> None:
    families = Families({"c": ("fast",)}, {"fast": 0.7})
    assert families.valued(FAST).accuracy == 0.7
    assert families.valued(GOOD) is GOOD
    assert families.adopt({"d": ("fast",)}, {}) == {"c"}
    assert (families.models, families.variants("c")) == (("d",), ())
    assert families.is_of({"d": ("fast",)}, {})
    assert is_version(VERSION)
    assert not is_version("2")


# -- merged -----------------------------------------------------------------------------------


def door(loop: VirtualLoop) -> Door:
    made = Door(loop)
    made.backend.answers = {"good": GOOD, "fast": FAST}
    made.backend._models = {"good": GOOD, "fast": FAST}
    made.proxy.adopt_families({"c": ("fast", "good")}, {})
    return made


@virtual
async def test_a_call_is_served_by_a_variant_under_the_name_it_asked_for(
    loop: VirtualLoop,
) -> None:
    made = door(loop)
    answer = await made.ask(call(model="c", version="1"))
    assert isinstance(answer, MergedReply)
    assert (answer.model, answer.version, answer.variant) == ("c", VERSION, "good")
    assert data(answer)
    (sent,) = made.backend.batches
    assert (sent.model, sent.version) == ("good", "")
    assert made.backend.asked == [("fast", ""), ("good", "")]


@virtual
async def test_of_a_variant_that_triton_does_not_serve_the_others_take_the_work(
    loop: VirtualLoop,
) -> None:
    made = door(loop)
    made.backend.answers["good"] = None
    answer = await made.ask(call(model="c"))
    assert isinstance(answer, MergedReply)
    assert answer.variant == "fast"


@virtual
async def test_another_version_or_a_family_without_variants_is_tritons_to_refuse(
    loop: VirtualLoop,
) -> None:
    made = door(loop)
    await ends(made.ask(call(model="c", version="2")))
    made.backend.answers = {}
    made.proxy.reconnected()
    await ends(made.ask(call(model="c")))
    assert [forwarded.model for forwarded in made.backend.lone] == ["c", "c"]


@virtual
async def test_a_stream_has_to_name_a_variant(loop: VirtualLoop) -> None:
    made = door(loop)
    await made.ask(call(model="c"))
    heard: list[object] = []

    async def send(_: int) -> GrpcReply:
        raise AssertionError("it must not be sent")

    made.proxy.submit(call(model="c"), heard.append, send)
    assert isinstance(heard[0], errors.VariantsOnly)
    assert "fast, good" in str(heard[0])


@virtual
async def test_a_family_that_is_declared_no_more_is_tritons_own_model_again(
    loop: VirtualLoop,
) -> None:
    made = door(loop)
    await made.ask(call(model="c"))
    made.proxy.adopt_families({"c": ("fast", "good")}, {})  # the same: nothing is asked anew
    await made.ask(call(model="c"))
    assert len(made.backend.asked) == 2
    made.proxy.adopt_families({}, {})
    await ends(made.ask(call(model="c")))
    assert [forwarded.model for forwarded in made.backend.lone] == ["c"]


# -- alone ------------------------------------------------------------------------------------


@virtual
async def test_a_call_that_goes_alone_is_sent_to_the_variant_as_it_came(loop: VirtualLoop) -> None:
    made = door(loop)
    await ends(made.ask(call(model="c", lone_reason="json", raw=b"")))
    (sent,) = made.backend.lone
    assert sent.model == "good"


def test_the_message_names_the_variant_and_the_newest_version() -> None:
    message = pb.ModelInferRequest(model_name="c", model_version="1", id="7").SerializeToString()
    sent = addressed(call(model="c", version="1", raw=message), "classify_é")
    read = pb.ModelInferRequest.FromString(bytes(sent.raw))
    assert (read.model_name, read.model_version, read.id) == ("classify_é", "", "7")


@pytest.mark.parametrize(
    ("path", "sent"),
    [
        ("/v2/models/c/infer", "/v2/models/fast/infer"),
        ("/v2/models/c/versions/1/infer?a=/v2/models/c", "/v2/models/fast/infer?a=/v2/models/c"),
    ],
)
def test_the_path_does_so_over_http(path: str, sent: str) -> None:
    headers = (("Accept-Encoding", "gzip"), ("x-trace", "1"))
    made = addressed(call(wire=Wire.HTTP, model="c", path=path, headers=headers), "fast")
    assert made.headers == (("x-trace", "1"),)
    assert (made.path, made.model, made.raw) == (sent, "fast", b"original")


def test_the_answer_bears_the_name_that_was_asked_for() -> None:
    message = pb.ModelInferResponse(model_name="fast", model_version="3", id="7")
    answer = told(GrpcReply("OK", "", message.SerializeToString()), "c", "fast")
    assert isinstance(answer, GrpcReply)
    read = pb.ModelInferResponse.FromString(bytes(answer.message))
    assert (read.model_name, read.model_version, read.id) == ("c", "1", "7")
    assert answer.trailing_metadata == (("x-tritonsched-variant", "fast"),)


def test_over_http_its_head_and_the_lengths_follow() -> None:
    head = b'{"id":"\\"model_name\\":","model_name":"fast","model_version":"3","outputs":[]}'
    headers = (("Inference-Header-Content-Length", str(len(head))), ("Content-Length", "99"))
    answer = told(HttpReply(200, "OK", headers, head + b"\x01\x02"), "classify", "fast")
    assert isinstance(answer, HttpReply)
    grown = len("classify") - len("fast")
    assert answer.body == head.replace(b'"fast"', b'"classify"').replace(b'"3"', b'"1"') + b"\1\2"
    assert answer.headers == (
        ("Inference-Header-Content-Length", str(len(head) + grown)),
        ("Content-Length", str(99 + grown)),
        ("x-tritonsched-variant", "fast"),
    )


def test_what_cannot_be_read_or_is_an_error_stays() -> None:
    gzipped = HttpReply(200, "OK", (), b"\x1f\x8b")
    answer = told(gzipped, "c", "fast")
    assert isinstance(answer, HttpReply)
    assert (answer.body, answer.headers) == (b"\x1f\x8b", (("x-tritonsched-variant", "fast"),))
    for failed in (HttpReply(400, "", (), b"{}"), GrpcReply("INTERNAL", "", b"")):
        assert told(failed, "c", "fast") is failed
