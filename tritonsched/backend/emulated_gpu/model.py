"""The emulated GPU for Triton's python backend: what `emulated_gpu.c` does, where there is no `cc`.

Rule: same parameters, same answers, same order of draws of chance as the C backend; one difference
is unavoidable: models are processes here, so what serialises them is a lock on a file named after
the GPU, and who comes first is the kernel's choice. It costs 0.1-0.2 ms of CPU a request, which
the C backend does not.

Runs inside Triton: numpy 1.26 and Triton's own module, nothing of the package.
"""

import fcntl
import json
import math
import os
import tempfile
import time

import numpy as np
import triton_python_backend_utils as pb_utils

LATENCY_US_MAX = 60e6  # a typing error must not stop the server for hours
THROTTLE_MAX = 1000.0
TABLE_MAX = 64
WORD = (1 << 64) - 1
SUM_COLUMNS, STATS_COLUMNS = 2, 4
NUMBERS = {  # parameter: lowest, highest, default
    "a_us": (0.0, LATENCY_US_MAX, 0.0),
    "b_us": (0.0, LATENCY_US_MAX, 0.0),
    "jitter_pct": (0.0, 200.0, 0.0),
    "overrun_rate": (0.0, 1.0, 0.0),
    "overrun_factor": (1.0, THROTTLE_MAX, 1.0),
    "throttle": (1 / THROTTLE_MAX, THROTTLE_MAX, 1.0),
}
OTHERS = ("gpu", "table", "control_file", "seed")


def number(text: str, low: float, high: float) -> float:
    """A finite number within bounds. Raises ValueError."""
    value = float(text)
    if not low <= value <= high:
        raise ValueError(text)
    return value


def table(text: str) -> list[tuple[float, float]]:
    """`rows:us,rows:us,...` with ascending rows. Raises ValueError."""
    pairs = [tuple(map(float, pair.split(":"))) for pair in text.split(",")] if text else []
    rows = [pair[0] for pair in pairs]
    if len(pairs) > TABLE_MAX or any(len(pair) != 2 for pair in pairs):
        raise ValueError(text)
    if rows != sorted(set(rows)) or any(not 1 <= r or not 0 <= us <= LATENCY_US_MAX for r, us in pairs):
        raise ValueError(text)
    return pairs


class Latency:
    """What a model's parameters say of its latency."""

    def __init__(self, model: str, parameters: dict) -> None:
        values = {key: entry.get("string_value", "") for key, entry in parameters.items()}
        for key in values:
            if key not in NUMBERS and key not in OTHERS and not key.startswith("tritonsched_"):
                known = ", ".join((*OTHERS, *NUMBERS))
                raise ValueError(f"model '{model}': parameter '{key}': unknown; known are {known}")
        if not values.get("gpu"):
            raise ValueError(f"model '{model}': parameter 'gpu' is missing")
        self.gpu = values["gpu"]
        self.control_file = values.get("control_file", "")

        def read(key, convert, default):
            try:
                return convert(values[key]) if key in values else default
            except ValueError as exc:
                raise ValueError(
                    f"model '{model}': parameter '{key}': '{values[key]}' cannot be used"
                ) from exc

        for key, (low, high, default) in NUMBERS.items():
            setattr(self, key, read(key, lambda text, b=(low, high): number(text, *b), default))
        self.table = read("table", table, [])
        seed = read("seed", lambda text: int(number(text, 0, WORD)) and int(text), 1)
        self.random = ((seed + 1) * 0x9E3779B97F4A7C15 & WORD) | 1

    def expected_us(self, rows: int) -> float:
        """Linear between the table's entries and beyond its last; constant below its first."""
        points = self.table
        if not points:
            return self.a_us + self.b_us * rows
        if len(points) == 1 or rows <= points[0][0]:
            return points[0][1]
        i = 1
        while i < len(points) - 1 and points[i][0] < rows:
            i += 1
        (r0, us0), (r1, us1) = points[i - 1], points[i]
        return max(0.0, us0 + (us1 - us0) * (rows - r0) / (r1 - r0))

    def uniform(self) -> float:
        """The next draw of the xorshift64* generator, in [0, 1)."""
        x = self.random
        x ^= x >> 12
        x ^= (x << 25) & WORD
        x ^= x >> 27
        self.random = x
        return ((x * 0x2545F4914F6CDD1D & WORD) >> 11) * 2.0**-53

    def drawn_us(self, rows: int, throttle: float) -> float:
        """This batch's latency. Sum of twelve uniforms: near normal; mean of the factor is 1."""
        normal = sum(self.uniform() for _ in range(12)) - 6
        sigma = self.jitter_pct / 100
        us = self.expected_us(rows) * throttle * math.exp(sigma * normal - sigma * sigma / 2)
        if self.uniform() < self.overrun_rate:
            us *= self.overrun_factor
        return min(us, LATENCY_US_MAX)

    def current_throttle(self) -> float:
        """The control file's factor; the parameter's where there is none that can be read."""
        if not self.control_file:
            return self.throttle
        try:
            with open(self.control_file, encoding="ascii") as file:
                return number(file.read(64), 1 / THROTTLE_MAX, THROTTLE_MAX)
        except (OSError, ValueError):
            return self.throttle


class TritonPythonModel:
    """Triton's interface to a python model."""

    def initialize(self, args: dict) -> None:
        """Read the configuration. An error here is the model's load error."""
        config = json.loads(args["model_config"])
        self.latency = Latency(args["model_name"], config["parameters"])
        self.input = config["input"][0]["name"]
        self.has_rows = int(config["max_batch_size"]) > 0
        self.outputs = [(o["name"], o["data_type"] == "TYPE_FP64") for o in config["output"]]
        lock_dir = os.environ.get("TRITONSCHED_GPU_LOCK_DIR", tempfile.gettempdir())
        name = "".join(c if c.isalnum() else "_" for c in self.latency.gpu)
        path = os.path.join(lock_dir, f"tritonsched-gpu-{name}.lock")
        self.lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def execute(self, requests: list) -> list:
        """One batch: all requests handed over. A request at fault is answered alone."""
        tensors = [pb_utils.get_input_tensor_by_name(r, self.input).as_numpy() for r in requests]
        batch_rows = sum(self._rows(tensor) for tensor in tensors if tensor.size)
        stats = self._occupy(batch_rows) if batch_rows else [0.0] * STATS_COLUMNS
        return [self._answer(tensor, stats) for tensor in tensors]

    def _rows(self, tensor: np.ndarray) -> int:
        return int(tensor.shape[0]) if self.has_rows else 1

    def _occupy(self, rows: int) -> list[float]:
        fcntl.flock(self.lock, fcntl.LOCK_EX)
        try:
            throttle = self.latency.current_throttle()
            start_ns = time.monotonic_ns()
            end_ns = start_ns + int(self.latency.drawn_us(rows, throttle) * 1000)
            while (left_ns := end_ns - time.monotonic_ns()) > 0:
                time.sleep(left_ns / 1e9)
        finally:
            fcntl.flock(self.lock, fcntl.LOCK_UN)
        return [float(start_ns), float(end_ns), float(rows), throttle]

    def _answer(self, tensor: np.ndarray, stats: list[float]):
        if tensor.size == 0:
            error = pb_utils.TritonError(f"input '{self.input}' is empty")
            return pb_utils.InferenceResponse(output_tensors=[], error=error)
        rows = self._rows(tensor)
        flat = tensor.reshape(rows, -1)
        sums = np.stack([flat.sum(axis=1, dtype=np.float64), flat[:, 0]], axis=1)
        answers = {False: sums.astype(np.float32), True: np.tile(np.float64(stats), (rows, 1))}
        return pb_utils.InferenceResponse(
            output_tensors=[
                pb_utils.Tensor(name, answers[is_stats] if self.has_rows else answers[is_stats][0])
                for name, is_stats in self.outputs
            ]
        )
