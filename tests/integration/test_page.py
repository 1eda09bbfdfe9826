"""The page in a real browser: everything is shown, nothing from elsewhere runs."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator

import aiohttp
import orjson
import pytest

from tests.integration.browser import Browser, Tab, running_browser
from tests.integration.sidecars import HOST, http_url
from tests.integration.test_bad_input import body, post
from tests.unit.frontend.test_admin_server import View
from tests.unit.frontend.wires import raw_http
from tests.unit.proxy.panorama import Panorama
from tritonsched.core.request import Tenant
from tritonsched.frontend.admin_events import Audience
from tritonsched.frontend.admin_server import AdminServer
from tritonsched.sidecar import Sidecar

MODELS = [f"model_{number:02}" for number in range(16)]
TENANTS = ["lab", "shop"]
CLASSES = [f"background_{number}" for number in range(10)]
HOSTILE = ("<script>window.hit = 1</script>", "<img src=/x onerror='window.hit = 1'>")
SHOWN = "document.querySelectorAll('#models tbody tr').length > 0"
OVER = "document.documentElement.scrollWidth - innerWidth"
TEXTS = "[...document.querySelectorAll('{0}')].map((one) => one.textContent)"


@pytest.fixture(scope="module")
async def browser(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Browser]:
    async with running_browser(tmp_path_factory.mktemp("browser")) as made:
        yield made


@pytest.fixture(scope="module")
def busy() -> bytes:
    """A frame of 16 models, 10 classes and 4 devices under overload."""
    made = Panorama(MODELS, CLASSES, tenants=[Tenant(name) for name in TENANTS])
    made.seconds(2, per_s=1800)
    return orjson.dumps(made.frame())


@contextlib.asynccontextmanager
async def page(browser: Browser, frame: bytes, token: str | None = None) -> AsyncIterator[Tab]:
    """The page, on a server that gives this frame to whoever listens."""
    audience = Audience()
    server = AdminServer(View(), host=HOST, port=0, audience=audience, token=token)
    join = audience.join

    def joined():  # type: ignore[no-untyped-def]  # what `join` returns
        listener = join()
        audience.give(frame)
        return listener

    audience.join = joined  # type: ignore[method-assign]
    await server.start()
    try:
        async with browser.tab() as tab:
            await tab.look(width=1280, height=900)
            await tab.open(f"http://{HOST}:{server.port}/")
            yield tab
    finally:
        await server.stop()


async def texts(tab: Tab, selector: str) -> list[str]:
    found: list[str] = await tab.evaluate(TEXTS.format(selector))
    return found


async def painted(tab: Tab) -> list[bool]:
    """Whether each canvas has anything on it."""
    found: list[bool] = await tab.evaluate(
        """[...document.querySelectorAll("canvas")].map((one) =>
          one.getContext("2d").getImageData(0, 0, one.width, one.height).data.some(Boolean))"""
    )
    return found


async def test_sixteen_models_and_ten_classes_are_shown_whole_and_without_a_fault(
    browser: Browser, busy: bytes
) -> None:
    frame = json.loads(busy)
    async with page(browser, busy) as tab:
        await tab.until(SHOWN)
        assert await texts(tab, "#models tbody td:first-child") == MODELS
        assert await texts(tab, "#classes tbody td:first-child") == CLASSES
        assert await texts(tab, "#tenants tbody td:first-child") == TENANTS
        assert await texts(tab, "#devices .device span:first-child") == [
            "gpu0", "gpu1", "gpu2", "gpu3"
        ]  # fmt: skip
        assert len(await texts(tab, "#refusals tbody tr")) == len(frame["refusals"]["rows"]) > 0
        assert len(await texts(tab, "#waits tbody tr")) == len(frame["waits"]) > 0
        assert await painted(tab) == [True] * 8  # four charts, four devices
        served = f"{frame['totals']['since_start']['served']:,}"
        assert served in await texts(tab, ".total b")
        assert await texts(tab, "#state") == ["ready"]
        for selector in ("#classes", "#models", "#tenants", "#waits", "#refusals"):
            wide = f"document.querySelector('{selector}').parentElement"
            assert await tab.evaluate(f"{wide}.scrollWidth - {wide}.clientWidth") == 0, selector
        assert tab.said == tab.blocked == []


async def test_it_fits_a_narrow_window_and_follows_the_colour_scheme(
    browser: Browser, busy: bytes
) -> None:
    async with page(browser, busy) as tab:
        await tab.until(SHOWN)
        background = "getComputedStyle(document.body).backgroundColor"
        assert await tab.evaluate(OVER) == 0
        light = await tab.evaluate(background)
        await tab.look(width=400, height=800, dark=True)
        await tab.until(f"{OVER} === 0")  # the charts follow a moment later
        assert await tab.evaluate(background) != light
        assert (await tab.screenshot()).startswith(b"\x89PNG")


async def test_a_name_that_is_markup_is_shown_as_it_is_and_does_not_run(browser: Browser) -> None:
    made = Panorama([*HOSTILE], [*HOSTILE], devices=1)
    made.seconds(2, per_s=50)
    async with page(browser, orjson.dumps(made.frame(notices=HOSTILE, changes=HOSTILE))) as tab:
        await tab.until(SHOWN)
        assert sorted(await texts(tab, "#models tbody td:first-child")) == sorted(HOSTILE)
        assert sorted(await texts(tab, "#classes tbody td:first-child")) == sorted(HOSTILE)
        assert sorted(await texts(tab, "#changes li")) == sorted(HOSTILE)
        assert sorted(await texts(tab, "#notices li")) == sorted(HOSTILE)
        assert await tab.evaluate("window.hit ?? 'no'") == "no"
        assert tab.said == tab.blocked == []


FROM_ELSEWHERE = {
    "script-src-elem": "import(url).catch(() => null)",
    "img-src": "document.body.append(Object.assign(new Image(), { src: url }))",
    "connect-src": "fetch(url).catch(() => null)",
    "style-src-elem": """document.head.append(Object.assign(
        document.createElement("link"), { rel: "stylesheet", href: url }))""",
    "frame-src": """document.body.append(Object.assign(
        document.createElement("iframe"), { src: url }))""",
}
FORBIDDEN = """new Promise((done) => {{
  const url = "{url}";
  const heard = (event) => done(event.effectiveDirective);
  addEventListener("securitypolicyviolation", heard, {{ once: true }});
  {action};
}})"""
AS_CODE = (
    'document.createElement("script").src = url',
    'document.createElement("script").textContent = "window.hit = 1"',
    'document.body.innerHTML = "<b>x</b>"',
    'eval("window.hit = 1")',
    'setTimeout("window.hit = 1")',
)
TRIED = """(() => {{
  const url = "{url}";
  try {{ {action}; return "done" }} catch (error) {{ return error.name }}
}})()"""


async def test_nothing_is_asked_of_another_server_and_no_text_becomes_a_script(
    browser: Browser, busy: bytes
) -> None:
    async def answer(_: bytes, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async with raw_http(answer) as other, page(browser, busy) as tab:
        await tab.until(SHOWN)
        url = f"http://{other.address}/x"
        for directive, action in FROM_ELSEWHERE.items():
            told = await tab.evaluate(FORBIDDEN.format(url=url, action=action))
            assert told == directive
        for action in AS_CODE:
            name = await tab.evaluate(TRIED.format(url=url, action=action))
            assert name in ("TypeError", "EvalError"), action
        assert await tab.evaluate("window.hit ?? 'no'") == "no"
        assert other.seen == []
        assert len(tab.blocked) >= len(FROM_ELSEWHERE)


async def test_the_token_is_asked_for_and_opens_the_page(browser: Browser, busy: bytes) -> None:
    async with page(browser, busy, token="secret") as tab:
        await tab.until("document.querySelector('#access-why')?.textContent.includes('TOKEN')")
        assert await texts(tab, "#models tbody tr") == []
        await tab.evaluate("document.querySelector('#token').value = 'secret'")
        await tab.evaluate("document.querySelector('#access button').click()")
        await tab.until(SHOWN)
        assert await tab.evaluate("document.querySelector('#access').hidden") is True


async def test_the_page_of_a_real_sidecar_shows_a_request_that_was_served(
    browser: Browser, sidecar: Sidecar
) -> None:
    async with aiohttp.ClientSession() as session:
        headers, data = body()
        status, _, _ = await post(session, http_url(sidecar), "echo", headers, data)
        assert status == 200
    async with browser.tab() as tab:
        await tab.open(f"http://{HOST}:{sidecar.admin_server.port}/")
        await tab.until(SHOWN)
        assert "echo" in await texts(tab, "#models tbody td:first-child")
        assert await texts(tab, "#state") == ["ready"]
        assert tab.said == tab.blocked == []
