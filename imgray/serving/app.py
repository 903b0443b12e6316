"""The Serve application: `serve run imgray.serving.app:build index=URI`, or `cluster/serve.yaml`.

Serve reads the annotations of `build` to validate its arguments: they must not be strings.

Deployments by name: `service` answers HTTP; `registry` says which index is current; `encoder` has
the index's networks; `shards-N` search; `model-NAME` runs a trained model.
"""

from typing import Any

from ray import serve
from ray.serve import Application

from imgray.errors import UserError
from imgray.manifest import read_manifest
from imgray.serving.encoder import Encoder
from imgray.serving.http import Service
from imgray.serving.predictor import Predictor
from imgray.serving.settings import ServiceSettings
from imgray.serving.shards import ShardGroup
from imgray.serving.versions import Registry
from imgray.storage import Folder

MOST_GROUPS = 4
QUEUE = 64
"""Calls that wait for a deployment, per replica that asks; one more is refused."""
ONGOING = 32


def build(args: ServiceSettings) -> Application:
    """The application that serves an index, trained models, or both.

    Options of a deployment, such as replicas, GPUs and autoscaling, are set by its name in the
    Serve configuration; these are what one machine needs.
    """
    if not (args.index or args.models):
        raise UserError("nothing to serve: give an index, models, or both")
    index = _index(args, args.index) if args.index else {}
    predictors = {name: _predictor(args, name, uri) for name, uri in args.models.items()}
    service = _deployment(Service, "service", cpus=0.1, ongoing=2 * args.limits.pending)
    return service.bind(args, predictors=predictors, **index)


def _index(args: ServiceSettings, uri: str) -> dict[str, Any]:
    place = Folder(uri)
    shards = read_manifest(place, "index").counts["shards"]
    groups = args.shard_groups or min(shards, MOST_GROUPS)
    held = _deployment(Registry, "registry", cpus=0, ongoing=100_000)
    registry = held.options(user_config={"index": place.absolute}).bind()
    encoder = _deployment(Encoder, "encoder", cpus=0.5)
    return {
        "registry": registry,
        "encoder": encoder.bind(registry, args.batching, args.limits.pixels),
        "groups": [
            _deployment(ShardGroup, f"shards-{group}", cpus=0.2).bind(registry, group, groups)
            for group in range(groups)
        ],
    }


def _predictor(args: ServiceSettings, name: str, uri: str) -> Application:
    deployment = _deployment(Predictor, f"model-{name}", cpus=0.5)
    return deployment.bind(Folder(uri).absolute, args.batching, args.limits.pixels)


def _deployment(kind: type[Any], name: str, cpus: float, ongoing: int = ONGOING) -> Any:
    deployment: Any = serve.deployment(kind)
    return deployment.options(
        name=name,
        max_ongoing_requests=ongoing,
        max_queued_requests=-1 if ongoing > ONGOING else QUEUE,
        ray_actor_options={"num_cpus": cpus},
        graceful_shutdown_timeout_s=20,
    )
