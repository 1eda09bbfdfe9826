"""The rules: what each refuses and what not, for which releases, and what the client hears."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import pytest
from tritonclient.grpc import service_pb2 as pb

from tests.unit.proxy.calls import ECHO, call
from tritonsched.backend.catalogue import ModelInfo, TensorInfo
from tritonsched.config.schema import ShieldRule
from tritonsched.errors import Shielded, ShieldedLoad
from tritonsched.proxy import shield
from tritonsched.proxy.asked import Asked, asked_of
from tritonsched.proxy.client_regions import ClientRegions
from tritonsched.proxy.shield import (
    DEPTH_MAX,
    RULES,
    Document,
    Infer,
    Load,
    Register,
    Shield,
    Strict,
    Use,
    release_of,
)
from tritonsched.tensors import Wire

NUMBERS = {"NUMBER": TensorInfo("NUMBER", "FP32", (-1,)), "OTHER": TensorInfo("OTHER", "FP32", ())}
TEXTS = {**NUMBERS, "TEXT": TensorInfo("TEXT", "BYTES", (-1,))}
HUGE = {"name": "I", "datatype": "FP32", "shape": [1, 1 << 40], "data": [1]}
Subject = Infer | Document | Load | Register | Use | Strict


def infer(found: dict[str, TensorInfo] | None, **head: Any) -> Infer:
    """found: the model's outputs; None: Triton does not serve it."""
    asked = asked_of(call(wire=Wire.HTTP, raw=json.dumps(head).encode()))
    return Infer(asked, None if found is None else replace(ECHO, outputs=found))


def over_grpc(outputs: dict[str, TensorInfo], output: str, **parameters: int | str) -> Infer:
    request = pb.ModelInferRequest()
    added = request.outputs.add(name=output)
    for name, value in parameters.items():
        kind = "string_param" if isinstance(value, str) else "int64_param"
        setattr(added.parameters[name], kind, value)
    asked: Asked = asked_of(call(raw=request.SerializeToString()))
    return Infer(asked, replace(ECHO, outputs=outputs))


def as_classes(name: str) -> dict[str, Any]:
    return {"outputs": [{"name": name, "parameters": {"classification": 1}}]}


@dataclass(frozen=True)
class Region:
    is_whole: bool


def used(*, is_whole: bool) -> Use:
    return Use({"a": Region(is_whole)})  # type: ignore[dict-item]  # what the rule looks at


EMPTY = {"inputs": [{"name": "I", "shape": [1, 0], "data": []}]}
UNREADABLE = Infer(
    asked_of(call(wire=Wire.HTTP, raw=b'{"classification":1')), replace(ECHO, outputs=TEXTS)
)
HARMFUL: list[tuple[str, Subject]] = [
    ("class-of-text", infer(TEXTS, **as_classes("TEXT"))),
    ("class-of-text", over_grpc(TEXTS, "TEXT", classification=1)),
    ("class-of-text", UNREADABLE),
    ("class-of-nothing", infer(NUMBERS, **EMPTY, **as_classes("NUMBER"))),
    ("file-name", Load("m", ("1/model.py", "x" * 256))),
    ("file-name", Load("m", ("1/" + "é" * 128,))),
    ("file-name", Load("m", ("y/" * 2000,))),
    ("json-depth", Document(DEPTH_MAX + 1)),
    ("json-shape", infer(None, inputs=[HUGE])),
    ("json-unread", infer(NUMBERS, x=[{"shape": [1]}] * 8193)),
    ("place-wraps", infer(None, x={"shared_memory_byte_size": (1 << 64) - 4080})),
    ("place-wraps", over_grpc({}, "O", shared_memory_region="r", shared_memory_byte_size=-1)),
    ("region-offset", Register("a", (0, 4096))),
    ("shrunk-region", used(is_whole=False)),
    ("strict-stream", Strict()),
]
HARMLESS: list[Subject] = [
    infer(TEXTS, **as_classes("NUMBER")),
    infer(NUMBERS, **as_classes("TEXT")),
    infer(None, **as_classes("TEXT")),
    infer(TEXTS, outputs=[{"name": "TEXT"}]),
    infer(NUMBERS, **EMPTY),
    over_grpc(TEXTS, "NUMBER", classification=1),
    over_grpc(TEXTS, "TEXT", shared_memory_region="r", shared_memory_byte_size=8),
    infer(None, inputs=[{**HUGE, "shape": [1, 2]}], x={"shared_memory_offset": 4096}),
    Load("m" * 300, ("1/model.py", "x" * 255)),
    Load("m", ()),
    Document(DEPTH_MAX),
    Register("a", (0,)),
    Register("a", ()),
    used(is_whole=True),
]
IDS = [f"{index} {name}" for index, (name, _) in enumerate(HARMFUL)]


@pytest.mark.parametrize(("name", "subject"), HARMFUL, ids=IDS)
def test_a_harmful_request_is_refused_by_its_rule(name: str, subject: Subject) -> None:
    heard: list[str] = []
    with pytest.raises(Shielded, match=f"shield rule '{name}'") as caught:
        Shield(heard.append).require(subject)
    assert heard == [name]
    fixed = RULES[name].fixed
    mended = f"Triton {fixed[0]}.{fixed[1]}" if fixed else "no release"
    assert f"mended in {mended})" in str(caught.value)


@pytest.mark.parametrize("subject", HARMLESS)
def test_a_harmless_one_goes_on(subject: Subject) -> None:
    heard: list[str] = []
    Shield(heard.append).require(subject)
    assert heard == []


@pytest.mark.parametrize(("name", "subject"), HARMFUL, ids=IDS)
def test_allowed_or_switched_off_a_rule_lets_through(name: str, subject: Subject) -> None:
    made = Shield()
    for enabled, allow in ((True, [name]), (False, [])):
        made.adopt(enabled=enabled, allow=allow, guard_regions=True)
        assert not made.holds(name)
        made.require(subject)
    made.adopt(enabled=True, allow=[], guard_regions=True)
    with pytest.raises(Shielded):
        made.require(subject)


@pytest.mark.parametrize(("name", "subject"), HARMFUL, ids=IDS)
def test_a_release_that_bears_it_gets_it(name: str, subject: Subject) -> None:
    made = Shield()
    major, minor = RULES[name].fixed or (99, 0)
    made.connected(f"{major}.{minor - 1}.7")
    assert made.holds(name)
    for version in ("", "unknown", "2", "2.x"):
        made.connected(version)
        assert made.holds(name)
    made.connected(f"{major}.{minor}.0")
    assert made.holds(name) == (RULES[name].fixed is None)
    if not made.holds(name):
        made.require(subject)


def test_every_rule_is_tried_named_in_the_policy_file_and_in_the_table() -> None:
    assert {name for name, _ in HARMFUL} == set(RULES) == set(get_args(ShieldRule))
    rows = [line.split("|") for line in (shield.__doc__ or "").splitlines() if "| `" in line]
    described = {row[1].strip(" `"): row[4].strip() for row in rows}
    fixed = {name: rule.fixed for name, rule in RULES.items()}
    assert described == {n: "-" if f is None else f"{f[0]}.{f[1]}" for n, f in fixed.items()}


def test_a_load_fails_in_the_words_and_with_the_status_of_later_releases() -> None:
    """NVIDIA's own example looks for them."""
    with pytest.raises(ShieldedLoad) as caught:
        Shield().require(Load("simple", ("A" * 256,)))
    start = "failed to load 'simple', failed to poll from model repository: "
    assert str(caught.value).startswith(start)
    assert (caught.value.http_status, caught.value.grpc_code) == (500, "INTERNAL")
    assert caught.value.reason == "shielded"


def test_a_registration_says_of_which_region() -> None:
    with pytest.raises(Shielded, match=r"^failed to register shared memory region 'a': "):
        Shield().require(Register("a", (4096,)))


def test_a_region_that_really_shrank_is_seen(tmp_path: Path) -> None:
    regions = ClientRegions(is_local=lambda: True, directory=tmp_path)
    (tmp_path / "r").write_bytes(bytes(32))
    regions.registered("a", "/r", 0, 32)
    made = Shield()
    made.require(Use(regions.named({"a"})))
    (tmp_path / "r").write_bytes(b"")
    with pytest.raises(Shielded, match="register it again"):
        made.require(Use(regions.named({"a"})))


def test_the_guard_follows_the_policy_file() -> None:
    made = Shield()
    made.adopt(enabled=False, allow=[], guard_regions=True)
    assert made.guard.enabled
    made.adopt(enabled=True, allow=[], guard_regions=False)
    assert not made.guard.enabled


@pytest.mark.parametrize(
    ("version", "release"),
    [("2.51.0", (2, 51)), ("2.69", (2, 69)), ("3.0dev", (3, 0)), ("", None), ("r25.07", None)],
)
def test_a_release_is_read_from_a_version(version: str, release: tuple[int, int] | None) -> None:
    assert release_of(version) == release


def test_a_model_that_is_not_served_has_no_texts() -> None:
    assert isinstance(ECHO, ModelInfo)
    Shield().require(over_grpc({}, "TEXT", classification=1))
