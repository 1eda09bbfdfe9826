"""The compose files: the schema, and what the schema does not know. No docker engine is needed."""

import re
from typing import Any

import jsonschema  # type: ignore[import-untyped]  # no types
import pytest
import typer.main
import yaml
from check_jsonschema.builtin_schemas import (  # type: ignore[import-untyped]  # no types
    get_builtin_schema,
)

from tests.deploy.compose import BASE, CPU, ROOT, load
from tests.deploy.dockerfile import instructions
from tritonsched.cli import app
from tritonsched.config.load import load_policy

FILES = {"gpu": (BASE,), "cpu": (BASE, CPU)}
SERVICES = ("triton", "tritonsched", "prometheus", "grafana")
# What each image carries that a health check or a command may call, and where that is known from.
PROGRAMS = {
    "triton": {"curl", "tritonserver"},  # NVIDIA's image; its own health check documentation
    "tritonsched": {"python", "tritonsched"},  # deploy/Dockerfile
    "prometheus": {"wget", "prometheus"},  # busybox, by the Prometheus authors' Dockerfile
    "grafana": {"wget"},  # busybox of Alpine, Grafana's base image
}
_SECONDS = re.compile(r"(\d+)s")


@pytest.fixture(params=FILES)
def compose(request: pytest.FixtureRequest) -> dict[str, Any]:
    return load(*FILES[request.param])


def service(compose: dict[str, Any], name: str) -> dict[str, Any]:
    found = compose["services"][name]
    assert isinstance(found, dict)
    return found


def seconds(text: str) -> int:
    match = _SECONDS.fullmatch(text)
    assert match, text
    return int(match.group(1))


def faults(compose: dict[str, Any]) -> list[str]:
    """What the compose specification's own schema has against it."""
    schema = get_builtin_schema("vendor.compose-spec")
    judge = jsonschema.validators.validator_for(schema)(schema)
    return [error.message for error in judge.iter_errors(compose)]


def test_the_compose_files_are_what_the_specification_says(compose: dict[str, Any]) -> None:
    assert faults(compose) == []


def test_the_schema_finds_a_mistyped_key() -> None:
    """The validator is real: with one letter more it refuses."""
    mistyped = load(BASE)
    mistyped["services"]["triton"]["healthcheck"]["intervall"] = "5s"
    assert any("intervall" in fault for fault in faults(mistyped))


def test_only_the_base_asks_for_a_gpu_and_both_for_the_same() -> None:
    """Batches lie in memory that Triton and the sidecar both see."""
    for name in ("triton", "tritonsched"):
        devices = service(load(BASE), name)["deploy"]["resources"]["reservations"]["devices"]
        assert devices == [{"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}]
        assert "deploy" not in service(load(BASE, CPU), name)
    assert load(BASE, CPU)["services"].keys() == set(SERVICES)


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_confined_pinned_and_watched(compose: dict[str, Any], name: str) -> None:
    """Read-only root, a user that is not root, no capabilities, no newest image, a bounded log."""
    this = service(compose, name)
    user, _ = this["user"].split(":")
    assert user.isdigit()
    assert int(user) > 0
    assert this["read_only"] is True
    assert this["cap_drop"] == ["ALL"]
    assert this["security_opt"] == ["no-new-privileges:true"]
    assert not {"privileged", "cap_add", "devices"} & this.keys()
    tag = this["image"].rpartition(":")[2]
    assert re.fullmatch(r"v?\d+(\.\d+)+", tag), tag
    assert this["logging"]["options"]["max-size"]
    assert name == "tritonsched" or this["healthcheck"]["test"][0] == "CMD"


def test_health_checks_and_commands_call_programs_that_their_images_carry(
    compose: dict[str, Any],
) -> None:
    for name in SERVICES:
        this = service(compose, name)
        called = [this["healthcheck"]["test"][1]] if "healthcheck" in this else []
        if "command" in this and not this["command"][0].startswith("-"):
            called.append(this["command"][0])
        assert set(called) <= PROGRAMS[name]


def test_the_sidecar_and_triton_share_memory_processes_and_user(compose: dict[str, Any]) -> None:
    """Regions are 0600 and live in the namespace of whoever made them."""
    triton, sidecar = service(compose, "triton"), service(compose, "tritonsched")
    assert triton["ipc"] == "shareable"
    assert sidecar["ipc"] == sidecar["pid"] == "service:triton"
    assert sidecar["user"] == triton["user"]
    assert triton["shm_size"] == "1g"


def test_triton_is_reached_through_the_sidecar_alone(compose: dict[str, Any]) -> None:
    """One internal network holds the two; Triton publishes nothing."""
    networks = {name: set(service(compose, name)["networks"]) for name in SERVICES}
    inside = {name for name, joined in networks.items() if "inside" in joined}
    assert inside == {"triton", "tritonsched"}
    assert networks["triton"] == {"inside"}
    assert compose["networks"]["inside"] == {"internal": True}
    assert "ports" not in service(compose, "triton")


def test_what_is_for_operators_is_published_on_loopback_alone(compose: dict[str, Any]) -> None:
    published = [port for name in SERVICES for port in service(compose, name).get("ports", [])]
    assert {p for p in published if not p.startswith("127.0.0.1:")} == {"8000:8000", "8001:8001"}
    hosts = [port.split(":")[-2] for port in published]
    assert len(hosts) == len(set(hosts))


def test_stopping_leaves_time_to_drain(compose: dict[str, Any]) -> None:
    """The sidecar is stopped first, because it depends on Triton; each gets enough."""
    triton, sidecar = service(compose, "triton"), service(compose, "tritonsched")
    assert sidecar["depends_on"] == {"triton": {"condition": "service_healthy", "restart": True}}
    (exit_timeout,) = [a for a in triton["command"] if a.startswith("--exit-timeout-secs=")]
    assert seconds(triton["stop_grace_period"]) > int(exit_timeout.partition("=")[2])
    serve = typer.main.get_command(app).commands["serve"]  # type: ignore[attr-defined]  # a group
    (drain_s,) = [option.default for option in serve.params if option.name == "drain_s"]
    assert seconds(sidecar["stop_grace_period"]) > drain_s


def test_what_is_mounted_exists_and_volumes_are_declared(compose: dict[str, Any]) -> None:
    for name in SERVICES:
        for volume in service(compose, name).get("volumes", []):
            source = volume.split(":")[0]
            if source.startswith("./"):
                assert (ROOT / source).is_dir(), volume
                assert volume.endswith(":ro")
            else:
                assert source in compose["volumes"]


def test_the_policy_named_by_default_is_in_the_mounted_directory(compose: dict[str, Any]) -> None:
    sidecar = service(compose, "tritonsched")
    (volume,) = sidecar["volumes"]
    source, target, _ = volume.split(":")
    name = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", sidecar["environment"]["TRITONSCHED_POLICY"])
    assert name.startswith(f"{target}/")
    load_policy(ROOT / source / name.removeprefix(f"{target}/"))


def test_addresses_name_services_and_the_ports_that_they_listen_on(compose: dict[str, Any]) -> None:
    """The sidecar's Triton, Prometheus' sidecar, Grafana's Prometheus."""
    sidecar = service(compose, "tritonsched")
    triton = {k: v for k, v in sidecar["environment"].items() if "_TRITON_" in k}
    assert triton == {
        "TRITONSCHED_TRITON_HTTP": "triton:8000",
        "TRITONSCHED_TRITON_GRPC": "triton:8001",
        "TRITONSCHED_TRITON_METRICS": "triton:8002",
    }
    scrapes = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    targets = scrapes["scrape_configs"][0]["static_configs"][0]["targets"]
    assert targets == ["tritonsched:8002"]
    grafana = ROOT / "deploy/grafana/provisioning/datasources/prometheus.yaml"
    (source,) = yaml.safe_load(grafana.read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    assert source["jsonData"]["timeInterval"] == scrapes["global"]["scrape_interval"]


def test_what_is_built_is_named_by_a_dockerfile_whose_user_is_the_services(
    compose: dict[str, Any],
) -> None:
    for name in ("triton", "tritonsched"):
        this = service(compose, name)
        users = [
            i.text for i in instructions(ROOT / this["build"]["dockerfile"]) if i.word == "USER"
        ]
        assert users == [this["user"]]
