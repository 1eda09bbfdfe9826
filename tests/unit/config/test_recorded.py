"""Reading recordings: whole ones, cut ones, and files that are none."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.proxy.recordings import POLICY, S, arrivals, record
from tritonsched.config.recorded import FAULTS_SHOWN, read_recording
from tritonsched.core.request import Outcome
from tritonsched.core.reservation import Reservation
from tritonsched.errors import ConfigError


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recording") / "r.jsonl"
    record(path, arrivals(40, duration_ns=S))
    return path


def head(whole: Path) -> str:
    return whole.read_text().partition("\n")[0] + "\n"


def changed(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "changed.jsonl"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


ARRIVE = {
    "what": "arrive", "at_ns": 10, "id": 1, "model": "m", "class": "gold", "signature": 0,
    "rows": 1, "received_ns": 5, "deadline_ns": 50, "weight": 1.0, "alone": False,
}  # fmt: skip


def test_a_recording_is_read_as_it_was_served(tmp_path: Path) -> None:
    path, requests = tmp_path / "r.jsonl", arrivals(40, duration_ns=S)
    ledger, _ = record(path, requests)
    found = read_recording(path)
    origin = requests[0].arrival_ns
    assert (found.fault_count, found.orphans, found.policy) == (0, 0, POLICY)
    assert [(r.id, r.arrival_ns + origin, r.rows, r.alone) for r in found.arrivals.values()] == [
        (r.id, r.arrival_ns, r.rows, r.alone) for r in requests
    ]
    served = sum(left.outcome is Outcome.SERVED for left in found.left.values())
    assert served == ledger.total(Outcome.SERVED)
    assert len(found.batches) == ledger.batches


def test_a_recording_cut_anywhere_gives_what_is_whole_and_one_fault_at_most(
    whole: Path, tmp_path: Path
) -> None:
    raw = whole.read_bytes()
    full = read_recording(whole)
    for cut in range(len(head(whole)) + 500, len(raw), 997):
        found = read_recording(changed(tmp_path, raw[:cut]))
        assert found.fault_count == (not raw[:cut].endswith(b"\n"))
        assert list(found.arrivals) == list(full.arrivals)[: len(found.arrivals)]
        if found.faults:
            number = raw[:cut].count(b"\n") + 1
            assert found.faults[0].startswith(f"{tmp_path / 'changed.jsonl'}:{number}:")
            assert "cut off" in found.faults[0]


STREAM = (
    '{"what":"reserve","at_ns":3,"id":2,"model":"m","period_ns":9,"relative_deadline_ns":8,'
    '"frames":5,"start_ns":7,"rows":1,"signature":0,"jitter_ns":1,"tenant":"t","weight":2.0}'
)


def test_streams_are_read_with_when_they_asked_and_ended(whole: Path, tmp_path: Path) -> None:
    """Said again at the begin of a later file, it is the same stream."""
    start = head(whole) + '{"what":"server","at_ns":1,"state":"ready"}\n'
    said = [STREAM, STREAM.replace('"at_ns":3', '"at_ns":30'), json.dumps(ARRIVE)]
    said += ['{"what":"grant","at_ns":4,"id":2,"device":"d"}']
    said += ['{"what":"refuse","at_ns":5,"id":3,"reason":"busy"}']
    said += ['{"what":"release","at_ns":9,"id":2}']
    found = read_recording(changed(tmp_path, start + "\n".join(said) + "\n"))
    assert found.fault_count == 0
    wanted = Reservation(2, "m", 9, 8, 5, 6, jitter_ns=1, tenant="t", weight=2.0)
    assert found.reserved == {2: (2, wanted)}
    assert (found.granted, found.released) == ({2}, [(8, 2)])


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "no JSON: Expecting property name"),
        ("[1]", "must be a JSON object"),
        ("[" * 100_000, "no JSON: RecursionError"),
        ('{"what":"dance","at_ns":1}', "what: 'dance' is unknown; use arrive"),
        ('{"at_ns":1}', "what: must be text"),
        ('{"what":"arrive","at_ns":-1}', "at_ns: must be a whole number from 0"),
        ({"rows": 0}, "rows: must be a whole number from 1"),
        ({"rows": True}, "rows: must be a whole number"),
        ({"weight": float("nan")}, "no JSON: ValueError"),
        ({"weight": 0}, "weight: must be a number > 0"),
        ({"alone": 1}, "alone: must be true or false"),
        ({"model": 3}, "model: must be text"),
        ({"at_ns": 9}, "at_ns: earlier than the arrival before it"),
        ({}, "id: 1 arrived before"),
        ('{"what":"leave","at_ns":1,"id":1,"outcome":"lost","reason":""}', "outcome: 'lost'"),
        ('{"what":"leave","at_ns":1,"id":1,"reason":""}', "outcome: must be text"),
        ('{"what":"server","at_ns":1,"state":"on"}', "state: 'on' is unknown"),
        ('{"what":"server","at_ns":1,"state":7}', "state: must be text"),
        ('{"what":"tuning","at_ns":1,"rtt_ns":"x"}', "rtt_ns: must be int"),
        ('{"what":"tuning","at_ns":1,"queue_requests_max":0}', "queue_requests_max must be >= 1"),
        ('{"what":"model","at_ns":1,"model":"m","rows_max":1,"devices":[]}', "no device"),
        ('{"what":"model","at_ns":1,"model":"m","rows_max":1,"devices":7}', "devices: must be"),
        (STREAM.replace('"frames":5', '"frames":0'), "frames must be 1 to"),
        (STREAM.replace('"period_ns":9', '"period_ns":"x"'), "period_ns: must be a whole number"),
        ('{"what":"grant","at_ns":1}', "id: must be a whole number"),
        ('{"what":"refuse","at_ns":1,"id":0}', "id: must be a whole number"),
    ],
)
def test_a_bad_line_is_told_with_its_place_and_the_rest_is_used(
    whole: Path, tmp_path: Path, line: str | dict[str, object], said: str
) -> None:
    first, last = json.dumps(ARRIVE), json.dumps(ARRIVE | {"id": 3, "at_ns": 20})
    if isinstance(line, dict):
        line = json.dumps(ARRIVE | ({"id": 2} if line else {}) | line)
    start = head(whole) + '{"what":"server","at_ns":1,"state":"ready"}\n'
    found = read_recording(changed(tmp_path, f"{start}{first}\n{line}\n{last}\n"))
    assert list(found.arrivals) == [1, 3]
    assert found.fault_count == 1
    assert found.faults[0].startswith(f"{tmp_path / 'changed.jsonl'}:4:")
    assert said in found.faults[0]


def test_ends_without_arrival_are_counted_and_a_second_end_is_a_fault(
    whole: Path, tmp_path: Path
) -> None:
    leave = '{"what":"leave","at_ns":30,"id":%d,"outcome":"served","reason":""}\n'
    text = head(whole) + json.dumps(ARRIVE) + "\n" + leave % 1 + leave % 1 + leave % 9
    found = read_recording(changed(tmp_path, text))
    assert (found.orphans, found.fault_count, len(found.left)) == (1, 1, 1)


def test_faults_are_all_counted_and_told_up_to_a_bound(whole: Path, tmp_path: Path) -> None:
    text = head(whole) + json.dumps(ARRIVE) + "\n" + "?\n" * (FAULTS_SHOWN + 5)
    found = read_recording(changed(tmp_path, text))
    assert (found.fault_count, len(found.faults)) == (FAULTS_SHOWN + 5, FAULTS_SHOWN)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", ":1:1: is no recording; `serve --record FILE` makes one"),
        ("classes: {}\n", ":1:1: is no recording"),
        ('{"recording":"tritonsched","format":1', ":1:37: the line is cut off"),
        ('{"recording":"tritonsched","format":2}\n', ":1:1: format 2; this version reads 1"),
        ('{"recording":"tritonsched","format":1}\n', ":1:1: id: must be text"),
        (
            '{"recording":"tritonsched","format":1,"id":"1","version":"","started":"",'
            '"policy":{"clases":{}}}\n',
            ":1:1: policy.clases: Extra inputs are not permitted",
        ),
    ],
)
def test_a_file_that_is_no_recording_is_refused(tmp_path: Path, text: str, said: str) -> None:
    path = changed(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        read_recording(path)
    assert str(caught.value).startswith(f"{path}{said}")


def test_no_file_and_no_arrival_are_refused(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read_recording(tmp_path / "none")
    with pytest.raises(ConfigError, match="holds no arrival; record while requests come in"):
        read_recording(changed(tmp_path, head(whole)))


@given(at=st.floats(0, 1), junk=st.binary(min_size=1, max_size=40))
def test_bytes_overwritten_anywhere_are_a_fault_or_a_refusal_never_a_crash(
    whole: Path, at: float, junk: bytes
) -> None:
    raw = bytearray(b"".join(whole.read_bytes().splitlines(keepends=True)[:40]))
    place = int(at * (len(raw) - 1))
    raw[place : place + len(junk)] = junk
    path = whole.parent / "junk.jsonl"
    path.write_bytes(raw)
    try:
        found = read_recording(path)
    except ConfigError as error:
        assert str(error).startswith(f"{path}")  # noqa: PT017  # most mutations end well
    else:
        assert found.arrivals
