"""A headless Chromium for tests, driven over the DevTools protocol. Rule: one browser, a page a
test, waited for by what the page shows and never by time.

Source: chromedevtools.github.io/devtools-protocol; the browser says its address on stderr.
"""

import asyncio
import base64
import contextlib
import itertools
import json
import os
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

NEEDED = "chromium is not installed; on Debian or Ubuntu: apt install chromium"
MESSAGE_BYTES_MAX = 64 * 1024 * 1024
STARTED = b"DevTools listening on "
FLAGS = (
    "--headless", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--hide-scrollbars",
    "--disable-extensions", "--disable-background-networking", "--disable-component-update",
    "--remote-debugging-port=0",
)  # fmt: skip
# Resolves when the expression is true, asked again whenever the document changes.
UNTIL = """new Promise((done) => {{
  const look = () => ({condition});
  if (look()) return done(true);
  const options = {{ subtree: true, childList: true, characterData: true, attributes: true }};
  const watch = new MutationObserver(() => look() && (watch.disconnect(), done(true)));
  watch.observe(document, options);
}})"""


@dataclass(slots=True)
class Tab:
    """One page. said: its console lines and faults. blocked: what its policy forbade."""

    browser: "Browser"
    session: str
    said: list[str] = field(default_factory=list)
    blocked: list[str] = field(default_factory=list)

    async def call(self, method: str, **fields: Any) -> dict[str, Any]:
        return await self.browser.call(method, session=self.session, **fields)

    async def open(self, url: str) -> None:
        reply = await self.call("Page.navigate", url=url)
        assert "errorText" not in reply, reply

    async def evaluate(self, expression: str) -> Any:
        """The value of an expression in the page, awaited. Raises AssertionError with its error."""
        how = {"awaitPromise": True, "returnByValue": True, "allowUnsafeEvalBlockedByCSP": False}
        reply = await self.call("Runtime.evaluate", expression=expression, **how)
        assert "exceptionDetails" not in reply, reply["exceptionDetails"]
        return reply["result"].get("value")

    async def until(self, condition: str) -> None:
        """Wait until a JavaScript condition about the document holds."""
        async with asyncio.timeout(30):
            await self.evaluate(UNTIL.format(condition=condition))

    async def look(self, *, width: int, height: int, dark: bool = False) -> None:
        """The window's size and the system's colour scheme."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        await self.call("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.call("Emulation.setEmulatedMedia", features=[scheme])

    async def screenshot(self) -> bytes:
        """The whole page as PNG, longer than the window if it is."""
        reply = await self.call("Page.captureScreenshot", captureBeyondViewport=True)
        return base64.b64decode(reply["data"])

    def hear(self, method: str, params: dict[str, Any]) -> None:
        match method:
            case "Runtime.exceptionThrown":
                self.said.append(json.dumps(params["exceptionDetails"]))
            case "Runtime.consoleAPICalled" if params["type"] in ("error", "warning", "assert"):
                self.said.append(json.dumps(params["args"]))
            case "Log.entryAdded":
                self.blocked.append(str(params["entry"]["text"]))
            case _:
                pass


class Browser:
    """A running browser: commands with their answers, events to their tabs."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._ids = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._tabs: dict[str, Tab] = {}

    async def call(self, method: str, *, session: str = "", **fields: Any) -> dict[str, Any]:
        number = next(self._ids)
        message = {"id": number, "method": method, "params": fields}
        self._waiting[number] = asyncio.get_running_loop().create_future()
        await self._socket.send_json(message | ({"sessionId": session} if session else {}))
        return await self._waiting[number]

    async def hear(self) -> None:
        """Read what the browser says until it says no more."""
        async for raw in self._socket:
            message = json.loads(raw.data)
            waiting = self._waiting.pop(message.get("id"), None)
            if waiting is not None and not waiting.done():
                waiting.set_result(message.get("result", message))
            elif message.get("sessionId") in self._tabs:
                self._tabs[message["sessionId"]].hear(message["method"], message["params"])

    @contextlib.asynccontextmanager
    async def tab(self) -> AsyncIterator[Tab]:
        """A page in a context of its own."""
        context = (await self.call("Target.createBrowserContext"))["browserContextId"]
        where = {"url": "about:blank", "browserContextId": context}
        target = (await self.call("Target.createTarget", **where))["targetId"]
        reply = await self.call("Target.attachToTarget", targetId=target, flatten=True)
        tab = self._tabs[reply["sessionId"]] = Tab(self, reply["sessionId"])
        try:
            for domain in ("Page", "Runtime", "Log"):
                await tab.call(f"{domain}.enable")
            yield tab
        finally:
            del self._tabs[tab.session]
            await self.call("Target.disposeBrowserContext", browserContextId=context)


@contextlib.asynccontextmanager
async def running_browser(folder: Path) -> AsyncIterator[Browser]:
    """Chromium with its profile in `folder`. Raises RuntimeError with the line to type without."""
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        raise RuntimeError(NEEDED)
    as_root = ("--no-sandbox",) if os.geteuid() == 0 else ()
    process = await asyncio.create_subprocess_exec(
        program, *FLAGS, *as_root, f"--user-data-dir={folder}",
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stderr is not None
        async with asyncio.timeout(60):
            line = b""
            while not line.startswith(STARTED):
                line = await process.stderr.readline()
                assert line, "the browser ended before it listened"
        url = line.removeprefix(STARTED).decode().strip()
        draining = asyncio.ensure_future(process.stderr.read())
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(url, max_msg_size=MESSAGE_BYTES_MAX) as socket,
        ):
            browser = Browser(socket)
            hearing = asyncio.ensure_future(browser.hear())
            yield browser
            await browser.call("Browser.close")
            await hearing
        await draining
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        await process.wait()
