"""Joining and splitting: every member gets its own rows, and nothing else."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.proxy.calls import ECHO, call, tensor
from tritonsched.backend.batch_call import BatchReply
from tritonsched.backend.catalogue import ModelInfo, TensorInfo
from tritonsched.core.batch import Batch
from tritonsched.core.request import Request
from tritonsched.errors import MalformedAnswer
from tritonsched.proxy.assembly import join, row_bytes, split
from tritonsched.proxy.job import Job
from tritonsched.tensors import InferCall, Pieces, Tensor


def job(number: int, made: InferCall, info: ModelInfo = ECHO) -> Job:
    rows = made.inputs[0].shape[0]
    return Job(made, info, Request(number, "echo", "default", 1, rows, 0))


def batch(jobs: list[Job]) -> Batch:
    members = tuple(j.request for j in jobs)
    rows = sum(r.rows for r in members)
    return Batch(7, "echo", "gpu0", members, rows, 0, 0, 0)


def reply(*outputs: Tensor) -> BatchReply:
    return BatchReply("echo", "1", outputs, release=lambda: None)


def test_inputs_are_joined_by_name_whatever_their_order() -> None:
    a, b = tensor(1, name="A"), tensor(1, name="B", tail=(3,))
    jobs = [job(1, call(a, b)), job(2, call(b, a))]
    joined = join(batch(jobs), jobs)
    assert [(i.name, i.shape, i.parts) for i in joined.inputs] == [
        ("A", (2, 2), (a.data, a.data)),
        ("B", (2, 3), (b.data, b.data)),
    ]


def test_inputs_of_one_form_are_joined_as_they_stand() -> None:
    a, b = tensor(1, name="A"), tensor(1, name="B", tail=(3,))
    jobs = [job(number, call(a, b, form=b"head")) for number in (1, 2)]
    joined = join(batch(jobs), jobs)
    assert [(i.name, i.parts) for i in joined.inputs] == [
        ("A", (a.data, a.data)),
        ("B", (b.data, b.data)),
    ]


def test_a_tensor_in_pieces_is_handed_on_as_it_is() -> None:
    """What copies it, once, is the backend."""
    whole = tensor(1)
    parts = (whole.data[:1], memoryview(bytes(whole.data))[1:])
    cut = replace(whole, data=b"", pieces=Pieces(parts, len(whole.data)))
    jobs = [job(1, call(cut)), job(2, call(whole))]
    assert join(batch(jobs), jobs).inputs[0].parts == (*parts, whole.data)


def test_all_outputs_are_asked_for_when_the_client_names_none() -> None:
    jobs = [job(1, call())]
    assert [o.name for o in join(batch(jobs), jobs).outputs] == ["OUTPUT"]


def test_row_bytes_are_known_only_for_fixed_outputs() -> None:
    outputs = {
        "fixed": TensorInfo("fixed", "FP32", (3, 4)),
        "free": TensorInfo("free", "FP32", (-1,)),
        "text": TensorInfo("text", "BYTES", (1,)),
        "scalar": TensorInfo("scalar", "INT64", ()),
    }
    info = replace(ECHO, outputs=outputs)
    assert {name: row_bytes(info, name) for name in outputs} == {
        "fixed": 48,
        "free": None,
        "text": None,
        "scalar": 8,
    }


@given(st.lists(st.integers(1, 5), min_size=1, max_size=8))
def test_each_member_gets_its_own_rows(rows: list[int]) -> None:
    jobs = [job(n, call(tensor(r))) for n, r in enumerate(rows)]
    total = sum(rows)
    data = bytes(row for row in range(total) for _ in range(2))
    shares = split(reply(Tensor("OUTPUT", "UINT8", (total, 2), data)), jobs)
    first = 0
    for share, count in zip(shares, rows, strict=True):
        (output,) = share.outputs
        assert output.shape == (count, 2)
        assert output.data == bytes(r for r in range(first, first + count) for _ in range(2))
        first += count


@given(st.lists(st.lists(st.binary(max_size=5), min_size=1, max_size=3), min_size=1, max_size=5))
def test_byte_strings_are_split_by_walking(members: list[list[bytes]]) -> None:
    def packed(elements: list[bytes]) -> bytes:
        return b"".join(len(e).to_bytes(4, "little") + e for e in elements)

    jobs = [job(n, call(tensor(len(m)))) for n, m in enumerate(members)]
    total = sum(map(len, members))
    data = b"".join(map(packed, members))
    shares = split(reply(Tensor("OUTPUT", "BYTES", (total,), data)), jobs)
    assert [share.outputs[0].data for share in shares] == [packed(m) for m in members]


@pytest.mark.parametrize(
    "output",
    [
        Tensor("OUTPUT", "UINT8", (3, 2), b"123456"),
        Tensor("OUTPUT", "UINT8", (), b""),
        Tensor("OUTPUT", "UINT8", (2, 2), b"123"),
        Tensor("OUTPUT", "UINT8", (2, 2), b""),
        Tensor("OUTPUT", "BYTES", (2,), b"\x00\x00\x00\x00"),
        Tensor("OUTPUT", "BYTES", (2,), b"\x00" * 9),
    ],
)
def test_an_answer_of_the_wrong_size_is_never_passed_on(output: Tensor) -> None:
    """Trap: Triton's python backend under numpy 2 answers OK with 0 bytes."""
    jobs = [job(1, call()), job(2, call())]
    with pytest.raises(MalformedAnswer, match=r"output 'OUTPUT'|BYTES tensor"):
        split(reply(output), jobs)


def test_an_empty_output_keeps_its_shape() -> None:
    jobs = [job(1, call()), job(2, call())]
    shares = split(reply(Tensor("OUTPUT", "FP32", (2, 0), b"")), jobs)
    assert [share.outputs[0].shape for share in shares] == [(1, 0), (1, 0)]
