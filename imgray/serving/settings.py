"""Settings of the service: arguments of the Serve application, in YAML, and of `imgray serve`.

Read before anything is served: this module needs neither Ray nor PyTorch.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from imgray.config import JobConfig

LOOPBACK = ("127.0.0.1", "localhost", "::1")
"""This machine, as only it calls itself."""


def _host(value: str) -> str:
    """A name or an address in lower case, that of IPv6 without its brackets."""
    name = value.lower()
    name = name[1:-1] if name.startswith("[") and name.endswith("]") else name
    if not re.fullmatch(r"[a-z0-9._-]+|[0-9a-f:.]*:[0-9a-f.]*:[0-9a-f:.]*", name):
        raise ValueError(f"{value!r}: expected a name or an address, without scheme and port")
    return name


Host = Annotated[str, AfterValidator(_host)]
ModelName = Annotated[str, Field(pattern="^[A-Za-z0-9_-]+$")]
"""Of which the address of a route is made."""


class Batching(BaseModel):
    """How requests are gathered into one forward pass."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    size: int = Field(
        default=16, ge=1, description="images or texts per forward pass at most; 1: no batches"
    )
    wait_ms: float = Field(
        default=0.0,
        ge=0,
        description="how long a batch waits to be filled; 0: it takes what is there",
    )

    def apply(self, batched: Any) -> None:
        """Set up a method under `serve.batch`."""
        batched.set_max_batch_size(self.size)
        batched.set_batch_wait_timeout_s(self.wait_ms / 1000)


class Limits(BaseModel):
    """What one request may be, and how much of them at once."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    body_bytes: int = Field(default=20 * 2**20, ge=1, description="bytes of a request's body")
    pixels: int = Field(
        default=40_000_000,
        ge=1,
        description="pixels of a picture, or of all those of a record",
    )
    batch: int = Field(default=32, ge=1, description="pictures, ids and texts of one request")
    pending: int = Field(
        default=100, ge=1, description="requests in work per HTTP replica; beyond it 503"
    )
    seconds: float = Field(default=30.0, gt=0, description="for one request; beyond it 504")
    shard_seconds: float = Field(default=5.0, gt=0, description="for one group of shards")
    retries: int = Field(default=1, ge=0, description="new attempts when a replica dies at work")


class CaptionSettings(BaseModel):
    """A table of what is said of the indexed images."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    table: str = Field(description="URI of a Parquet or CSV file with the columns id and text")
    columns: dict[str, str] = Field(
        default={}, description="the names of these columns, where they are others"
    )


class ServiceSettings(BaseModel):
    """What is served, and within which limits."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    index: str | None = Field(default=None, description="URI of an index artifact")
    models: dict[ModelName, str] = Field(default={}, description="URI of a model artifact by name")
    captions: CaptionSettings | None = Field(
        default=None, description="what is told of the results beside their scores"
    )
    replicas: int = Field(default=1, ge=1, description="of every part, where nothing else is said")
    shard_groups: int | None = Field(
        default=None, ge=1, description="deployments that the index shards are spread over"
    )
    missing_shards: Literal["answer", "refuse"] = Field(
        default="answer",
        description="when a shard does not answer: answer with the others, and say so, or refuse",
    )
    batching: Batching = Batching()
    limits: Limits = Limits()
    open: bool = Field(default=False, description="answer anyone, when there are no API keys")
    hosts: list[Host] = Field(
        default=[],
        description="names that it answers to where no key is needed, beside this machine's own",
    )
    keys_file: str | None = Field(
        default=None, description="file of API keys, one a line; see IMGRAY_API_KEYS"
    )
    admin_keys_file: str | None = Field(
        default=None, description="file of admin keys; see IMGRAY_ADMIN_KEYS"
    )


class ServeConfig(JobConfig):
    """Serve an index and trained models over HTTP, with a web page, until Ctrl-C."""

    index: str | None = Field(
        default=None, description="folder or s3://bucket/prefix of the index artifact"
    )
    model: list[str] = Field(
        default=[],
        description="trained models, by the name that requests call them: NAME=URI",
        json_schema_extra={"metavar": "NAME=URI"},
    )
    captions: str | None = Field(
        default=None,
        description="table of what is said of the images, to be shown under results: a Parquet or "
        "CSV file with the columns id and text",
    )
    columns: list[str] = Field(
        default=[],
        description="of the table of captions, the columns of other names, as id=image",
        json_schema_extra={"metavar": "NAME=COLUMN"},
    )
    replicas: int = Field(
        default=1, ge=1, description="of every part: with 2, one may die unnoticed"
    )
    host: str = Field(
        default="127.0.0.1", description="address to listen on; 0.0.0.0 needs API keys"
    )
    port: int = Field(default=8000, ge=1, le=65535, description="port to listen on")
    hosts: list[Host] = Field(
        default=[],
        description="without API keys, names that a reverse proxy forwards for, beside localhost",
    )
    keys_file: str | None = Field(
        default=None, description="API keys, one a line (or IMGRAY_API_KEYS, separated by commas)"
    )
    admin_keys_file: str | None = Field(
        default=None, description="keys that may swap the index (or IMGRAY_ADMIN_KEYS)"
    )
