"""The Serve application: `serve run imgray.serving.app:build index=URI`, or `cluster/serve.yaml`.

Serve reads the annotations of `build` to validate its arguments: they must not be strings.

Deployments by name: `service` answers HTTP; `registry` says which index is current; `encoder` has
the index's networks, `texts` its joint embedding; `shards-N` search; `model-NAME` runs a trained
model.
"""

from typing import Any

from ray import serve
from ray.serve import Application

from imgray.artifacts.folder import Folder
from imgray.artifacts.manifest import read_manifest
from imgray.errors import UserError
from imgray.serving.captions import Captions
from imgray.serving.encoder import Encoder
from imgray.serving.guard import ADMIN_KEYS, API_KEYS, Keys
from imgray.serving.http import Service
from imgray.serving.predictor import Predictor
from imgray.serving.settings import ServiceSettings
from imgray.serving.shards import ShardGroup
from imgray.serving.texts import JointEncoder
from imgray.serving.versions import Registry

MOST_SHARD_GROUPS = 4
QUEUE = 64
"""Calls that wait for a deployment, per replica that asks; one more is refused."""
ONGOING = 32
CPUS = 0.1
"""Of a replica: on one machine all share what there is."""
HEALTH_SECONDS = 2
END_SECONDS = 0.5
"""From one look to the next whether a replica that ends has finished its requests."""


def build(args: ServiceSettings) -> Application:
    """The application that serves an index, trained models, or both.

    Options of a deployment, such as replicas, GPUs and autoscaling, are set by its name in the
    Serve configuration; these are what one machine needs.

    Raises:
        UserError: at a URI is no such artifact, or there are neither keys nor `open`.
    """
    if not (args.index or args.models):
        raise UserError("nothing to serve: give an index, models, or both")
    keys, admins = Keys(args.keys_file, API_KEYS), Keys(args.admin_keys_file, ADMIN_KEYS)
    if not (keys or args.open):
        raise UserError(f"anyone could use it; set {API_KEYS} or keys_file, or open: true")
    Captions.of(args.captions)
    index = _index(args, args.index) if args.index else {}
    predictors = {name: _predictor(args, name, uri) for name, uri in args.models.items()}
    service = _deployment(args, Service, "service", ongoing=2 * args.limits.pending)
    return service.bind(args, keys, admins, predictors=predictors, **index)


def _index(args: ServiceSettings, uri: str) -> dict[str, Any]:
    place = Folder(uri)
    shards = read_manifest(place, "index").counts["shards"]
    shard_groups = args.shard_groups or min(shards, MOST_SHARD_GROUPS)
    registry = _deployment(args, Registry, "registry", ongoing=100_000).options(
        num_replicas=1, user_config={"index": place.absolute}
    )
    held = registry.bind()
    encoder = _deployment(args, Encoder, "encoder")
    return {
        "registry": held,
        "encoder": encoder.bind(held, args.batching, args.limits.pixels),
        "texts": _deployment(args, JointEncoder, "texts").bind(held, args.batching),
        "shard_groups": [
            _deployment(args, ShardGroup, f"shards-{group}").bind(held, group, shard_groups)
            for group in range(shard_groups)
        ],
    }


def _predictor(args: ServiceSettings, name: str, uri: str) -> Application:
    place = Folder(uri)
    read_manifest(place, "model")
    deployment = _deployment(args, Predictor, f"model-{name}")
    return deployment.bind(place.absolute, args.batching, args.limits)


def _deployment(args: ServiceSettings, kind: type[Any], name: str, ongoing: int = ONGOING) -> Any:
    """A deployment: a dead replica is soon noticed, one that ends finishes its requests."""
    deployment: Any = serve.deployment(kind)
    return deployment.options(
        name=name,
        num_replicas=args.replicas,
        max_ongoing_requests=ongoing,
        max_queued_requests=-1 if ongoing > ONGOING else QUEUE,
        ray_actor_options={"num_cpus": CPUS},
        health_check_period_s=HEALTH_SECONDS,
        graceful_shutdown_timeout_s=args.limits.seconds,
        graceful_shutdown_wait_loop_s=END_SECONDS,
    )
