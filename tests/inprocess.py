"""The service in this process, without Ray: its models answer as their replicas do."""

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from fastapi.testclient import TestClient

from imgray.data.fields import Values
from imgray.data.pixels import Rejected
from imgray.serving.guard import ADMIN_KEYS, API_KEYS, Keys
from imgray.serving.http import Service, app
from imgray.serving.predictor import Answer, answer_of, prepared_of
from imgray.serving.settings import ServiceSettings
from imgray.training.models import load_model


class _Predictor:
    """In place of a deployment's handle: each method has a `remote`."""

    def __init__(self, uri: str, pixels: int) -> None:
        self.model, self.pixels = load_model(uri), pixels
        self.predict = SimpleNamespace(remote=self._predict)

    async def _predict(self, values: Values, painted: bool) -> Answer | Rejected:
        try:
            prepared = prepared_of(self.model.task, values, self.pixels)
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
