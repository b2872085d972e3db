"""What deploy/kubernetes promises, without a cluster: by the schemas of Kubernetes and KEDA, and by embedmill."""

import importlib.util
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import jsonschema
import kubernetes_validate
import promql_parser
import pytest
import redis
import yaml

import contract.redis.keys
from contract.settings import Settings, settings
from embedmill.processes import free_port, process, redis_executable
from tests.commands import wait_until
from tests.contract.samples import WholeLedger, a_job
from tests.deploy.kustomize import Manifest, built, containers
from tests.test_compose import BASE, CPU_IMAGES, GPU
from tests.test_docs import COMMANDS, records
from worker.runtime.gpus import CHILDREN

ROOT = Path(__file__).parent.parent.parent
KUBERNETES = ROOT / "deploy" / "kubernetes"
PAGE = (ROOT / "docs" / "kubernetes.md").read_text(encoding="utf-8")
KUSTOMIZATIONS = sorted(
    file.parent.relative_to(KUBERNETES)
    for file in KUBERNETES.rglob("kustomization.yaml")
    if yaml.safe_load(file.read_text(encoding="utf-8"))["kind"] == "Kustomization"
)
KEDA = json.loads((Path(__file__).parent / "keda.json").read_text(encoding="utf-8"))
EVERYTHING = [
    *built(KUBERNETES / "gpu-autoscaled"),
    *(one for job in ("engine", "plan", "producer", "verify") for one in built(KUBERNETES / "jobs" / job)),
]
OWN = [one for manifest in EVERYTHING for one in containers(manifest) if "embedmill" in one["image"]]
"""The containers of embedmill's own images."""


def the(kind: str, name: str) -> Manifest:
    (found,) = [one for one in EVERYTHING if (one["kind"], one["metadata"]["name"]) == (kind, name)]
    return found


SETTINGS = the("ConfigMap", "settings")["data"]
WORKER = the("Deployment", "worker")["spec"]["template"]
TRIGGERS = {one["type"]: one["metadata"] for one in the("ScaledObject", "worker")["spec"]["triggers"]}


def strict(schema: Any) -> Any:
    """A schema that takes no field but its own, as the API server does of what kubectl applies."""
    if not isinstance(schema, dict):
        return schema
    found = {name: strict(part) for name, part in schema.items()}
    if "properties" in schema:
        found["properties"] = {name: strict(part) for name, part in schema["properties"].items()}
        found.setdefault("additionalProperties", False)
    return found


@pytest.mark.parametrize("folder", KUSTOMIZATIONS, ids=str)
def test_each_folder_builds_and_fits_the_schemas(folder: Path) -> None:
    for manifest in built(KUBERNETES / folder):
        if "keda.sh" in manifest["apiVersion"]:
            schema = strict(KEDA["schemas"][manifest["kind"]])
            schema["properties"]["metadata"] = {"type": "object"}
            jsonschema.validate(manifest, schema)
        else:
            for version in ("1.31", "1.37"):
                kubernetes_validate.validate(manifest, version, strict=True)


def test_what_does_not_fit_is_found() -> None:
    wrong = json.loads(json.dumps(the("ScaledObject", "worker")))
    wrong["spec"]["maxReplicas"] = 3
    with pytest.raises(jsonschema.ValidationError, match="maxReplicas"):
        jsonschema.validate(wrong, strict(KEDA["schemas"]["ScaledObject"]) | {"required": []})
    worker = json.loads(json.dumps(the("Deployment", "worker")))
    worker["spec"]["template"]["spec"]["containers"][0]["readOnlyRootFilesystem"] = True
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(worker, "1.37", strict=True)


@pytest.mark.parametrize("folder", KUSTOMIZATIONS, ids=str)
def test_what_a_manifest_names_is_there(folder: Path) -> None:
    manifests = [*built(KUBERNETES / folder), *EVERYTHING]
    names = {(one["kind"], one["metadata"]["name"]) for one in manifests}
    labels = [one["spec"]["template"]["metadata"]["labels"] for one in manifests if containers(one)]
    for manifest in built(KUBERNETES / folder):
        pod = manifest.get("spec", {}).get("template", {}).get("spec", {})
        volumes = {one["name"]: one for one in pod.get("volumes", [])}
        own = {one["metadata"]["name"] for one in manifest.get("spec", {}).get("volumeClaimTemplates", [])}
        for volume in volumes.values():
            if "persistentVolumeClaim" in volume:
                assert ("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]) in names
            if "configMap" in volume:
                assert ("ConfigMap", volume["configMap"]["name"]) in names
        for container in containers(manifest):
            assert {one["name"] for one in container.get("volumeMounts", [])} <= volumes.keys() | own
            assert {one["configMapRef"]["name"] for one in container.get("envFrom", [])} <= {"settings"}
        for selector in selectors(manifest):
            assert any(selector.items() <= one.items() for one in labels), (manifest["metadata"], selector)


def selectors(manifest: Manifest) -> Iterator[dict[str, str]]:
    """The labels by which it finds pods."""
    spec = manifest.get("spec", {})
    if manifest["kind"] == "Service":
        yield spec["selector"]
    if manifest["kind"] in ("PodDisruptionBudget", "Deployment", "StatefulSet"):
        yield spec["selector"]["matchLabels"]
    if manifest["kind"] == "NetworkPolicy":
        yield spec["podSelector"].get("matchLabels", {})
        sources = [source for rule in spec.get("ingress", []) for source in rule["from"]]
        yield from (source["podSelector"]["matchLabels"] for source in sources if "podSelector" in source)


@pytest.mark.parametrize("container", OWN, ids=lambda one: " ".join(one["command"])[:60])
def test_a_command_is_one_that_embedmill_takes(container: dict[str, Any]) -> None:
    words = [re.sub(r"\$\((\w+)\)", lambda found: SETTINGS[found[1]], word) for word in container["command"]]
    if words[0] == "sh":
        assert "/plans/*.plan" in words[-1]
    elif words[0] == "celery":
        assert f"CMD {json.dumps(words)}" in CPU_IMAGES["worker"]
    else:
        assert words[:2] == ["python", "-m"]
        parse(COMMANDS[words[2]], words[3:])


def parse(command: click.Command, words: list[str], parent: click.Context | None = None) -> None:
    """Have click parse these words, without running anything."""
    context = command.make_context(command.name, list(words), parent)
    if isinstance(command, click.Group) and (rest := [*context._protected_args, *context.args]):
        name, found, more = command.resolve_command(context, rest)
        assert found is not None, name
        parse(found, more, context)


def test_a_probe_is_a_module_or_a_port_that_there_is() -> None:
    (worker,) = WORKER["spec"]["containers"]
    python, _, module = worker["readinessProbe"]["exec"]["command"]
    assert (python, importlib.util.find_spec(module) is not None) == ("python", True)
    (port,) = worker["ports"]
    variables = {one["name"]: one.get("value") for one in worker["env"]}
    assert str(port["containerPort"]) == variables["EMBEDMILL_METRICS_PORT"]
    assert worker["livenessProbe"]["httpGet"] == {"path": "/metrics", "port": port["name"]}
    scraped = yaml.safe_load((ROOT / "deploy" / "monitor" / "prometheus.yml").read_text())["scrape_configs"][0]
    assert scraped["dns_sd_configs"][0]["names"] == [the("Service", "worker")["metadata"]["name"]]
    assert scraped["dns_sd_configs"][0]["port"] == port["containerPort"]


def test_the_variables_are_settings_with_values_that_they_take(monkeypatch: pytest.MonkeyPatch) -> None:
    every = dict(SETTINGS)
    for container in OWN:
        every |= {one["name"]: one["value"] for one in container.get("env", []) if "value" in one}
    every |= {"EMBEDMILL_THREADS": built(KUBERNETES / "cpu")[1]["data"]["EMBEDMILL_THREADS"]}
    assert {name.removeprefix("EMBEDMILL_").lower() for name in every} <= Settings.model_fields.keys()
    for name, value in every.items():
        monkeypatch.setenv(name, value.replace("$(REDIS_PASSWORD)", "secret"))
    assert settings.__wrapped__().redis.shown == "redis://redis:6379/0"


def test_images_are_those_of_compose() -> None:
    services = {**BASE["services"], **{f"gpu {name}": one for name, one in GPU["services"].items()}}
    known = {one["image"] for one in services.values()} | {"redis:7"}
    renamed = yaml.safe_load((KUBERNETES / "components" / "images" / "kustomization.yaml").read_text())["images"]
    names = {f"{one['newName']}:{one['newTag']}": one["name"] for one in renamed}
    used = {container["image"] for manifest in EVERYTHING for container in containers(manifest)}
    assert {names.get(image, image) for image in used} <= known
    assert "FROM redis:7\n" in (ROOT / "deploy" / "docker" / "redis.Dockerfile").read_text()


def test_no_pod_runs_as_root_or_writes_outside_its_volumes() -> None:
    for manifest in (one for one in EVERYTHING if containers(one)):
        pod = manifest["spec"]["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] > 0
        assert pod["automountServiceAccountToken"] is False
        for container in containers(manifest):
            context = container["securityContext"]
            assert (context["readOnlyRootFilesystem"], context["allowPrivilegeEscalation"]) == (True, False)
            assert context["capabilities"] == {"drop": ["ALL"]}
            mounts = {one["mountPath"] for one in container["volumeMounts"]}
            assert "/tmp" in mounts or container["name"] in ("redis", "prometheus", "plan")
    assert "useradd --uid 1000" in " ".join(CPU_IMAGES["worker"])


def test_a_worker_has_more_time_than_it_needs_to_stop() -> None:
    stop, pod = float(SETTINGS["EMBEDMILL_STOP_SECONDS"]), WORKER["spec"]
    assert stop < pod["terminationGracePeriodSeconds"]
    assert all("lifecycle" not in container for container in pod["containers"])  # it would take time of the same


def test_only_who_needs_redis_is_let_in_to_it() -> None:
    with_address = {
        manifest["metadata"]["name"]
        for manifest in EVERYTHING
        for container in containers(manifest)
        if "EMBEDMILL_REDIS_URL" in {one["name"] for one in container.get("env", [])}
    }
    let_in = {
        manifest["metadata"]["name"]
        for manifest in EVERYTHING
        if containers(manifest) and "embedmill/redis" in manifest["spec"]["template"]["metadata"]["labels"]
    }
    assert with_address == let_in == {"worker", "producer"}


def test_redis_starts_as_its_manifest_says(tmp_path: Path) -> None:
    (container,) = containers(the("StatefulSet", "redis"))
    shell, option, script = container["command"]
    folder, port = tmp_path / "data", free_port()
    folder.mkdir()
    (tmp_path / "redis-server").symlink_to(redis_executable())
    script = script.replace("dir /data", f"dir {folder}\nport {port}")
    env = {"REDISCLI_AUTH": "0123abcd", "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    with process([shell, option, script], tmp_path / "redis.log", env=env) as server:
        client = redis.Redis(port=port, password="0123abcd")
        wait_until(lambda: answers(client))
        assert client.info("server")["process_id"] == server.pid  # SIGTERM comes to Redis, not to a shell
        said = client.config_get("*")
        with pytest.raises(redis.AuthenticationError):
            redis.Redis(port=port).ping()
    assert (said["maxmemory-policy"], said["appendonly"], said["save"]) == ("noeviction", "yes", "")
    maxmemory = int(str(said["maxmemory"]))
    assert maxmemory > 2 * int(SETTINGS["EMBEDMILL_OUTSTANDING_BYTES"])
    limit = container["resources"]["limits"]["memory"]
    assert maxmemory * 1.5 < int(limit.removesuffix("Gi")) * 2**30


def answers(client: "redis.Redis") -> bool:
    try:
        return bool(client.ping())
    except redis.ConnectionError:
        return False


_KEDAS_SCRIPT = """
local listName = KEYS[1]
local listType = redis.call('type', listName).ok
if listType == 'zset' then return redis.call('zcard', listName)
elseif listType == 'set' then return redis.call('scard', listName)
elseif listType == 'hash' then return redis.call('hlen', listName)
elseif listType == 'list' or listType == 'none' then return redis.call('llen', listName)
else return redis.error_reply('ERR unsupported key type: ' .. listType) end
"""
"""What KEDA 2.20 asks Redis (pkg/scalers/redis_scaler.go)."""


def test_what_keda_watches_is_what_redis_and_the_workers_have(redis_url: str, tmp_path: Path) -> None:
    watched = TRIGGERS["redis"]["listName"]
    assert watched == contract.redis.keys.JOBS
    client, ledger = redis.Redis.from_url(redis_url), WholeLedger(patience=5)
    seen = [client.eval(_KEDAS_SCRIPT, 1, watched)]
    jobs = [a_job(tmp_path / name) for name in "ab"]
    for job in jobs:
        ledger.announce(job)
        seen.append(client.eval(_KEDAS_SCRIPT, 1, watched))
    for job in jobs:
        ledger.forget(job)
    assert [*seen, client.eval(_KEDAS_SCRIPT, 1, watched)] == [0, 1, 2, 0]
    assert int(TRIGGERS["redis"]["activationListLength"]) == 0
    query = TRIGGERS["prometheus"]["query"]
    promql_parser.parse(query)
    (metric,) = re.findall(r"embedmill_\w+", query)
    assert f'"{metric}"' in (ROOT / "worker" / "metrics.py").read_text(encoding="utf-8")
    service = the("Service", "prometheus")
    assert (
        TRIGGERS["prometheus"]["serverAddress"]
        == f"http://prometheus.embedmill.svc:{service['spec']['ports'][0]['port']}"
    )
    assert TRIGGERS["redis"]["address"] == "redis.embedmill.svc:6379"


def test_the_threshold_is_thirty_seconds_of_a_gpus_measured_work() -> None:
    """docs/kubernetes.md has the formula; the figures are a job's on one H100."""
    measured = records("job.json", system="embedmill job, torch", dataset="reviews", rows=1_000_000, children=2)
    (job,) = measured
    scaled = the("ScaledObject", "worker")["spec"]
    seconds = 2 * scaled["pollingInterval"]
    batch_seconds = int(job["batch"]) / job["rows_per_s"]
    threshold = round(seconds / batch_seconds)
    assert int(TRIGGERS["prometheus"]["threshold"]) == threshold
    held = CHILDREN  # each computes one batch
    batch_bytes = int(job["batch"]) * job["wire_bytes"]
    needed = scaled["maxReplicaCount"] * (threshold + held) * batch_bytes
    assert needed <= int(SETTINGS["EMBEDMILL_OUTSTANDING_BYTES"]) <= 1.1 * needed
    row = r"\| *{} *\| *{} *\|"
    for shown in (f"{batch_seconds:.4f} s", f"{threshold}", f"{batch_bytes / 1e6:.3f} MB", f"{needed / 1e9:.3f} GB"):
        assert re.search(row.format(".*", re.escape(shown)), PAGE), shown


def test_the_page_names_every_folder_and_secret() -> None:
    for folder in KUSTOMIZATIONS:
        assert f"deploy/kubernetes/{folder}" in PAGE, folder
    for name in set(
        re.findall(r"secretKeyRef:\n *name: (\w+)", "".join(map(Path.read_text, KUBERNETES.rglob("*.yaml"))))
    ):
        assert f"create secret generic {name} " in PAGE
