"""The files in `cluster/`: valid for the tools that read them, and in step with the repository."""

import copy
import functools
import importlib
import itertools
import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.serve.config import AutoscalingConfig
from ray.serve.schema import ServeDeploySchema

from imgray.serving.settings import ServiceSettings

ROOT = Path(__file__).parents[1]
CLUSTER = ROOT / "cluster"
MANIFESTS = sorted((CLUSTER / "kuberay").glob("*.yaml"))
DOCKERFILE = (CLUSTER / "Dockerfile").read_text()
TEXTS = {p.name: p.read_text() for p in [CLUSTER / "README.md", CLUSTER / "aws.yaml", *MANIFESTS]}
PINS = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text().lower(), re.M))


def load(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text())


def replaced(tree: dict[str, Any], path: str, value: object) -> dict[str, Any]:
    """A deep copy of the tree with one dotted path set; list positions are numbers."""
    result = copy.deepcopy(tree)
    *parents, last = (int(key) if key.isdigit() else key for key in path.split("."))
    node: Any = result
    for key in parents:
        node = node[key]
    node[last] = value
    return result


def assert_blames(error: jsonschema.ValidationError, path: str, value: object) -> None:
    """The error names the unknown key or the wrong value, so it is this mistake that was found."""
    assert repr(path.split(".")[-1]) in error.message or repr(value) in error.message


# --- aws.yaml ---------------------------------------------------------------------------------


@pytest.fixture
def aws() -> dict[str, Any]:
    return load(CLUSTER / "aws.yaml")


def check_aws(config: dict[str, Any]) -> dict[str, Any]:
    prepared = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    return prepared


def test_aws_is_valid_and_idles_at_the_head(aws: dict[str, Any]) -> None:
    types = check_aws(aws)["available_node_types"]
    head = types.pop(aws["head_node_type"])
    assert head["resources"] == {"CPU": 0}
    assert {name: t["min_workers"] for name, t in types.items()} == {"cpu": 0, "gpu": 0}
    assert sum(t["max_workers"] for t in types.values()) <= aws["max_workers"]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("idle_timeout", 5),
        ("docker.imagee", "x"),
        ("available_node_types.gpu.max_worker", 8),
        ("available_node_types.gpu.docker.image", "x"),
        ("idle_timeout_minutes", "five"),
        ("available_node_types.cpu.min_workers", "0"),
        ("initialization_commands", "docker login"),
    ],
)
def test_aws_with_a_mistake_is_refused(aws: dict[str, Any], path: str, value: object) -> None:
    with pytest.raises(jsonschema.ValidationError) as error:
        check_aws(replaced(aws, path, value))
    assert_blames(error.value, path, value)


@pytest.mark.parametrize(
    ("path", "value"),
    [("head_node_type", "boss"), ("available_node_types.cpu.min_workers", 33)],
)
def test_aws_that_contradicts_itself_is_refused(
    aws: dict[str, Any], path: str, value: object
) -> None:
    with pytest.raises(ValueError, match=r"head_node_type|max_workers"):
        check_aws(replaced(aws, path, value))


def test_aws_is_closed_to_strangers(aws: dict[str, Any]) -> None:
    prepared = check_aws(aws)
    assert "--env RAY_AUTH_MODE=token" in prepared["docker"]["run_options"]
    assert prepared["file_mounts"] == {"~/.ray/auth_token": "~/.ray/auth_token"}
    (start,) = [c for c in prepared["head_start_ray_commands"] if "ray start" in c]
    assert "--dashboard-host=127.0.0.1" in shlex.split(start)
    assert "security_group" not in prepared["provider"]


# --- Kubernetes manifests ---------------------------------------------------------------------


def closed(schema: Any) -> Any:
    """The schema with unknown keys refused wherever Kubernetes would drop them in silence."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    result = {key: closed(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object":
        open_ended = schema.get("x-kubernetes-preserve-unknown-fields", False)
        result.setdefault("additionalProperties", open_ended)
    return result


@functools.cache
def validator(crd: Path) -> jsonschema.Draft202012Validator:
    """Checks a whole manifest against the schema of a custom resource definition."""
    definition = json.loads(crd.read_text())
    schema = closed(definition["openAPIV3Schema"])
    schema["properties"] |= {
        "apiVersion": {"const": definition["apiVersion"]},
        "kind": {"const": definition["kind"]},
        "metadata": {"properties": {"name": {"type": "string"}}, "additionalProperties": False},
    }
    schema["required"] = ["apiVersion", "kind", "metadata", "spec"]
    return jsonschema.Draft202012Validator(schema)


def check_manifest(manifest: dict[str, Any], shared_data: Path) -> None:
    checker = validator(shared_data / "kuberay" / f"{manifest['kind'].lower()}.json")
    error = jsonschema.exceptions.best_match(checker.iter_errors(manifest))
    if error is not None:
        raise error


def ray_cluster(manifest: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The cluster of a manifest, with the dotted path to it."""
    if manifest["kind"] == "RayCluster":
        return "spec", manifest["spec"]
    key = {"RayJob": "rayClusterSpec", "RayService": "rayClusterConfig"}[manifest["kind"]]
    return f"spec.{key}", manifest["spec"][key]


each_manifest = pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)


@pytest.mark.data
@each_manifest
def test_manifest_is_valid(path: Path, shared_data: Path) -> None:
    check_manifest(load(path), shared_data)


@pytest.mark.data
@each_manifest
@pytest.mark.parametrize(
    ("below", "value"),
    [
        ("enableInTreeAutoscalling", True),
        ("autoscalerOptions.idleTimeout", 300),
        ("authOptions.mod", "token"),
        ("workerGroupSpecs.0.minReplica", 0),
        ("workerGroupSpecs.1.template.spec.containers.0.imagee", "x"),
        ("workerGroupSpecs.1.template.spec.serviceAcountName", "x"),
        ("authOptions.mode", "tokens"),
        ("workerGroupSpecs.0.maxReplicas", "many"),
    ],
)
def test_manifest_with_a_mistake_is_refused(
    path: Path, below: str, value: object, shared_data: Path
) -> None:
    manifest = load(path)
    top, _ = ray_cluster(manifest)
    with pytest.raises(jsonschema.ValidationError) as error:
        check_manifest(replaced(manifest, f"{top}.{below}", value), shared_data)
    assert_blames(error.value, below, value)


@each_manifest
def test_manifest_scales_from_nothing_and_asks_for_a_token(path: Path) -> None:
    _, cluster = ray_cluster(load(path))
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["enableInTreeAutoscaling"]
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    groups = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    assert {name: group["minReplicas"] for name, group in groups.items()} == {"cpu": 0, "gpu": 0}
    for name, group in groups.items():
        (container,) = group["template"]["spec"]["containers"]
        assert container["image"].endswith(f"-{name}")
        assert ("nvidia.com/gpu" in container["resources"]["limits"]) == (name == "gpu")


def test_all_manifests_describe_the_same_cluster() -> None:
    """But for the API keys, which only the service needs."""
    clusters = [ray_cluster(load(path))[1] for path in MANIFESTS]
    for cluster in clusters:
        for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
            group["template"]["spec"]["containers"][0].pop("envFrom", None)
    assert len(clusters) == 3
    assert all(cluster == clusters[0] for cluster in clusters)


# --- the service ------------------------------------------------------------------------------


def serve_config() -> dict[str, Any]:
    return load(CLUSTER / "serve.yaml")


def check_serve(config: dict[str, Any]) -> ServeDeploySchema:
    """As `serve deploy` does, and as the application reads its arguments."""
    parsed = ServeDeploySchema.model_validate(config)
    for application in parsed.applications:
        ServiceSettings.model_validate(application.args)
        for deployment in application.deployments:
            if isinstance(deployment.autoscaling_config, dict):
                AutoscalingConfig.model_validate(deployment.autoscaling_config)
    return parsed


def test_serve_config_is_valid_and_names_the_deployments_of_its_application() -> None:
    (application,) = check_serve(serve_config()).applications
    module, _, name = application.import_path.partition(":")
    assert callable(getattr(importlib.import_module(module), name))
    settings = ServiceSettings.model_validate(application.args)
    groups = {f"shards-{group}" for group in range(settings.shard_groups or 0)}
    models = {f"model-{name}" for name in settings.models}
    named = {deployment.name for deployment in application.deployments}
    assert named == {"service", "registry", "encoder", "texts"} | groups | models
    registry = next(one for one in application.deployments if one.name == "registry")
    assert registry.user_config == {"index": settings.index}


@pytest.mark.parametrize(
    ("below", "value"),
    [
        ("applications.0.args.indexes", "x"),
        ("applications.0.args.limits.secondss", 3),
        ("applications.0.args.missing_shards", "ignore"),
        ("applications.0.deployments.2.max_ongoing_requests", 0),
        ("applications.0.deployments.2.autoscaling_config.min_replicas", "few"),
        ("applications.0.import_path", "imgray"),
    ],
)
def test_serve_config_with_a_mistake_is_refused(below: str, value: object) -> None:
    with pytest.raises(ValueError, match=re.escape(below.split(".")[-1])):
        check_serve(replaced(serve_config(), below, value))


def test_kubernetes_serves_the_same_application() -> None:
    manifest = load(CLUSTER / "kuberay/rayservice.yaml")
    assert yaml.safe_load(manifest["spec"]["serveConfigV2"]) == serve_config()
    assert ray_cluster(manifest)[1]["workerGroupSpecs"][0]["template"]["spec"]["containers"][0][
        "envFrom"
    ] == [{"secretRef": {"name": "imgray-keys"}}]


# --- the image --------------------------------------------------------------------------------


def instructions(keyword: str) -> Iterator[str]:
    text = DOCKERFILE.replace("\\\n", " ")
    return (match[1].strip() for match in re.finditer(rf"^{keyword} (.*)$", text, re.M))


def test_image_copies_what_exists_and_the_context_lets_in() -> None:
    context = (ROOT / ".dockerignore").read_text().split()
    for copied in instructions("COPY"):
        *sources, _ = copied.split()
        for source in sources:
            assert (ROOT / source).exists(), source
            assert "!" + source.split("/")[0] in context, source


def test_image_builds_on_a_supported_python_with_the_pinned_versions() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (base,) = instructions("FROM")
    version = re.fullmatch(r"python:3\.(\d+)-slim\S*", base)
    lowest = re.fullmatch(r">=3\.(\d+)", project["requires-python"])
    assert version
    assert lowest
    assert int(version[1]) >= int(lowest[1])

    (install,) = [run for run in instructions("RUN") if "${EXTRA}" in run]
    assert "--constraint constraints.txt" in install
    extras = project["optional-dependencies"]
    for requirement in itertools.chain(
        project["dependencies"], *(extras[name] for name in ("cpu", "gpu", "weights", "aws"))
    ):
        assert re.split(r"[\[>]", requirement)[0] in PINS, requirement


def test_image_runs_as_an_ordinary_user_with_a_token() -> None:
    assert list(instructions("USER")) == ["ray"]
    (environment,) = instructions("ENV")
    assert {"HOME=/home/ray", "RAY_AUTH_MODE=token"} <= set(environment.split())


# --- in step with each other ------------------------------------------------------------------


def test_image_names_agree_with_the_version_of_the_package() -> None:
    import imgray

    names = set()
    for text in [DOCKERFILE, *TEXTS.values()]:
        names |= set(re.findall(r"[\w.-]+/imgray:[\w.$-]+", text))
    stem = f"registry.example.com/imgray:{imgray.__version__}"
    assert names == {f"{stem}-cpu", f"{stem}-gpu", f"{stem}-$extra"}


@each_manifest
def test_ray_version_is_the_pinned_one(path: Path) -> None:
    assert ray_cluster(load(path))[1]["rayVersion"] == PINS["ray"]


def test_job_commands_name_scripts_that_exist() -> None:
    found = {name: re.findall(r"python (\S*?)(jobs/\w+\.py)", text) for name, text in TEXTS.items()}
    assert [job for _, job in found["README.md"]] == [
        f"jobs/{job}.py" for job in ("extract", "index", "evaluate", "search")
    ]
    assert len(found["rayjob.yaml"]) == 1
    (workdir,) = instructions("WORKDIR")
    for folder, job in itertools.chain.from_iterable(found.values()):
        assert folder in ("", f"{workdir}/")
        assert (ROOT / job).is_file(), job


def test_readme_covers_every_file() -> None:
    files = [p.relative_to(CLUSTER).as_posix() for p in CLUSTER.rglob("*") if p.is_file()]
    assert [f for f in files if f != "README.md" and f"`{f}`" not in TEXTS["README.md"]] == []
