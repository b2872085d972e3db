"""What ``kubectl kustomize`` makes of a folder, as far as deploy/kubernetes uses it: every reference must resolve."""

import copy
import fnmatch
from pathlib import Path
from typing import Any

import yaml

Manifest = dict[str, Any]

_KNOWN = {
    "Kustomization": {"resources", "components", "namespace", "configMapGenerator", "patches"},
    "Component": {"resources", "components", "images", "patches"},
}
_MERGED_BY = {
    "containers": "name",
    "initContainers": "name",
    "env": "name",
    "volumes": "name",
    "volumeMounts": "mountPath",
}
"""Lists whose elements a strategic merge patch finds by this field. Other lists are replaced."""


def built(folder: Path) -> list[Manifest]:
    """The manifests that a folder's kustomization makes.

    Raises:
        ValueError: it names something that is not there, patches nothing, or has a field that is not known here.
    """
    return _with(folder, [])


def _with(folder: Path, found: list[Manifest]) -> list[Manifest]:
    """These manifests and the folder's own, in the order in which kustomize goes: resources, components, patches."""
    file = folder / "kustomization.yaml"
    said = yaml.safe_load(file.read_text(encoding="utf-8"))
    kind = said.pop("kind")
    said.pop("apiVersion")
    if unknown := said.keys() - _KNOWN[kind]:
        raise ValueError(f"{file}: {unknown} is not known to this test")
    for name in said.get("resources", []):
        found += built(folder / name) if (folder / name).is_dir() else _read(folder / name)
    for name in said.get("components", []):
        found = _with(folder / name, found)
    found += [_generated(folder, one) for one in said.get("configMapGenerator", [])]
    for patch in said.get("patches", []):
        _patch(folder, patch, found)
    for image in said.get("images", []):
        _rename(image, found)
    if namespace := said.get("namespace"):
        for one in found:
            if one["kind"] != "Namespace":
                one["metadata"]["namespace"] = namespace
    names = [(one["kind"], one["metadata"]["name"]) for one in found]
    if len(set(names)) != len(names):
        raise ValueError(f"{file}: the same resource twice in {names}")
    return found


def _read(file: Path) -> list[Manifest]:
    return [one for one in yaml.safe_load_all(file.read_text(encoding="utf-8")) if one]


def _generated(folder: Path, one: Manifest) -> Manifest:
    data = {name: (folder / name).read_text(encoding="utf-8") for name in one["files"]}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": one["name"]}, "data": data}


def _patch(folder: Path, patch: Manifest, found: list[Manifest]) -> None:
    text = (folder / patch["path"]).read_text(encoding="utf-8") if "path" in patch else patch["patch"]
    said = yaml.safe_load(text)
    wanted = patch.get("target") or {"kind": said["kind"], "name": said["metadata"]["name"]}
    fitting = [
        one
        for one in found
        if one["kind"] == wanted["kind"] and fnmatch.fnmatch(one["metadata"]["name"], wanted.get("name", "*"))
    ]
    if not fitting:
        raise ValueError(f"{folder}: a patch of {wanted}, which is not there")
    for one in fitting:
        if isinstance(said, dict):
            _merge(one, {name: part for name, part in said.items() if name not in ("apiVersion", "kind", "metadata")})
        else:
            for step in said:
                _step(one, step)


def _step(manifest: Manifest, step: Manifest) -> None:
    """One step of a JSON patch (RFC 6902): what is replaced or removed must be there."""
    *way, last = step["path"].strip("/").split("/")
    for name in way:
        manifest = manifest[name]
    if step["op"] != "add" and last not in manifest:
        raise ValueError(f"{step['path']} is not there")
    if step["op"] == "remove":
        del manifest[last]
    else:
        manifest[last] = copy.deepcopy(step["value"])


def _merge(into: Manifest, patch: Manifest) -> None:
    for name, part in patch.items():
        if isinstance(part, dict):
            _merge(into.setdefault(name, {}), part)
        elif name in _MERGED_BY:
            there = into.setdefault(name, [])
            for element in part:
                key = _MERGED_BY[name]
                (match,) = [one for one in there if one[key] == element[key]] or [{}]
                if not match:
                    there.append(match)
                _merge(match, element)
        else:
            into[name] = part


def _rename(image: Manifest, found: list[Manifest]) -> None:
    for one in found:
        for container in containers(one):
            if container["image"].split(":")[0] == image["name"]:
                container["image"] = f"{image['newName']}:{image['newTag']}"


def containers(manifest: Manifest) -> list[Manifest]:
    """The containers of a manifest's pods, those that come first included."""
    pod = manifest.get("spec", {}).get("template", {}).get("spec", {})
    return [*pod.get("initContainers", []), *pod.get("containers", [])]
