"""What the compose files and the images they are built from promise."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import Counter

from contract.settings import Settings
from tests.test_structure import PACKAGES, imports
from worker import metrics

ROOT = Path(__file__).parent.parent
FILES = ("docker-compose.yml", "docker-compose.gpu.yml")
DOCKER = ROOT / "deploy" / "docker"
BASE, GPU = (yaml.safe_load((ROOT / file).read_text(encoding="utf-8")) for file in FILES)
SERVICES: dict[str, Any] = BASE["services"]
ONCE = ("engine", "producer", "verify")
"""Services that end."""


def compose() -> list[str] | None:
    """The command of a compose that is installed: version 2, or else 1."""
    if shutil.which("docker") and subprocess.run(["docker", "compose", "version"], capture_output=True).returncode == 0:
        return ["docker", "compose"]
    return ["docker-compose"] if shutil.which("docker-compose") else None


@pytest.mark.skipif(compose() is None, reason="neither docker compose nor docker-compose is installed")
@pytest.mark.parametrize("files", [FILES[:1], FILES], ids=["cpu", "gpu"])
def test_compose_takes_the_files(files: tuple[str, ...]) -> None:
    chosen = [part for file in files for part in ("--file", str(ROOT / file))]
    command = [*(compose() or ()), *chosen, "--profile", "monitor", "config"]
    env = {name: os.environ[name] for name in ("PATH", "HOME", "DOCKER_CONFIG") if name in os.environ}
    env |= {"DATASET": "imdb", "OUTPUT": "./vectors", "EMBEDMILL_THREADS": "3", "TORCH_INDEX": "file:///wheels"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    services = yaml.safe_load(done.stdout)["services"]
    assert "imdb" in str(services["producer"]["command"])
    assert str(services["worker"]["environment"]["EMBEDMILL_THREADS"]) == "3"
    assert str(ROOT / "vectors") in str(services["worker"]["volumes"])
    assert services.keys() == {*SERVICES, *(GPU["services"] if files == FILES else ())}
    assert services["engine"]["build"]["args"]["TORCH_INDEX"] == env["TORCH_INDEX"]
    assert ("nvidia" in str(services["worker"])) == (files == FILES)


def stages(file: Path) -> dict[str, list[str]]:
    """An image's stages by name, each its instructions, those of the stages that it is made from first."""
    found: dict[str, list[str]] = {}
    name = ""
    for line in re.sub(r"\\\n", " ", file.read_text(encoding="utf-8")).splitlines():
        if match := re.match(r"FROM (\S+)(?: AS (\S+))?", line):
            name = match[2] or "redis"
            found[name] = list(found.get(match[1], []))
        elif name and line and not line.startswith("#"):
            found[name].append(line)
    return found


CPU_IMAGES, GPU_IMAGES, REDIS_IMAGES = (
    stages(DOCKER / name) for name in ("Dockerfile", "gpu.Dockerfile", "redis.Dockerfile")
)


def user_of(service: dict[str, Any]) -> str:
    """Who the service's process runs as."""
    if "build" not in service:
        return str(service["user"])
    assert "user" not in service
    images = stages(ROOT / service["build"]["context"] / service["build"]["dockerfile"])
    users = [line for line in images[service["build"].get("target", "redis")] if line.startswith("USER ")]
    return users[-1].split()[1] if users else "root"


@pytest.mark.parametrize(("name", "service"), [*SERVICES.items(), *GPU["services"].items()])
def test_no_service_runs_as_root_or_may_become_it(name: str, service: dict[str, Any]) -> None:
    assert user_of(service) not in ("root", "0")
    service = SERVICES.get(name, {}) | service
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not service.get("privileged")


def test_redis_keeps_what_it_has_and_is_reached_by_its_own_network_alone() -> None:
    redis = SERVICES["redis"]
    assert redis["networks"] == ["redis"]
    assert BASE["networks"]["redis"]["internal"] is True
    assert not {"ports", "network_mode", "links"} & redis.keys()
    assert "redis-cli ping" in redis["healthcheck"]["test"][1]
    command = json.loads(REDIS_IMAGES["redis"][-1].removeprefix("CMD "))
    assert command[command.index("--appendonly") + 1] == "yes"
    assert command[command.index("--maxmemory-policy") + 1] == "noeviction"
    assert f"redis:{command[command.index('--dir') + 1]}" in redis["volumes"]


def test_only_the_monitors_have_ports_and_this_machine_alone_reaches_them() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert published.keys() == {name for name, service in SERVICES.items() if service.get("profiles") == ["monitor"]}
    assert all(port.startswith("127.0.0.1:") for ports in published.values() for port in ports)


def test_the_workers_images_have_no_torch_and_no_more_than_their_packages() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    for image, allowed in ((CPU_IMAGES["worker"], {"cpu"}), (GPU_IMAGES["worker"], {"cpu", "gpu"})):
        installed = {
            extra for line in image for found in re.findall(r"'\.\[([\w,]+)\]'", line) for extra in found.split(",")
        }
        assert installed == allowed
        packages = [package for extra in installed for package in extras[extra]]
        assert not any("torch" in package for package in packages)
        assert {extra for package in packages for extra in re.findall(r"embedmill\[(\w+)\]", package)} <= allowed
    # Its record has the version, which the metrics tell.
    assert not any(
        "uninstall" in line for images in (CPU_IMAGES, GPU_IMAGES) for lines in images.values() for line in lines
    )
    copied = {line.split()[1] for line in CPU_IMAGES["worker"] if line.startswith("COPY ")}
    assert copied == {"pyproject.toml", "contract", "worker"}


CELERY = ("inspect", "registered", "--help")
"""Of ``celery -A worker``: what imports the app and needs no Redis."""


@pytest.mark.parametrize(
    ("image", "command"),
    [
        (CPU_IMAGES["worker"], (str(Path(sys.executable).parent / "celery"), "-A", "worker", *CELERY)),
        (CPU_IMAGES["build"], ("-m", "engine_build", "--help")),
        (CPU_IMAGES["build"], ("-m", "producer", "--help")),
        (CPU_IMAGES["build"], ("-m", "verify", "--help")),
        (GPU_IMAGES["worker"], ("-m", "engine_build", "plan", "--help")),
    ],
    ids=["worker", "engine_build", "producer", "verify", "plan"],
)
def test_a_command_finds_its_packages_in_the_images_folder(
    image: list[str], command: tuple[str, ...], tmp_path: Path
) -> None:
    """In an image the product is not installed: its packages are in the working directory."""
    for line in image:
        if line.startswith("COPY ") and (package := line.split()[1]) in PACKAGES:
            shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    # -S hides an editable installation, and with it the libraries, which PYTHONPATH has again.
    alone = os.environ | {"PYTHONPATH": str(Path(yaml.__file__).parent.parent)}
    asked = [sys.executable, "-S", "-c", "import importlib.util; print(importlib.util.find_spec('contract'))"]
    told = subprocess.run(asked, cwd="/", env=alone, capture_output=True, text=True, check=True)
    assert told.stdout == "None\n"
    done = subprocess.run(
        [sys.executable, "-S", *command], cwd=tmp_path, env=alone, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


def test_the_job_runs_in_its_order_and_only_the_servers_come_back() -> None:
    conditions = {
        name: {other: how["condition"] for other, how in service.get("depends_on", {}).items()}
        for name, service in SERVICES.items()
    }
    done, healthy, started = "service_completed_successfully", "service_healthy", "service_started"
    assert conditions["worker"] == {"redis": healthy, "engine": done}
    assert conditions["producer"] == {"redis": healthy, "engine": done, "worker": started}
    assert conditions["verify"] == {"producer": done}
    assert GPU["services"]["plan"]["depends_on"] == {"engine": {"condition": done}}
    assert GPU["services"]["worker"]["depends_on"] == {"plan": {"condition": done}}
    for name, service in SERVICES.items():
        policy = "always" if name == "worker" else "unless-stopped"
        assert service.get("restart") == (None if name in ONCE else policy)
    assert SERVICES["worker"]["stop_signal"] == "SIGTERM"  # named, so that a kill by another signal is a crash


def test_a_worker_has_time_to_stop_and_can_be_there_more_than_once() -> None:
    worker = SERVICES["worker"]
    assert worker["stop_grace_period"] == "30s"
    assert worker["init"] is True
    assert "STOPSIGNAL SIGTERM" in CPU_IMAGES["worker"]
    assert "STOPSIGNAL SIGTERM" in GPU_IMAGES["worker"]
    assert not {"container_name", "ports", "hostname"} & worker.keys()
    assert worker["volumes"][0] == "engines:/engines:ro"


def test_the_environment_holds_settings_that_exist_and_no_secret() -> None:
    known = {f"EMBEDMILL_{name.upper()}" for name in Settings.model_fields}
    for service in SERVICES.values():
        environment = service.get("environment", {})
        assert {name for name in environment if name.startswith("EMBEDMILL_")} <= known
        assert environment.get("HF_TOKEN") is None


def test_every_variable_is_documented() -> None:
    page = (ROOT / "docs" / "compose.md").read_text(encoding="utf-8")
    (index,) = re.findall(r"\$\{TORCH_INDEX-(\S+)\}", (ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
    assert f"| `TORCH_INDEX` | `{index}` |" in page
    assert f"--index-url {index}\n" in (ROOT / "docs" / "installation.md").read_text(encoding="utf-8")
    named = {name for file in FILES for name in re.findall(r"\$\{(\w+)", (ROOT / file).read_text(encoding="utf-8"))}
    assert {name.removeprefix("EMBEDMILL_") for name in named} <= set(re.findall(r"\w+", page))
    passed = {name for service in SERVICES.values() for name in service.get("environment", {})}
    own = {name.removeprefix("EMBEDMILL_") for name in passed if name.startswith(("EMBEDMILL_", "HF_"))}
    fixed = {"REDIS_URL", "ENGINES", "METRICS_PORT"}
    assert own - fixed <= set(re.findall(r"\w+", page))


def test_the_default_needs_no_hub() -> None:
    assert "${MODEL:-/models/all-minilm-l6-v2}" in SERVICES["engine"]["command"]
    assert any("/models/all-minilm-l6-v2" in line for line in CPU_IMAGES["build"])
    assert "${DATASET:-/data/jargon.jsonl}" in SERVICES["producer"]["command"]
    for name in ("producer", "verify"):
        assert "${DATA:-./examples}:/data:ro" in SERVICES[name]["volumes"]
    assert (ROOT / "examples" / "jargon.jsonl").is_file()


def test_what_the_images_copy_travels_to_the_engine() -> None:
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {
        source
        for images in (CPU_IMAGES, GPU_IMAGES)
        for image in images.values()
        for line in image
        if line.startswith("COPY ") and "--from" not in line
        for source in line.split()[1:-1]
    }
    assert copied == kept
    assert all((ROOT / name).exists() for name in kept)


def test_the_dashboard_asks_for_metrics_that_a_worker_has() -> None:
    monitor = ROOT / "deploy" / "monitor"
    scraped = yaml.safe_load((monitor / "prometheus.yml").read_text())["scrape_configs"][0]["dns_sd_configs"][0]
    assert scraped["names"] == ["worker"]
    assert scraped["port"] == SERVICES["worker"]["environment"]["EMBEDMILL_METRICS_PORT"]
    dashboard = json.loads((monitor / "grafana" / "dashboards" / "embedmill.json").read_text())
    targets = [target for panel in dashboard["panels"] for target in panel["targets"]]
    asked = {name for target in targets for name in re.findall(r"embedmill_\w+", target["expr"])}
    counters = [value for value in vars(metrics).values() if isinstance(value, Counter)]
    told = {f"{next(iter(counter.describe())).name}_total" for counter in [*counters, *metrics.SUMS.values()]}
    told |= {f"embedmill_batch_seconds_{what}" for what in ("sum", "count", "bucket")}
    told |= {"embedmill_gpu_memory_used_bytes", "embedmill_gpu_memory_total_bytes"}
    told |= {f"embedmill_{name}" for name in ("build_info", "queued_batches", "job_rows", "job_rows_done", "workers")}
    assert asked == told
    page = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert all(re.sub(r"(batch_seconds)_\w+", r"\1", name) in page for name in told)
    source = yaml.safe_load((monitor / "grafana" / "provisioning" / "datasources" / "prometheus.yml").read_text())
    assert {target["datasource"]["uid"] for target in targets} == {source["datasources"][0]["uid"]}
    places = [panel["gridPos"] for panel in dashboard["panels"]]
    assert len({(place["x"], place["y"]) for place in places}) == len(places)


@pytest.mark.parametrize("dockerfile", ["Dockerfile", "gpu.Dockerfile"])
def test_an_image_has_every_package_that_its_packages_import(dockerfile: str) -> None:
    stages: dict[str, set[str]] = {}
    name = ""
    for line in (ROOT / "deploy" / "docker" / dockerfile).read_text(encoding="utf-8").splitlines():
        if match := re.match(r"FROM (\S+) AS (\S+)", line):
            name = match[2]
            stages[name] = set(stages.get(match[1], ()))
        elif (match := re.match(r"COPY (\w+) \1$", line)) and match[1] in PACKAGES:
            stages[name].add(match[1])
    assert any(stages.values())
    for stage, copied in stages.items():
        for package in copied:
            assert {module.split(".")[0] for module in imports(ROOT / package)} <= copied, (stage, package)
