"""May this call share a batch, and with which others? One place; a reason for each rule.

An allow-list: what is not provably mergeable goes alone, as its original bytes, and Triton itself
words any error (KServe v2 protocol with Triton's extensions; DESIGN.md, "Merging"). The words
below appear in the explain header and as a metric label.

| reason           | rule                                                                    |
|------------------|-------------------------------------------------------------------------|
| of the form      | the frontend could not read its plain form (`InferCall.lone_reason`)    |
| of the model     | the model's configuration excludes it (`ModelInfo.lone_reason`)         |
| `version-form`   | a version that is not plain digits: Triton parses it loosely            |
| `inputs-differ`  | the inputs are not exactly the model's required ones                    |
| `shape-differs`  | datatype or dimensions are not the declared ones, or rows disagree      |
| `rows-exceed`    | no rows, or more than the model's max_batch_size                        |
| `bytes-differ`   | the data is not as long as its shape says                               |
| `region-bytes`   | BYTES in a client's region: it may change after its lengths were read   |
| `region-unknown` | a region that we do not know or cannot open, or a place outside of it   |
| `region-device`  | a region on a GPU, and batches of the model do not go there             |
| `outputs-differ` | an unknown output, or one asked for twice                               |
| `sequence`       | a sequence parameter: order matters                                     |
"""

from collections.abc import Hashable

from tritonsched.backend.catalogue import ModelInfo, TensorInfo
from tritonsched.errors import MalformedAnswer
from tritonsched.proxy.assembly import skip_elements
from tritonsched.proxy.named import of_the_model
from tritonsched.tensors import InferCall, Tensor, byte_size

SIGNATURES_MAX = 16_384  # distinct merge keys remembered; a client that varies shapes stays bounded
_SEQUENCE = ("sequence_id", "sequence_start", "sequence_end")


def lone_reason(call: InferCall, info: ModelInfo) -> str:
    """Why the call must go alone; empty if it may be merged."""
    if call.lone_reason or info.lone_reason:
        return call.lone_reason or info.lone_reason
    if call.version and not (call.version.isascii() and call.version.isdigit()):
        return "version-form"
    if any(name in call.parameters for name in _SEQUENCE):
        return "sequence"
    names = [tensor.name for tensor in call.inputs]
    if len(set(names)) != len(names) or set(names) != set(info.inputs):
        return "inputs-differ"
    asked = call.outputs
    if len(set(asked)) != len(asked) or not set(asked) <= set(info.outputs):
        return "outputs-differ"
    return _tensor_reason(call, info)


def _tensor_reason(call: InferCall, info: ModelInfo) -> str:
    rows = call.inputs[0].shape[0] if call.inputs and call.inputs[0].shape else 0
    for tensor in call.inputs:
        if not _matches(tensor, info.inputs[tensor.name], rows):
            return "shape-differs"
        if tensor.ref is not None and tensor.datatype == "BYTES":
            return "region-bytes"
        if not _bytes_fit(tensor):
            return "bytes-differ"
    return "" if 1 <= rows <= info.max_batch_size else "rows-exceed"


def _matches(tensor: Tensor, declared: TensorInfo, rows: int) -> bool:
    if tensor.datatype != declared.datatype or len(tensor.shape) != len(declared.dims) + 1:
        return False
    if tensor.shape[0] != rows or any(extent < 0 for extent in tensor.shape):
        return False
    pairs = zip(tensor.shape[1:], declared.dims, strict=True)
    return all(dim in (-1, extent) for extent, dim in pairs)


def _bytes_fit(tensor: Tensor) -> bool:
    size = byte_size(tensor.datatype, tensor.shape)
    if size is not None:
        return size == tensor.byte_size
    elements = 1
    for extent in tensor.shape:
        elements *= extent
    if elements * 4 > len(tensor.data):  # each element has a length field: refuse before walking
        return False
    try:
        return skip_elements(tensor.data, 0, elements) == len(tensor.data)
    except MalformedAnswer:
        return False


def merge_key(call: InferCall, own: str = "") -> Hashable:
    """Calls with equal keys may share a batch: model, version, shapes, outputs, typed
    parameters. own: the tenant, where its calls are to merge with its own alone.
    """
    return (
        own,
        call.model,
        call.version,
        tuple(sorted((t.name, t.datatype, t.shape[1:]) for t in call.inputs)),
        frozenset(call.outputs),
        tuple(sorted((k, type(v).__name__, v) for k, v in of_the_model(call.parameters).items())),
    )


class Signatures:
    """Merge keys as small numbers. A number is never used for two keys; memory is bounded."""

    def __init__(self) -> None:
        self._numbers: dict[Hashable, int] = {}
        self._next = 0

    def of(self, call: InferCall, own: str = "") -> int:
        key = merge_key(call, own)
        number = self._numbers.get(key)
        if number is None:
            if len(self._numbers) >= SIGNATURES_MAX:
                self._numbers.clear()  # queued requests keep theirs; new ones don't join them
            self._next += 1
            number = self._numbers[key] = self._next
        return number
