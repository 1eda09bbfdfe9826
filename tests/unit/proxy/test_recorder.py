"""`--record`: what is written, what bounds it, and that nothing of it reaches a request."""

import asyncio
import errno
import io
import json
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import IO

import pytest

from tests.unit.proxy.recordings import MODELS, MS, POLICY, S, arrivals, record
from tritonsched.config import recording
from tritonsched.config.recorded import read_recording
from tritonsched.config.schema import PolicyFile
from tritonsched.core.batch import Batch, Grant, Refuse
from tritonsched.core.request import Outcome, Request
from tritonsched.core.reservation import RefusalReason, Reservation
from tritonsched.core.tuning import Tuning
from tritonsched.core.variant import ServerState, Variant
from tritonsched.options import ServeOptions
from tritonsched.proxy.recorder import FILES_MAX, QUEUE_LINES_MAX, Recorder, recorders

REQUEST = Request(1, 'a "b"\n', "gold", 7, 2, 100, 200, weight=4.0)


class Seen:
    """As much of a scheduler as is recorded."""

    def __init__(self) -> None:
        self.tuning = Tuning()
        self.server = ServerState.AWAY
        self.known = Variant(REQUEST.model, 8, ("gpu0",))

    def variant(self, model: str) -> Variant | None:
        return self.known if model == self.known.model else None


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def recorder(path: Path, said: list[str], file_bytes_max: int = 1 << 20) -> Recorder:
    return Recorder(path, file_bytes_max=file_bytes_max, policy=POLICY, told=said.append)


def test_a_line_a_fact_after_a_header_with_version_policy_start_and_clock(tmp_path: Path) -> None:
    path, said = tmp_path / "r.jsonl", list[str]()
    made = recorder(path, said)
    made.watch(Seen())
    batch = Batch(5, REQUEST.model, "gpu0", (REQUEST,), 2, 110, 115, 50)
    made.start()
    made.on_submit(REQUEST, 105)
    made.on_dispatch(batch, 110)
    made.on_complete(batch, measured_ns=60, now=170)
    made.on_outcomes((REQUEST,), Outcome.SERVED, "", 170)
    made.on_policy(POLICY)  # nothing new
    made.on_policy(PolicyFile())
    made.close()
    head, tuning, server, model, arrive, dispatch, complete, leave, policy = lines(path)
    assert (head["recording"], head["clock"], head["part"]) == ("tritonsched", "monotonic ns", 0)
    assert head["policy"] == POLICY.model_dump(mode="json")
    assert policy["policy"] == PolicyFile().model_dump(mode="json")
    assert {"version", "started", "id", "format"} <= head.keys()
    assert (tuning["at_ns"], tuning["rtt_ns"], server["state"]) == (105, 500_000, "away")
    assert (model["model"], model["rows_max"], model["devices"]) == ('a "b"\n', 8, ["gpu0"])
    assert arrive == {
        "what": "arrive", "at_ns": 105, "id": 1, "model": 'a "b"\n', "class": "gold",
        "signature": 7, "rows": 2, "received_ns": 100, "deadline_ns": 200, "weight": 4.0,
        "alone": False, "tenant": "",
    }  # fmt: skip
    assert (dispatch["batch"], dispatch["requests"], dispatch["start_ns"]) == (5, [1], 115)
    assert (complete["exec_ns"], complete["device"], complete["rows"]) == (60, "gpu0", 2)
    assert leave == {"what": "leave", "at_ns": 170, "id": 1, "outcome": "served", "reason": ""}
    assert (made.written, made.dropped, said) == (8, 0, [])


def test_tuning_server_and_models_are_written_when_they_change(tmp_path: Path) -> None:
    path, seen = tmp_path / "r.jsonl", Seen()
    made = recorder(path, [])
    made.watch(seen)
    made.start()
    made.on_submit(REQUEST, 1)
    made.on_submit(REQUEST, 2)
    seen.tuning, seen.server = Tuning(rtt_ns=9), ServerState.READY
    seen.known = Variant(REQUEST.model, 4, ("gpu1",))
    made.on_submit(REQUEST, 3)
    made.close()
    kinds = [line["what"] for line in lines(path)[1:]]
    once = ["tuning", "server", "model"]
    assert kinds == [*once, "arrive", "arrive", *once, "arrive"]


def test_files_stay_within_their_bounds_and_each_can_be_read_alone(tmp_path: Path) -> None:
    path, bound = tmp_path / "r.jsonl", 60_000
    _, made = record(path, arrivals(600, duration_ns=2 * S), file_bytes_max=bound)
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == [
        "r.jsonl", *(f"r.jsonl.{number}" for number in range(1, FILES_MAX))
    ]  # fmt: skip
    assert all(file.stat().st_size <= bound for file in files)
    parts = [lines(file)[0]["part"] for file in files]
    newest = parts[0]
    assert isinstance(newest, int)
    assert newest > FILES_MAX  # older ones are gone
    assert parts == [newest - age for age in range(FILES_MAX)]
    alone = tmp_path / "alone.jsonl"
    alone.write_bytes(files[1].read_bytes())
    assert read_recording(alone).models.keys() == {model.name for model in MODELS}
    whole = read_recording(path)
    assert whole.files == FILES_MAX
    assert whole.fault_count == 0
    assert made.dropped == 0


def test_a_stream_is_said_again_in_each_file_until_it_is_over(tmp_path: Path) -> None:
    path, short = tmp_path / "r.jsonl", 3_000
    made = recorder(path, [], file_bytes_max=short)
    wanted = Reservation(4, "m", 20 * MS, 40 * MS, 9)
    for number in (4, 5):
        made.on_reserve(replace(wanted, id=number), 1)
    made.on_reserved(Grant(wanted, "gpu0", ()), 2)
    made.on_reserved(Refuse(replace(wanted, id=5), RefusalReason.BUSY), 2)
    made.on_release(5, 3)
    for number in range(60):
        made.on_policy(PolicyFile() if number % 2 else POLICY)
    made.on_release(6, 4)  # never asked
    made.start()
    made.close()
    assert len(list(tmp_path.iterdir())) > 1
    first = lines(path)[1]
    assert (first["what"], first["id"]) == ("reserve", 4)
    assert [line["what"] for line in lines(path)[1:]].count("reserve") == 1


def test_an_older_recording_of_the_name_is_kept_aside(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    record(path, arrivals(20, seed=1, duration_ns=S))
    first = path.read_bytes()
    record(path, arrivals(20, seed=2, duration_ns=S))
    assert (tmp_path / "r.jsonl.1").read_bytes() == first
    assert read_recording(path).files == 1  # the other one is of another run


@pytest.mark.parametrize("name", ["policy.yaml", "policy.yaml.2"])
def test_a_file_of_another_kind_is_left_alone(tmp_path: Path, name: str) -> None:
    path, said = tmp_path / "policy.yaml", list[str]()
    (tmp_path / name).write_text("classes: {}\n")
    made = recorder(path, said)
    made.start()
    made.close()
    assert (tmp_path / name).read_text() == "classes: {}\n"
    assert [file.name for file in tmp_path.iterdir()] == [name]
    assert len(said) == 1
    assert f"{name} is there and is no recording, so it is left alone" in said[0]


def test_a_place_that_cannot_be_written_is_told_once_and_every_line_counted(
    tmp_path: Path,
) -> None:
    said: list[str] = []
    made = recorder(tmp_path / "no" / "r.jsonl", said)
    made.start()
    made.close()
    for now in range(3):
        made.on_submit(REQUEST, now)
    assert said == [
        f"recording to {tmp_path / 'no' / 'r.jsonl'} ended: No such file or directory; requests "
        "are not affected. Free the disk or name another file, and start again"
    ]
    assert (made.written, made.dropped) == (0, 3)


class FullDisk(io.RawIOBase):
    """Takes `room` bytes, and no more than 100 at once."""

    def __init__(self, room: int) -> None:
        self.taken = bytearray()
        self._room = room

    def write(self, data: object) -> int:
        assert isinstance(data, memoryview)
        fits = min(len(data), 100, self._room - len(self.taken))
        if not fits:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.taken += data[:fits]
        return fits


def test_a_full_disk_ends_recording_and_what_was_written_can_be_replayed(tmp_path: Path) -> None:
    disk, said = FullDisk(20_000), list[str]()

    def opened(path: Path) -> IO[bytes]:
        return disk  # type: ignore[return-value]  # it is written and closed, no more

    made = Recorder(
        tmp_path / "r", file_bytes_max=1 << 20, policy=POLICY, told=said.append, open_file=opened
    )
    made.start()
    for number in range(1, 401):
        made.on_submit(Request(number, "m", "gold", 0, 1, number * MS), number * MS)
    made.close()
    assert len(said) == 1
    assert "No space left on device" in said[0]
    assert made.written + made.dropped == 400
    assert made.dropped > 0
    cut = tmp_path / "cut.jsonl"
    cut.write_bytes(disk.taken)
    found = read_recording(cut)
    assert len(found.arrivals) >= made.written > 0
    assert found.fault_count <= 1


def test_a_full_queue_drops_lines_and_counts_them(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    made = recorder(path, [], file_bytes_max=1 << 30)  # its thread is not started yet
    for number in range(QUEUE_LINES_MAX + 10):
        made.on_submit(REQUEST, number)
    assert made.dropped == 10
    made.start()
    made.close()
    assert (made.written, made.dropped) == (QUEUE_LINES_MAX, 10)
    assert path.read_bytes().count(b"\n") == QUEUE_LINES_MAX + 1


def test_our_own_mistake_ends_recording_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> str:
        raise KeyError("oops")

    monkeypatch.setattr(recording, "arrive_line", broken)
    said: list[str] = []
    made = recorder(tmp_path / "r.jsonl", said)
    made.on_submit(REQUEST, 1)
    made.start()
    made.close()
    assert "KeyError('oops')" in said[0]
    assert made.dropped == 1


def options(record: Path | None) -> ServeOptions:
    return ServeOptions(
        host="", http_port=0, grpc_port=0, metrics_port=0, triton_http=None, triton_grpc=None,
        triton_metrics=None, policy=POLICY, repository=Path(), triton_env=Path(), run_dir=Path(),
        drain_s=0, record=record, record_bytes=1 << 20,
    )  # fmt: skip


async def test_without_the_option_nothing_records_and_with_it_the_stack_ends_it(
    tmp_path: Path,
) -> None:
    path, said = tmp_path / "r.jsonl", list[str]()
    async with AsyncExitStack() as stack:
        assert recorders(options(None), say=said.append, stack=stack) == ()
        (made,) = recorders(options(path), say=said.append, stack=stack)
        made.on_submit(REQUEST, 1)
    assert [line.get("what") for line in lines(path)] == [None, "arrive"]
    assert said == []


async def test_why_it_ended_is_said_in_the_loop_s_own_thread(tmp_path: Path) -> None:
    heard = asyncio.get_running_loop().create_future()
    async with AsyncExitStack() as stack:
        recorders(options(tmp_path / "no" / "r"), say=heard.set_result, stack=stack)
        assert "No such file or directory" in await heard
