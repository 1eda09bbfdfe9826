"""`top`: the page's frames in a terminal, whatever they hold."""

import asyncio
import contextlib
import io
from collections.abc import AsyncIterator
from importlib.resources import files

import orjson
import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from tests.unit.frontend.test_admin_server import View
from tests.unit.frontend.wires import HOST, raw_http
from tests.unit.proxy.panorama import Panorama
from tritonsched import top_screen
from tritonsched.cli import app
from tritonsched.frontend.admin_events import Audience, Listener
from tritonsched.frontend.admin_server import AdminServer
from tritonsched.proxy.frame import Json
from tritonsched.top_screen import number, percent, plain, screen

WIDE = 240


@pytest.fixture(scope="module")
def frame() -> Json:
    """16 models, 10 classes, 4 devices, as it comes off the wire."""
    made = Panorama([f"m{number}" for number in range(16)], [f"c{n}" for n in range(10)])
    made.seconds(2, per_s=600)
    loaded: Json = orjson.loads(orjson.dumps(made.frame(notices=["look here"], changes=["a→b"])))
    return loaded


def text_of(frame: Json, width: int = WIDE) -> str:
    console = Console(width=width, file=io.StringIO(), force_terminal=False)
    console.print(screen(frame))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@contextlib.asynccontextmanager
async def serving(*given: Json, token: str | None = None) -> AsyncIterator[str]:
    """A server that gives each listener these frames and ends it."""
    audience = Audience()
    join = audience.join

    class Told(Listener):
        """One who hears a list of frames."""

        def __init__(self) -> None:
            super().__init__()
            self.coming = [orjson.dumps(frame) for frame in given]

        async def next(self) -> bytes | None:
            return self.coming.pop(0) if self.coming else None

    def joined() -> Listener | None:
        return Told() if join() else None

    audience.join = joined  # type: ignore[method-assign]
    server = AdminServer(View(), host=HOST, port=0, audience=audience, token=token)
    await server.start()
    try:
        yield f"{HOST}:{server.port}"
    finally:
        await server.stop()


async def invoke(*arguments: str) -> Result:
    runner = CliRunner(env={"COLUMNS": str(WIDE), "NO_COLOR": "1"})
    return await asyncio.to_thread(lambda: runner.invoke(app, ["top", *arguments]))


async def test_one_frame_is_printed_with_every_model_class_and_device(frame: Json) -> None:
    async with serving(frame) as address:
        result = await invoke("--once", "--admin", address)
    assert result.exit_code == 0
    words = result.output.split()
    shown = [f"m{n}" for n in range(16)] + [f"c{n}" for n in range(10)]
    assert {*shown, "gpu0", "gpu1", "gpu2", "gpu3"} <= set(words)
    assert "! look here" in result.output
    assert "a→b" in result.output
    assert "batches of other models" in result.output


async def test_a_url_and_a_token_are_taken_and_the_end_of_the_sidecar_is_told(frame: Json) -> None:
    async with serving(frame, frame, token="secret") as address:
        refused = await invoke("--once", "--admin", address)
        ended = await invoke("--admin", f"http://{address}/", "--token", "secret")
    assert refused.exit_code == ended.exit_code == 1
    assert "needs the header" in refused.output
    assert "the sidecar ended" in ended.output
    assert ended.output.count(" m15 ") == 2


async def test_on_a_terminal_a_frame_takes_the_place_of_the_one_before(
    frame: Json, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    async with serving(frame, frame) as address:
        shown = await invoke("--admin", address)
    assert shown.exit_code == 1
    assert shown.output.startswith("\x1b[?1049h")  # the other screen, and back at the end
    assert "\x1b[?1049l" in shown.output
    assert "tritonsched" in shown.output


async def test_what_is_no_sidecar_is_told_in_one_line() -> None:
    async def answer(_: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno")

    async with raw_http(answer) as other:
        strange = await invoke("--once", "--admin", other.address)
    nobody = await invoke("--once", "--admin", f"{HOST}:1")
    no_address = await invoke("--once", "--admin", "file:///etc/passwd")
    assert {strange.exit_code, nobody.exit_code, no_address.exit_code} == {1}
    assert "status 404" in strange.output
    assert f"no frames from {HOST}:1" in nobody.output
    assert "not an address" in no_address.output


async def test_a_stop_at_the_keyboard_is_no_fault(
    frame: Json, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(_: Json) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("tritonsched.top.screen", stopped)
    async with serving(frame) as address:
        assert (await invoke("--once", "--admin", address)).exit_code == 0


@pytest.mark.parametrize("width", [40, 80, 160])
def test_it_is_drawn_at_any_width(frame: Json, width: int) -> None:
    lines = text_of(frame, width).splitlines()
    assert max(len(line) for line in lines) <= width
    assert lines[0].startswith("tritonsched ready")


def test_names_cannot_steer_the_terminal() -> None:
    hostile = "\x1b]0;owned\x07\x1b[2J[red]m\r\n\x9b"
    made = Panorama([hostile], [hostile], devices=1)
    made.seconds(2, per_s=50)
    frame = orjson.loads(orjson.dumps(made.frame(notices=[hostile], changes=[hostile])))
    text = text_of(frame)
    assert not {"\x1b", "\x07", "\r", "\x9b"} & set(text)
    assert plain(hostile) in text
    assert "[red]m" in text


def test_a_devices_line_marks_idle_busy_and_failed() -> None:
    runs = [["m", -2000.0, -1000.0, 1, 1, "done"], ["m", -500.0, 20.0, 1, 1, "failed"]]
    line = top_screen._line(runs, 2000.0, {"m": "red"}).plain
    assert (line.count("█"), line.count("·"), line.count("x")) == (30, 15, 15)


def test_a_frame_before_anything_happened_and_one_of_an_away_triton_are_drawn() -> None:
    made = Panorama(["m"], ["c"], devices=1)
    frame = orjson.loads(orjson.dumps(made.frame(why_not_ready="Triton is not answering")))
    assert text_of(frame).startswith("tritonsched Triton is not answering")


def test_streams_and_cut_lists_are_shown(frame: Json) -> None:
    stream = {"id": 7, "tenant": "north", "model": "m0", "device": "gpu0", "period_ms": 100.0}
    stream |= {"deadline_ms": 60.0, "frames": 20, "ends_in_s": 3.0}
    text = text_of(frame | {"reservations": {"rows": [stream], "hidden": 3}})
    assert "7 north" in text
    assert "and 3 more" in text


def test_tenants_are_shown_where_there_are_several(frame: Json) -> None:
    assert "Tenants" not in text_of(frame)
    (alone,) = frame["tenants"]["rows"]
    others = [alone | {"name": "shop", "share": 0.25, "boost": 3.5}, alone]
    text = text_of(frame | {"tenants": {"rows": others, "hidden": 0}})
    assert "1 x3.5" in text
    assert "25.0 %" in text


def test_numbers_are_short() -> None:
    assert [number(value) for value in (None, 0, 0.123456, 12.34, 1234.5)] == [
        "-", "0", "0.123", "12.3", "1,234"
    ]  # fmt: skip
    assert [percent(share) for share in (None, 0.5)] == ["-", "50.0 %"]


def test_the_terminal_has_words_for_all_that_the_page_has_words_for() -> None:
    words = (files("tritonsched.frontend") / "page" / "words.js").read_text()
    for known in (*top_screen.REFUSALS, *top_screen.WAITS):
        assert f'"{known}":' in words
    assert words.count('": "') == len(top_screen.REFUSALS) + len(top_screen.WAITS)
