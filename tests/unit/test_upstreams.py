"""Every Triton that is served from: one as it is, several together. Nobody is at their ports."""

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.unit.frontend.wires import unused_address
from tests.unit.test_sidecar import options
from tritonsched import upstreams as module
from tritonsched.backend.fleet import Fleet
from tritonsched.backend.triton import TritonBackend
from tritonsched.cli import app
from tritonsched.config.load import parse_policy
from tritonsched.config.schema import PolicyFile
from tritonsched.core.variant import ServerState
from tritonsched.errors import ConfigError
from tritonsched.options import Address
from tritonsched.upstreams import Upstreams

POLICY = """
servers:
  left: {http: "l:1", grpc: "l:2", metrics: "l:3"}
  right: {http: "r:1", grpc: "r:2", transport: inline}
"""


def test_servers_come_from_the_policy_file_or_from_the_command_line() -> None:
    policy = parse_policy(POLICY)
    assert options(policy=policy).addresses() == {
        "left": Address("l:1", "l:2", "l:3"),
        "right": Address("r:1", "r:2", None, "inline"),
    }
    given = options(policy=policy, triton_http="h:1", triton_grpc="h:2", triton_metrics="h:3")
    assert given.addresses() == {"": Address("h:1", "h:2", "h:3")}
    assert options().addresses() == {}


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("servers: {a: {http: x, grpc: 'x:1'}}", "servers.a.http"),
        ("servers: {a/b: {http: 'x:1', grpc: 'x:1'}}", "servers.a/b"),
        ("servers: {a: {http: 'x:1'}}", "servers.a.grpc"),
        ("servers: {a: {http: 'x:1', grpc: 'x:1', transport: pigeon}}", "transport"),
    ],
)
def test_a_server_that_is_written_wrong_is_told_with_its_place(text: str, what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        parse_policy(text)


async def started(stack: AsyncExitStack, names: tuple[str, ...], **transport: Any) -> Upstreams:
    address = await unused_address()
    policy = PolicyFile.model_validate({"transport": {"mode": "inline", **transport}})
    servers = {name: Address(address, address, f"{name}:3") for name in names}
    made = Upstreams(servers, policy, say=lambda _: None)
    await made.start(stack)
    return made


async def test_one_server_is_used_as_it_is_whatever_its_name() -> None:
    async with AsyncExitStack() as stack:
        made = await started(stack, ("only",))
        assert isinstance(made.backend, TritonBackend)
        assert (made.names, made.is_fleet) == (("",), False)
        made.watch(connect=_never, tell=lambda *_: None, changed=lambda: None)
        assert made.notices() == ()
        (state,) = made.states()
        assert (state["server"], state["state"], state["version"]) == ("", "away", "")


async def _never(_: str) -> None:
    raise AssertionError("nobody is there to be connected to")


async def test_several_are_joined_and_each_is_watched_by_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[tuple[str, ServerState]] = []
    connected: list[str] = []
    async with AsyncExitStack() as stack:
        made = await started(stack, ("left", "right"))
        assert isinstance(made.backend, Fleet)

        async def connect(server: str) -> None:
            connected.append(server)
            made.members.put(server, up=True)

        made.watch(
            connect=connect,
            tell=lambda state, name: told.append((name, state)),
            changed=lambda: None,
        )

        async def up() -> bool:
            return True

        monkeypatch.setattr(made._healths["right"], "_ready", up)
        running = asyncio.ensure_future(made.run())
        await made.wait_up()
        assert (connected, list(made.members)) == (["right"], ["right"])
        assert [made.is_server_up(name) for name in made.names] == [False, True]
        assert made.is_up
        assert made.notices() == ("server 'left' does not answer; others serve",)
        assert [state["state"] for state in made.states()] == ["away", "up"]
        assert made.metrics_addresses() == {"left": "left:3", "right": "right:3"}
        made.stop()
        made.lost("right")
        assert told == [("right", ServerState.READY), ("right", ServerState.AWAY)]
        assert list(made.members) == []
        made.lost()
        assert not made.is_up
        await running


@pytest.mark.parametrize(
    ("names", "given", "pools"),
    [(("a",), None, [None]), (("a", "b"), None, [50, 50]), (("a", "b"), 1, [1 << 20, 1 << 20])],
)
async def test_pools_take_no_more_memory_together_than_one_would(
    monkeypatch: pytest.MonkeyPatch,
    names: tuple[str, ...],
    given: int | None,
    pools: list[int | None],
) -> None:
    asked: list[int | None] = []

    class Noting(TritonBackend):
        def __init__(self, *args: Any, pool_bytes: int | None, **fields: Any) -> None:
            asked.append(pool_bytes)
            super().__init__(*args, **fields)

    monkeypatch.setattr(module, "TritonBackend", Noting)
    monkeypatch.setattr(module, "default_bytes", lambda: 100)
    async with AsyncExitStack() as stack:
        await started(stack, names, pool_mib=given)
    assert asked == pools


def test_the_command_line_and_the_policy_file_do_not_both_name_servers(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(POLICY)
    arguments = ["serve", "--policy", str(path), "--triton-http", "h:1", "--triton-grpc", "h:2"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert "the policy file names servers" in result.stderr
