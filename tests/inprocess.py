"""Jobs and the service in this process, without Ray: they answer as workers and replicas do."""

import asyncio
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import ray
from fastapi.testclient import TestClient

from imgray.artifacts.folder import Folder
from imgray.data.fields import Values
from imgray.data.pixels import Rejected
from imgray.data.sources import Source
from imgray.engine import collection
from imgray.engine import train as training
from imgray.engine.cluster import Pool
from imgray.engine.collection import Receipt
from imgray.engine.examples import open_examples
from imgray.engine.settings import TrainConfig
from imgray.errors import UserError
from imgray.serving.guard import ADMIN_KEYS, API_KEYS, Keys
from imgray.serving.http import Service, app
from imgray.serving.predictor import Answer, answer_of, prepared_of
from imgray.serving.settings import ServiceSettings
from imgray.training.loop import Run
from imgray.training.models import load_model, load_start
from imgray.training.recipe import Recipe


class Cluster:
    """Stands for Ray: runs tasks at once, and notes what they ask for."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.tasks: list[dict[str, float]] = []
        self.patch = patch
        for name in ("remote", "wait", "get", "put"):
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

    put = get


@contextmanager
def jobs() -> Iterator[Cluster]:
    """Within the block, jobs over collections, training and evaluation run in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(collection, "_run", _shards)
        patch.setattr(training, "_fit", _fit)
        yield Cluster(patch)


def _shards(pending: list[int], worker: dict[str, Any], pool: Pool) -> Iterator[Receipt]:
    if pending:
        for found in collection.Worker(**worker, pool=pool)({"shard": np.array(pending)}):
            if found["error"][0]:
                raise UserError(found["error"][0])
            yield Receipt.model_validate_json(found["receipt"][0])


def _fit(config: TrainConfig, recipe: Recipe, data: Source, kept: Folder, output: Folder) -> None:
    start = load_start(recipe.starts) if recipe.start else None
    Run(recipe, open_examples(recipe, data), kept, None, start).fit()


class _Predictor:
    """In place of a deployment's handle: each method has a `remote`."""

    def __init__(self, uri: str, pixels: int) -> None:
        self.model, self.pixels = load_model(uri), pixels
        self.predict = SimpleNamespace(remote=self._predict)

    async def _predict(self, values: Values, painted: bool) -> Answer | Rejected:
        try:
            prepared = prepared_of(self.model, values, self.pixels)
        except Rejected as error:
            return error
        [prediction] = self.model.predict([prepared], "cpu")
        return answer_of(self.model.task, prediction, painted)


@contextmanager
def client(models: Mapping[str, str], **limits: Any) -> Iterator[TestClient]:
    """A client of a service that serves models, by name their URIs, and no index."""
    settings = ServiceSettings(models=dict(models), open=True, limits=limits)
    predictors = {name: _Predictor(uri, settings.limits.pixels) for name, uri in models.items()}
    kind: Any = Service.__mro__[1]  # without what Serve adds
    keys = Keys(None, API_KEYS), Keys(None, ADMIN_KEYS)
    service = object.__new__(kind)
    asyncio.run(service.__init__(settings, *keys, predictors=predictors))
    with patch("ray.serve.get_replica_context", lambda: SimpleNamespace(servable_object=service)):
        yield TestClient(app, base_url="http://localhost", raise_server_exceptions=False)
