"""The Kubernetes manifests: the API's own schemas, and what a schema does not know."""

from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]  # it carries no types
import pytest
import typer.main
import yaml

from tests.deploy.compose import ROOT
from tritonsched.cli import app
from tritonsched.config.load import parse_policy

DIRECTORY = ROOT / "deploy" / "kubernetes"
OLDEST = "1.33"  # the first in which an init container that goes on is not a preview
VERSIONS = (OLDEST, kubernetes_validate.latest_version())
MANIFESTS = sorted(DIRECTORY.glob("*.yaml"))


def manifest(name: str) -> dict[str, Any]:
    found = yaml.safe_load((DIRECTORY / f"{name}.yaml").read_text())
    assert isinstance(found, dict)
    return found


def pod() -> dict[str, Any]:
    found = manifest("deployment")["spec"]["template"]["spec"]
    assert isinstance(found, dict)
    return found


def containers() -> tuple[dict[str, Any], dict[str, Any]]:
    """Triton and the scheduler."""
    (triton,), (sidecar,) = pod()["initContainers"], pod()["containers"]
    return triton, sidecar


def mounts(container: dict[str, Any]) -> dict[str, str]:
    """Volume by mount path."""
    return {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}


@pytest.mark.parametrize("version", VERSIONS)
def test_the_manifests_are_what_the_api_takes_and_nothing_is_mistyped(version: str) -> None:
    for path in MANIFESTS:
        if path.stem != "kustomization":
            found = yaml.safe_load(path.read_text())
            kubernetes_validate.validate(found, version, strict=True)


def test_the_schema_finds_a_mistyped_key() -> None:
    """The validator is real: one letter less and it refuses."""
    broken = manifest("deployment")
    (triton,) = broken["spec"]["template"]["spec"]["initContainers"]
    triton["restartPolcy"] = triton.pop("restartPolicy")
    with pytest.raises(kubernetes_validate.ValidationError, match="restartPolcy"):
        kubernetes_validate.validate(broken, VERSIONS[-1], strict=True)


def test_the_kustomization_names_every_manifest_and_every_image() -> None:
    found = manifest("kustomization")
    assert set(found["resources"]) == {p.name for p in MANIFESTS} - {"kustomization.yaml"}
    assert {image["name"] for image in found["images"]} == {c["image"] for c in containers()}
    built = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    ours = {built[name]["image"] for name in ("triton", "tritonsched")}
    assert {f"{image['name']}:{image['newTag']}" for image in found["images"]} == ours


def test_triton_starts_before_the_scheduler_and_stops_after_it() -> None:
    """An init container that goes on; until its start-up probe is content, the other waits."""
    triton, sidecar = containers()
    assert triton["restartPolicy"] == "Always"
    assert triton["startupProbe"]["exec"]["command"][-1].endswith("/v2/health/live")
    assert sidecar["lifecycle"]["preStop"]["exec"]["command"] == ["sleep", "5"]


def test_a_stopping_pod_has_time_to_drain() -> None:
    serve = typer.main.get_command(app).commands["serve"]  # type: ignore[attr-defined]  # a group
    (drain_s,) = [option.default for option in serve.params if option.name == "drain_s"]
    triton, sidecar = containers()
    (exit_timeout,) = [a for a in triton["command"] if a.startswith("--exit-timeout-secs=")]
    pause_s = int(sidecar["lifecycle"]["preStop"]["exec"]["command"][1])
    needed_s = pause_s + drain_s + int(exit_timeout.partition("=")[2])
    assert pod()["terminationGracePeriodSeconds"] > needed_s


def test_the_two_share_memory_that_is_memory_and_one_user() -> None:
    triton, sidecar = containers()
    volumes = {volume["name"]: volume for volume in pod()["volumes"]}
    for container in (triton, sidecar):
        assert volumes[mounts(container)["/dev/shm"]]["emptyDir"]["medium"] == "Memory"
        assert "runAsUser" not in container["securityContext"]
    assert pod()["securityContext"]["runAsUser"] > 0


def test_triton_listens_on_loopback_where_the_scheduler_looks_for_it() -> None:
    """And not on the scheduler's ports: containers of a pod share them."""
    triton, sidecar = containers()
    options = dict(word.removeprefix("--").split("=") for word in triton["command"][1:])
    given = {variable["name"]: variable["value"] for variable in sidecar["env"]}
    for name in ("http", "grpc", "metrics"):
        address = f"{options[f'{name}-address']}:{options[f'{name}-port']}"
        assert address.startswith("127.0.0.1:")
        assert given[f"TRITONSCHED_TRITON_{name.upper()}"] == address
    own = {str(port["containerPort"]) for port in sidecar["ports"]}
    assert not own & {options[f"{name}-port"] for name in ("http", "grpc", "metrics")}


def test_a_scheduler_without_triton_is_not_restarted_but_gets_no_requests() -> None:
    _, sidecar = containers()
    paths = {
        kind: sidecar[kind]["httpGet"]["path"]
        for kind in ("startupProbe", "livenessProbe", "readinessProbe")
    }
    assert paths == {
        "startupProbe": "/healthz/live",
        "livenessProbe": "/healthz/live",
        "readinessProbe": "/healthz/ready",
    }


def test_every_container_is_confined_and_bounded() -> None:
    assert pod()["securityContext"]["runAsNonRoot"] is True
    assert pod()["automountServiceAccountToken"] is False
    for container in containers():
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container["resources"]["limits"]["memory"]
        assert set(mounts(container).values()) <= {volume["name"] for volume in pod()["volumes"]}
    assert all("sizeLimit" in v["emptyDir"] for v in pod()["volumes"] if "emptyDir" in v)


def test_the_policy_loads_and_is_mounted_as_a_directory() -> None:
    _, sidecar = containers()
    (name,) = [v["value"] for v in sidecar["env"] if v["name"] == "TRITONSCHED_POLICY"]
    policy = manifest("configmap")["data"][Path(name).name]
    assert set(parse_policy(policy).slo_classes()) >= {"interactive", "camera", "background"}
    assert mounts(sidecar)[str(Path(name).parent)] == "policy"
    assert all("subPath" not in mount for mount in sidecar["volumeMounts"])


def test_service_budget_and_network_policy_select_the_pods_and_name_their_ports() -> None:
    labels = manifest("deployment")["spec"]["template"]["metadata"]["labels"]
    assert manifest("service")["spec"]["selector"] == labels
    assert manifest("poddisruptionbudget")["spec"]["selector"]["matchLabels"] == labels
    network = manifest("networkpolicy")["spec"]
    assert network["podSelector"]["matchLabels"] == labels
    named = {port["name"] for port in containers()[1]["ports"]}
    assert {port["targetPort"] for port in manifest("service")["spec"]["ports"]} <= named
    assert {port["port"] for rule in network["ingress"] for port in rule["ports"]} == named
    assert network["egress"] == []
