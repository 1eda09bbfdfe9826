"""Schedules, payloads and counts: fixed by the seed, complete, and never silently short."""

import itertools
import json
import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2 as pb

from tritonsched.backend.catalogue import ModelInfo, TensorInfo
from tritonsched.bench.measure import ClassCount, quantile_ms
from tritonsched.bench.payload import PAYLOADS, Wording, grpc_message, http_body, inputs
from tritonsched.bench.plan import DEFAULT_CLASS, Arrivals, LoadClass, parse_class, schedule

TIGHT = LoadClass("tight", 0.3, 30.0)
LOOSE = LoadClass("loose", 0.7, 100.0, 80.0)


def plan(seed: int = 1, arrivals: Arrivals = Arrivals.POISSON) -> list[tuple[int, int, int]]:
    shots = schedule(
        rate=1000,
        duration_s=5,
        arrivals=arrivals,
        classes=(TIGHT, LOOSE),
        payloads=4,
        rng=random.Random(seed),
    )
    return [(shot.at_ns, shot.load_class, shot.payload) for shot in shots]


def test_a_schedule_is_its_seed() -> None:
    assert plan(1) == plan(1)
    assert plan(1) != plan(2)


def test_rate_and_shares_are_what_was_asked() -> None:
    shots = plan()
    assert 4700 < len(shots) < 5300
    share = Counter(index for _, index, _ in shots)[0] / len(shots)
    assert 0.27 < share < 0.33
    times = [at for at, _, _ in shots]
    assert times == sorted(times)
    assert times[-1] < 5 * 10**9


def test_constant_arrivals_are_evenly_spaced() -> None:
    times = [at for at, _, _ in plan(arrivals=Arrivals.CONSTANT)]
    gaps = {b - a for a, b in itertools.pairwise(times)}
    assert max(gaps) - min(gaps) <= 2


def test_a_schedule_that_would_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="shorten the run"):
        schedule(
            rate=1e6,
            duration_s=60,
            arrivals=Arrivals.POISSON,
            classes=(DEFAULT_CLASS,),
            payloads=1,
            rng=random.Random(1),
        )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tight:0.3:30", TIGHT),
        ("loose:0.7:100:80", LOOSE),
        ("free:1:none", LoadClass("free", 1.0, None)),
        ("first:1:30:none:2", LoadClass("first", 1.0, 30.0, None, 2)),
    ],
)
def test_a_class_is_read_from_its_words(text: str, expected: LoadClass) -> None:
    assert parse_class(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a",
        "a:1",
        ":1:2",
        "a:x:2",
        "a:0:2",
        "a:1:-2",
        "a:1:0",
        "a:nan:1",
        "a:1:2:3:x",
        "a:1:2:3:-1",
        "a:1:2:3:4:5",
        "a:1:inf",
    ],
)
def test_a_senseless_class_is_refused_in_words(text: str) -> None:
    with pytest.raises(ValueError, match="class"):
        parse_class(text)


def info(*tensors: TensorInfo, rows_max: int = 8) -> ModelInfo:
    declared = {tensor.name: tensor for tensor in tensors}
    return ModelInfo("m", "", rows_max, declared, {}, ("d",))


def test_payloads_fit_the_model_and_differ() -> None:
    model = info(TensorInfo("A", "FP32", (2, 3)), TensorInfo("B", "INT8", (-1,)))
    made = inputs(model, rows=2, shapes={"B": (5,)}, pictures=False, seed=1)
    assert len(made) == PAYLOADS
    assert {len(each["A"][2]) for each in made} == {2 * 2 * 3 * 4}
    assert {each["B"][1] for each in made} == {(2, 5)}
    assert len({each["A"][2] for each in made}) == PAYLOADS


def test_a_model_without_batching_gets_no_rows() -> None:
    made = inputs(
        info(TensorInfo("A", "FP16", (3,)), rows_max=0), rows=2, shapes={}, pictures=False, seed=1
    )
    assert made[0]["A"][1] == (3,)


def test_variable_dimensions_and_unknown_types_are_refused_in_words() -> None:
    with pytest.raises(ValueError, match="name them with --shape"):
        inputs(info(TensorInfo("A", "FP32", (-1,))), rows=1, shapes={}, pictures=False, seed=1)
    with pytest.raises(ValueError, match="cannot make up INT4"):
        inputs(info(TensorInfo("A", "INT4", (1,))), rows=1, shapes={}, pictures=False, seed=1)


def test_texts_are_numbers_with_their_lengths_before_them() -> None:
    model = info(TensorInfo("A", "BYTES", (3,)))
    made = inputs(model, rows=2, shapes={}, pictures=False, seed=1, sets=1)
    ((datatype, shape, data),) = made[0].values()
    assert (datatype, shape, len(data)) == ("BYTES", (2, 3), 6 * 12)
    elements = [data[at : at + 12] for at in range(0, 72, 12)]
    assert all(each[:4] == b"\x08\0\0\0" and each[4:].isdigit() for each in elements)
    assert len(set(elements)) > 1


def test_pictures_are_real_ones_and_only_for_models_that_take_them() -> None:
    classifier = info(TensorInfo("IMAGE", "UINT8", (260, 260, 3)))
    made = inputs(classifier, rows=3, shapes={}, pictures=True, seed=1)
    image = np.frombuffer(made[0]["IMAGE"][2], np.uint8).reshape(3, 260, 260, 3)
    assert image.std() > 10
    with pytest.raises(ValueError, match="the pictures are UINT8"):
        inputs(info(TensorInfo("A", "FP32", (4,))), rows=1, shapes={}, pictures=True, seed=1)


def test_both_wires_carry_the_same_tensors_and_deadlines() -> None:
    made = inputs(info(TensorInfo("A", "FP32", (2,))), rows=1, shapes={}, pictures=False, seed=1)[0]
    wording = Wording(timeout=True, header=False, send_class=False)
    first = LoadClass("first", 1.0, 100.0, 80.0, priority=2)
    message = pb.ModelInferRequest.FromString(grpc_message("m", made, wording.parameters(first)))
    assert message.parameters["timeout"].int64_param == 80_000
    assert message.parameters["priority"].int64_param == 2
    length, body = http_body(made, wording.parameters(TIGHT))
    head = json.loads(body[:length])
    assert head["parameters"] == {"binary_data_output": True, "timeout": 30_000}
    assert body[length:] == made["A"][2] == message.raw_input_contents[0]


def test_words_are_told_only_if_asked_for() -> None:
    header = Wording(timeout=False, header=True, send_class=True)
    assert header.headers(TIGHT) == (
        ("x-request-deadline-ms", "30"),
        ("x-tritonsched-class", "tight"),
    )
    assert header.parameters(TIGHT) == {}
    assert header.call_deadline_s(TIGHT) is None
    silent = Wording(timeout=False, header=False, send_class=False)
    assert silent.headers(TIGHT) == ()
    everything = Wording(timeout=True, header=True, send_class=False, call_deadline=True)
    assert everything.parameters(DEFAULT_CLASS) == {}
    assert everything.call_deadline_s(DEFAULT_CLASS) is None
    assert everything.call_deadline_s(TIGHT) == 0.03


@given(
    st.lists(
        st.tuples(
            st.sampled_from(
                ["ok", "queue-full", "triton-timeout", "gave-up", "http-500", "internal"]
            ),
            st.integers(0, 60_000_000),
        )
    )
)
def test_every_answer_is_in_exactly_one_count(answers: list[tuple[str, int]]) -> None:
    count = ClassCount(TIGHT, sent=len(answers), unanswered=len(answers))
    for status, latency_ns in answers:
        count.answered(status, latency_ns)
    made = count.as_dict(1.0)
    total = made["served"] + made["late"] + sum(made["refused"].values())
    assert total + sum(made["failed"].values()) == len(answers) == made["sent"]
    assert made["unanswered"] == 0
    late = sum(s == "gave-up" or (s == "ok" and ns > 30_000_000) for s, ns in answers)
    assert made["late"] == late
    assert sum(made["refused"].values()) == sum(
        status in ("queue-full", "triton-timeout") for status, _ in answers
    )


def test_quantiles_are_nearest_ranks() -> None:
    ordered = [n * 1_000_000 for n in range(1, 101)]
    assert [quantile_ms(ordered, q) for q in (0.5, 0.9, 0.99, 1.0)] == [50.0, 90.0, 99.0, 100.0]
    assert quantile_ms([], 0.5) is None
