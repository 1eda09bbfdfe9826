"""Answers of batches: read once, and checked each time."""

from types import MappingProxyType
from typing import Any

import pytest
from tritonclient.grpc import service_pb2 as pb

from tritonsched.backend import wire
from tritonsched.backend.batch_call import BatchCall, BatchOutput
from tritonsched.errors import MalformedAnswer

MARK = b"12345678"


def call(rows: int = 2, *outputs: str) -> BatchCall:
    asked = tuple(BatchOutput(name, 8) for name in outputs or ("OUT",))
    return BatchCall(1, "m", "", rows, (), asked, MappingProxyType({}))


def message(rows: int = 2, *names: str, raw: bytes = b"", version: str = "1") -> bytes:
    made = pb.ModelInferResponse(model_name="m", model_version=version)
    for name in names or ("OUT",):
        made.outputs.add(name=name, datatype="UINT8", shape=[rows, 8])
        made.raw_output_contents.append(raw)
    data: bytes = made.SerializeToString()
    return data


def place(data: bytes) -> dict[str, memoryview]:
    return {"OUT": memoryview(bytearray(data))}


def read(answers: wire.Answers, said: bytes, asked: BatchCall, shared: Any) -> bytes:
    model, version, (tensor,) = answers.read(said, asked, shared, may_carry=True)
    assert (model, version, tensor.name, tensor.datatype) == ("m", "1", "OUT", "UINT8")
    assert tensor.shape == (asked.rows, 8)
    return bytes(tensor.data)


@pytest.fixture
def answers() -> wire.Answers:
    """That have read a sound answer of two rows."""
    made = wire.Answers(MARK)
    assert read(made, message(), call(), place(b"a" * 16)) == b"a" * 16
    return made


def test_the_same_answer_is_not_read_again(
    answers: wire.Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "parse", None)
    assert read(answers, message(), call(), place(b"b" * 16)) == b"b" * 16


def test_what_was_not_written_is_refused_though_the_answer_is_known(answers: wire.Answers) -> None:
    with pytest.raises(MalformedAnswer, match="did not write 'OUT'"):
        read(answers, message(), call(), place(b"a" * 8 + MARK))


def test_a_place_of_another_size_is_refused_though_the_answer_is_known(
    answers: wire.Answers,
) -> None:
    with pytest.raises(MalformedAnswer, match="15 bytes where UINT8"):
        read(answers, message(), call(), place(b"a" * 15))


@pytest.mark.parametrize(
    ("said", "asked", "words"),
    [
        (message(), call(3), "for a batch of 3 rows"),
        (message(), call(2, "OUT", "MORE"), "where .'MORE', 'OUT'. were asked for"),
        (message(2, "OTHER"), call(), "answered outputs .'OTHER'."),
        (message(3), call(), "for a batch of 2 rows"),
        (b"\xff", call(), "not a ModelInferResponse"),
    ],
)
def test_an_answer_to_something_else_is_refused(
    answers: wire.Answers, said: bytes, asked: BatchCall, words: str
) -> None:
    with pytest.raises(MalformedAnswer, match=words):
        read(answers, said, asked, place(b"a" * 16))


def test_bytes_in_the_answer_itself_are_never_remembered(answers: wire.Answers) -> None:
    for raw in (b"c" * 16, b"d" * 16):
        assert read(answers, message(raw=raw), call(), place(b"a" * 16)) == raw
    assert len(answers._known) == 1
    with pytest.raises(MalformedAnswer, match="past the GPU's memory"):
        answers.read(message(raw=b"c" * 16), call(), place(b"a" * 16), may_carry=False)
    with pytest.raises(MalformedAnswer, match="0 bytes where UINT8"):
        answers.read(message(), call(), {}, may_carry=True)  # known, but not written anywhere


def test_the_answers_remembered_are_bounded(
    answers: wire.Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "ANSWERS_MAX", 3)
    for number in range(10):
        answers.read(message(version=str(number)), call(), place(b"a" * 16), may_carry=True)
        assert 1 <= len(answers._known) <= 3
