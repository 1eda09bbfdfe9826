"""Joining the inputs of a batch and splitting its outputs. Rule: pure; by name, never by position.

Joining copies nothing: the parts are handed on and copied once, into shared memory or a message,
by the backend; those in a client's region are read here, as late as can be, and those on a GPU
stay there. Splitting copies each member's rows, so that the batch's shared memory is free at once.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import accumulate
from typing import TYPE_CHECKING

from tritonsched.backend.batch_call import (
    BatchCall,
    BatchInput,
    BatchOutput,
    BatchReply,
    DevicePlace,
    Part,
)
from tritonsched.backend.catalogue import ModelInfo
from tritonsched.core.batch import Batch
from tritonsched.errors import MalformedAnswer
from tritonsched.proxy.client_cuda import CudaClientRegion
from tritonsched.proxy.families import VERSION
from tritonsched.proxy.named import of_the_model
from tritonsched.tensors import Answer, MergedReply, ShmRef, Tensor, byte_size

if TYPE_CHECKING:
    from tritonsched.proxy.job import Job

OUTPUTS_MAX = 1024  # of models, whose rows' bytes are remembered
_LENGTH_BYTES = 4  # of one BYTES element, little endian, before its bytes


def join(batch: Batch, jobs: "Sequence[Job]") -> BatchCall:
    """One call from the members, in batch order. Members agree in all but data (same signature).

    Raises RegionFault if a client's region has shrunk.
    """
    first, info = jobs[0].call, jobs[0].info
    wanting = [job for job in jobs if job.call.output_refs]
    places = jobs if wanting else ()
    return BatchCall(
        id=batch.id,
        model=batch.model,
        version="" if info.variants else first.version,
        rows=batch.rows,
        inputs=tuple([_joined(tensors, batch.rows, jobs) for tensors in _columns(jobs)]),
        outputs=tuple([_output(info, name, places) for name in first.outputs or info.outputs]),
        parameters=of_the_model(first.parameters),
        device=batch.device,
    )


def _columns(jobs: "Sequence[Job]") -> Iterable[Sequence[Tensor]]:
    """Each input of all members, in the first one's order; others may name them in another."""
    first = jobs[0].call
    if len(first.inputs) == 1:
        return [[job.call.inputs[0] for job in jobs]]
    if first.form is not None and {job.call.form for job in jobs} == {first.form}:
        return zip(*[job.call.inputs for job in jobs], strict=True)
    by_name = [{tensor.name: tensor for tensor in job.call.inputs} for job in jobs]
    return [[named[tensor.name] for named in by_name] for tensor in first.inputs]


def _joined(tensors: Sequence[Tensor], rows: int, jobs: "Sequence[Job]") -> BatchInput:
    """One input of the batch from the members'."""
    first = tensors[0]
    elsewhere = [t for t in tensors if t.ref is not None or t.pieces is not None]
    if not elsewhere:
        parts: tuple[Part, ...] = tuple([tensor.data for tensor in tensors])
    else:
        each = [_parts(tensor, job) for tensor, job in zip(tensors, jobs, strict=True)]
        parts = tuple([part for parts in each for part in parts])
    return BatchInput(first.name, first.datatype, (rows, *first.shape[1:]), parts)


def _output(info: ModelInfo, name: str, jobs: "Sequence[Job]") -> BatchOutput:
    """jobs: the members, if one of them wants outputs in its regions."""
    size = row_bytes(info, name)
    if size is None or not jobs:
        return BatchOutput(name, size)
    return BatchOutput(name, size, tuple(_places(name, size, jobs)))


def _places(name: str, size: int, jobs: "Sequence[Job]") -> Iterator[tuple[int, DevicePlace]]:
    """What members want written on a GPU. size: of a row."""
    start = 0
    for job in jobs:
        length = job.request.rows * size
        ref = dict(job.call.output_refs).get(name)
        region = job.regions[ref.region] if ref else None
        place = region.place(ref, length) if ref and isinstance(region, CudaClientRegion) else None
        if place is not None:
            yield start, place
        start += length


def _parts(tensor: Tensor, job: "Job") -> tuple[Part, ...]:
    if tensor.ref is not None:
        return (job.regions[tensor.ref.region].read(tensor.ref),)
    return (tensor.data,) if tensor.pieces is None else tensor.pieces.parts


def row_bytes(info: ModelInfo, name: str) -> int | None:
    """Bytes of one row of an output if the model's configuration fixes them, else None."""
    output = info.outputs[name]
    return _row_bytes(output.datatype, output.dims)


@lru_cache(maxsize=OUTPUTS_MAX)
def _row_bytes(datatype: str, dims: tuple[int, ...]) -> int | None:
    if any(dim < 0 for dim in dims):
        return None
    return byte_size(datatype, dims)


def split(reply: BatchReply, jobs: "Sequence[Job]") -> list[MergedReply]:
    """Each member's share, in batch order.

    Raises MalformedAnswer if an output's leading dimension is not the batch's row count or its
    bytes are not what its shape says.
    """
    rows = [job.request.rows for job in jobs]
    columns = [_split_tensor(tensor, rows) for tensor in reply.outputs]
    shares: Iterable[tuple[Tensor, ...]] = (
        zip(*columns, strict=True) if columns else [()] * len(jobs)
    )
    answers = [MergedReply(reply.model, reply.version, outputs) for outputs in shares]
    family = jobs[0].info
    if family.variants:  # clients get the name that they asked for, and are told who it was
        for answer in answers:
            answer.variant, answer.model, answer.version = reply.model, family.name, VERSION
    return answers


def placed(answer: Answer, job: "Job") -> Answer:
    """The answer with the outputs written that the client wants in its regions.

    Raises RegionFault if one does not fit; others may be written by then, as with Triton.
    """
    if not job.call.output_refs or not isinstance(answer, MergedReply):
        return answer
    refs = dict(job.call.output_refs)
    return replace(
        answer, outputs=tuple(_written(t, refs.get(t.name), job) for t in answer.outputs)
    )


def _written(tensor: Tensor, ref: ShmRef | None, job: "Job") -> Tensor:
    if ref is None:
        return tensor
    job.regions[ref.region].write(ref, tensor.data)
    return Tensor(tensor.name, tensor.datatype, tensor.shape, b"", ref)


def _split_tensor(tensor: Tensor, rows: Sequence[int]) -> list[Tensor]:
    total = sum(rows)
    if not tensor.shape or tensor.shape[0] != total:
        raise MalformedAnswer(
            f"output '{tensor.name}': shape {list(tensor.shape)} for a batch of {total} rows"
        )
    cuts = _cuts(tensor, rows)
    view = memoryview(tensor.data)
    name, datatype, tail = tensor.name, tensor.datatype, tensor.shape[1:]
    return [
        Tensor(name, datatype, (count, *tail), bytes(view[cuts[index] : cuts[index + 1]]))
        for index, count in enumerate(rows)
    ]


def _cuts(tensor: Tensor, rows: Sequence[int]) -> list[int]:
    """Byte offsets of the members' first rows, and the end."""
    size = byte_size(tensor.datatype, tensor.shape)
    if size is None:
        return _bytes_cuts(tensor, rows)
    if size != len(tensor.data):
        raise MalformedAnswer(
            f"output '{tensor.name}': {len(tensor.data)} bytes where its shape needs {size}"
        )
    per_row = size // tensor.shape[0]
    return [0, *accumulate([count * per_row for count in rows])]


def _bytes_cuts(tensor: Tensor, rows: Sequence[int]) -> list[int]:
    elements = 1
    for extent in tensor.shape[1:]:
        elements *= extent
    cuts = [0]
    for count in rows:
        cuts.append(skip_elements(tensor.data, cuts[-1], count * elements))
    if cuts[-1] != len(tensor.data):
        extra = len(tensor.data) - cuts[-1]
        raise MalformedAnswer(f"output '{tensor.name}': {extra} bytes too many")
    return cuts


def skip_elements(data: bytes | bytearray | memoryview, start: int, count: int) -> int:
    """The offset after `count` BYTES elements from `start`. Raises MalformedAnswer past the end."""
    position = start
    for _ in range(count):
        length = int.from_bytes(data[position : position + _LENGTH_BYTES], "little")
        position += _LENGTH_BYTES + length
        if position > len(data):
            raise MalformedAnswer("a BYTES tensor ends in the middle of an element")
    return position
