"""The page's files as they are served: whole, typed, and forbidding everything from elsewhere."""

import re

import pytest

from tests.unit.frontend.http_client import Reply, connected
from tests.unit.frontend.test_admin_server import View
from tests.unit.frontend.wires import HOST
from tritonsched.frontend.admin_events import Audience
from tritonsched.frontend.admin_page import FILES, POLICY
from tritonsched.frontend.admin_server import AdminServer


async def get(*paths: str) -> list[Reply]:
    server = AdminServer(View(), host=HOST, port=0, audience=Audience())
    await server.start()
    replies = []
    try:
        async with connected(server.port) as client:
            for path in paths:
                client.ask("GET", path, "Host: x")
                replies.append(await client.reply())
    finally:
        await server.stop()
    return replies


async def test_every_file_is_served_with_its_type_and_the_policy() -> None:
    for (name, content_type), reply in zip(FILES.values(), await get(*FILES), strict=True):
        assert (reply.status, len(reply.body) > 0) == (200, True), name
        assert reply.headers["content-type"] == f"{content_type}; charset=utf-8"
        assert reply.headers["content-security-policy"] == POLICY
        assert reply.headers["x-content-type-options"] == "nosniff"


def test_the_policy_allows_this_servers_own_files_and_nothing_else() -> None:
    sources = dict(part.split(" ", 1) for part in POLICY.split("; "))
    assert sources["default-src"] == "'none'"
    for name, value in sources.items():
        assert value in ("'none'", "'self'", "'script'"), name


async def test_the_page_names_no_other_server_and_holds_no_code_of_its_own() -> None:
    (page,) = await get("/")
    text = page.body.decode()
    for target in re.findall(r'(?:src|href)="([^"]*)"', text):
        assert target in FILES, target
    assert not re.search(r"\son\w+=|\sstyle=|<style|<script>|javascript:", text)


@pytest.mark.parametrize("path", [path for path in FILES if path.endswith(".js")])
async def test_our_own_code_never_makes_markup_of_text_and_imports_only_itself(path: str) -> None:
    (reply,) = await get(path)
    text = reply.body.decode()
    for way in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
        assert way not in text
    for target in re.findall(r'from "([^"]+)"', text):
        assert f"/page/{target.removeprefix('./')}" in FILES


async def test_the_borrowed_library_is_named_with_its_licence() -> None:
    code, licence = await get("/page/uPlot.js", "/page/uPlot.LICENSE")
    assert code.body.startswith(b"/*! https://github.com/leeoniya/uPlot (v1.6.32) */")
    assert b"The MIT License" in licence.body


async def test_there_are_no_other_files() -> None:
    replies = await get("/page/", "/page/../admin_page.py", "/page/index.html", "/favicon.ico")
    assert {reply.status for reply in replies} == {404}
