"""Several servers as one HTTP port."""

import asyncio
from typing import Any

import orjson
import pytest

from tests.unit.backend.pair import LEFT, RIGHT, Pair
from tritonsched.errors import TritonUnavailable
from tritonsched.tensors import HttpReply

# -- control calls over HTTP ----------------------------------------------------------------------


async def test_http_asks_the_first_that_says_200(pair: Pair) -> None:
    pair.http[RIGHT].answers["GET", "/v2/models/m"] = {"name": "m"}
    reply = await pair.all_http.request("GET", "/v2/models/m", (), b"")
    assert orjson.loads(bytes(reply.body)) == {"name": "m"}
    assert (await pair.all_http.request("GET", "/v2/models/x", (), b"")).status == 404
    pair.http[LEFT].is_up = False
    assert (await pair.all_http.request("GET", "/v2/models/x", (), b"")).status == 404
    pair.http[RIGHT].is_up = False
    with pytest.raises(TritonUnavailable):
        await pair.all_http.request("GET", "/v2", (), b"")


async def test_http_statistics_are_sums_and_indices_are_united(pair: Pair) -> None:
    def stats(count: int, rows: int) -> dict[str, Any]:
        sized = {"batch_size": rows, "compute_infer": {"count": count, "ns": 5}}
        made = {
            "name": "m", "version": "1", "last_inference": count, "inference_count": count,
            "inference_stats": {"success": {"count": count, "ns": 7}}, "batch_stats": [sized],
            "memory_usage": [{"byte_size": 3}],
        }  # fmt: skip
        return {"model_stats": [made]}

    path = "/v2/models/m/versions/1/stats"
    pair.http[LEFT].answers["GET", path] = stats(3, 4)
    pair.http[RIGHT].answers["GET", path] = stats(5, 4)
    reply = await pair.all_http.request("GET", path, (), b"")
    (made,) = orjson.loads(bytes(reply.body))["model_stats"]
    assert (made["inference_count"], made["last_inference"]) == (8, 5)
    assert made["inference_stats"] == {"success": {"count": 8, "ns": 14}}
    assert made["batch_stats"] == [{"batch_size": 4, "compute_infer": {"count": 8, "ns": 10}}]
    assert len(made["memory_usage"]) == 2
    assert reply.headers == ()
    path = "/v2/repository/index"
    pair.http[LEFT].answers["POST", path] = [{"name": "b"}, {"name": "a", "state": "READY"}]
    pair.http[RIGHT].answers["POST", path] = [{"name": "b", "state": "READY"}, {"name": "a"}]
    index = orjson.loads(bytes((await pair.all_http.request("POST", path, (), b"")).body))
    assert index == [{"name": "a", "state": "READY"}, {"name": "b", "state": "READY"}]
    pair.http[RIGHT].answers["POST", path] = {"not": "a list"}
    reply = await pair.all_http.request("POST", path, (), b"")
    assert orjson.loads(bytes(reply.body))[0] == {"name": "b"}


@pytest.mark.parametrize(
    "path",
    [
        "/v2/repository/models/m/load",
        "/v2/repository/r/models/m/unload",
        "/v2/logging",
        "/v2/models/m/trace/setting",
    ],
)
async def test_http_changes_go_to_all(pair: Pair, path: str) -> None:
    pair.http[LEFT].answers["POST", path] = {}
    reply = await pair.all_http.request("POST", path, (), b"")
    assert orjson.loads(bytes(reply.body)) == {"error": f"server 'right': no {path}"}
    assert [h.asked for h in pair.http.values()] == [[("POST", path)]] * 2
    pair.http[RIGHT].answers["POST", path] = {}
    assert (await pair.all_http.request("POST", path, (), b"")).status == 200
    for http in pair.http.values():
        http.is_up = False
    with pytest.raises(TritonUnavailable):
        await pair.all_http.request("POST", path, (), b"")


async def test_http_regions_are_on_all_or_none_and_replayed(pair: Pair) -> None:
    path = "/v2/systemsharedmemory/region/c/register"
    back = "/v2/systemsharedmemory/region/c/unregister"
    pair.http[LEFT].answers["POST", path] = {}
    assert (await pair.all_http.request("POST", path, (), b"{}")).status == 404
    assert pair.http[LEFT].asked == [("POST", path), ("POST", back)]
    pair.http[RIGHT].answers["POST", path] = {}
    assert (await pair.all_http.request("POST", path, (), b"{}")).status == 200
    await pair.fleet.connect(RIGHT)
    assert pair.http[RIGHT].asked[-1] == ("POST", path)
    pair.http[LEFT].answers["POST", back] = pair.http[RIGHT].answers["POST", back] = {}
    assert (await pair.all_http.request("POST", back, (), b"")).status == 200
    assert len(pair.fleet.registrations) == 0


async def test_an_error_that_is_no_json_stays_as_it_is(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def plain(*_: Any) -> HttpReply:
        return HttpReply(500, "", (), b"plain")

    monkeypatch.setattr(pair.http[LEFT], "request", plain)
    reply = await pair.all_http.request("POST", "/v2/logging", (), b"")
    assert bytes(reply.body) == b"plain"


async def test_an_answer_in_pieces_comes_from_the_server_named(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    for name, http in pair.http.items():

        class Opening:
            def __init__(self, name: str) -> None:
                self._name = name

            async def __aenter__(self) -> str:
                opened.append(self._name)
                return self._name

            async def __aexit__(self, *_: object) -> None: ...

        monkeypatch.setattr(http, "stream", lambda *_, name=name: Opening(name))
    for server in (RIGHT, ""):
        async with pair.all_http.stream("POST", "/p", (), b"", server=server):
            pass
    assert opened == [RIGHT, LEFT]


async def test_both_ports_start_and_close_all(pair: Pair) -> None:
    await pair.all_http.start()
    await pair.all_http.close()
    assert pair.all_http.address == pair.all_grpc.address == "127.0.0.1:1, 127.0.0.1:1"
    heard: asyncio.Future[object] = asyncio.get_running_loop().create_future()
    pair.grpc[LEFT].send = lambda *given: given[2]("sent")  # type: ignore[method-assign]
    pair.all_grpc.send("m", b"", heard.set_result)
    assert await heard == "sent"
