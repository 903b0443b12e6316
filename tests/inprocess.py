"""Jobs and the service in this process, without Ray: they answer as workers and replicas do."""

import inspect
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MethodType, SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import ray
from fastapi.testclient import TestClient
from ray import serve

from imgray.artifacts.folder import Folder
from imgray.data.sources import Source
from imgray.drawing import plots
from imgray.engine import collection
from imgray.engine import train as training
from imgray.engine.cluster import Pool
from imgray.engine.examples import open_examples
from imgray.engine.receipts import Receipt
from imgray.engine.settings import TrainConfig
from imgray.engine.worker import item_of
from imgray.errors import UserError
from imgray.serving.encoder import Encoder
from imgray.serving.guard import ADMIN_KEYS, API_KEYS, Keys
from imgray.serving.http import Service, app
from imgray.serving.predictor import Predictor
from imgray.serving.settings import Batching, ServiceSettings
from imgray.serving.shards import ShardGroup
from imgray.serving.texts import JointEncoder
from imgray.serving.versions import Registry
from imgray.training.loop import Run
from imgray.training.models import load_start
from imgray.training.recipe import Recipe


class Cluster:
    """Stands for Ray: runs tasks at once, and notes what they ask for."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.tasks: list[dict[str, float]] = []
        self.patch = patch
        for name in ("remote", "wait", "get", "put", "cancel"):
            patch.setattr(ray, name, getattr(self, name))
        patch.setattr(ray, "is_initialized", lambda: True)
        patch.setattr(ray, "get_gpu_ids", lambda: [])
        self.has("", CPU=1.0)

    def has(self, address: str, **resources: float) -> None:
        """Set its resources, and its address, which is empty on this machine."""
        self.patch.setenv("RAY_ADDRESS", address)
        self.patch.setattr(ray, "cluster_resources", lambda: resources)

    def remote(self, **options: float) -> Callable[..., Any]:
        def submit(function: Callable[..., Any], *arguments: Any) -> Any:
            self.tasks.append({name: options.get(name, 0) for name in ("num_cpus", "num_gpus")})
            return function(*arguments)

        return lambda function: SimpleNamespace(remote=lambda *args: submit(function, *args))

    def wait(self, waiting: list[Any]) -> tuple[list[Any], list[Any]]:
        return waiting[:1], waiting[1:]

    def get(self, found: Any) -> Any:
        return found

    put = cancel = get


@contextmanager
def jobs() -> Iterator[Cluster]:
    """Within the block, jobs over collections, training and evaluation run in this process.

    They draw no curves, which takes longer than a small training.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "curves", lambda lines: b"")
        patch.setattr(collection, "_run", _shards)
        patch.setattr(training, "_fit", _fit)
        yield Cluster(patch)


def _shards(
    pending: list[tuple[int, Receipt | None]], worker: dict[str, Any], pool: Pool
) -> Iterator[Receipt]:
    if pending:
        items = [item_of(*shard) for shard in pending]
        columns = {name: np.array([item[name] for item in items]) for name in items[0]}
        for found in collection.Worker(**worker, pool=pool)(columns):
            if found["error"][0]:
                raise UserError(found["error"][0])
            yield Receipt.model_validate_json(found["receipt"][0])


def _fit(config: TrainConfig, recipe: Recipe, data: Source, kept: Folder, output: Folder) -> None:
    start = load_start(recipe.starts) if recipe.start else None
    Run(recipe, open_examples(recipe, data), kept, None, start).fit()


class _Handle:
    """Stands for a deployment of one replica, in this process: each method has a `remote`."""

    def __init__(self, kind: Any, *arguments: Any) -> None:
        self.replica, self.arguments = object.__new__(kind), arguments
        for name, method in vars(kind).items():
            if hasattr(method, "set_max_batch_size"):  # else one queue for all of this process
                own = serve.batch(MethodType(method.__wrapped__, self.replica))
                setattr(self.replica, name, own)

    async def start(self) -> None:
        """As Serve does: in the event loop that answers."""
        await _awaited(self.replica.__init__(*self.arguments))

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.replica, name)
        return SimpleNamespace(remote=lambda *arguments: _awaited(method(*arguments)))


async def _awaited(found: Any) -> Any:
    return await found if inspect.isawaitable(found) else found


ANSWERING: ContextVar[Any] = ContextVar("the service whose request or start this is")


def _replica() -> SimpleNamespace:
    """What Serve says of the replica that asks."""
    return SimpleNamespace(
        servable_object=ANSWERING.get(),
        replica_id=SimpleNamespace(unique_id=uuid.uuid4().hex),
        _deployment_config=SimpleNamespace(max_ongoing_requests=100),  # batches look there
    )


@contextmanager
def client(
    models: Mapping[str, str], index: str | None = None, shard_groups: int = 1, **settings: Any
) -> Iterator[TestClient]:
    """A client of a service of models, by name their URIs, and an index; it has no keys.

    `settings` are further ones of the service.
    """
    given = {"models": dict(models), "index": index, "batching": Batching(size=1), **settings}
    config = ServiceSettings(open=True, **given)
    batching, limits = config.batching, config.limits
    predictors = {name: _Handle(Predictor, uri, batching, limits) for name, uri in models.items()}
    registry = _Handle(Registry)
    groups = [_Handle(ShardGroup, registry, n, shard_groups) for n in range(shard_groups)]
    parts = {
        "registry": registry,
        "encoder": _Handle(Encoder, registry, batching, limits.pixels),
        "texts": _Handle(JointEncoder, registry, batching),
    }
    kind: Any = Service.__mro__[1]  # without what Serve adds
    keys = Keys(None, API_KEYS), Keys(None, ADMIN_KEYS)
    service = object.__new__(kind)
    replicas = [*parts.values(), *groups] if index else []

    async def start() -> None:
        ANSWERING.set(service)
        for part in [*predictors.values(), *replicas]:
            await part.start()
            if part is registry:
                await registry.replica.reconfigure({"index": index})
        of_index = {**parts, "shard_groups": groups} if index else {}
        await service.__init__(config, *keys, predictors=predictors, **of_index)

    async def stop() -> None:
        """Replicas follow the registry until they end."""
        for part in [*(one.replica for one in replicas), service.searcher]:
            if hasattr(part, "holder"):
                part.holder.following.cancel()

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        ANSWERING.set(service)
        await app(scope, receive, send)

    with (
        patch("ray.serve.get_replica_context", _replica),
        TestClient(answer, base_url="http://localhost", raise_server_exceptions=False) as found,
    ):
        assert found.portal is not None
        found.portal.call(start)
        yield found
        found.portal.call(stop)
