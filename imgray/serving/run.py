"""Serve on this machine, or on the cluster that `RAY_ADDRESS` names, until it is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import signal
import socket
import threading
from collections.abc import Mapping
from types import FrameType

from pydantic import BaseModel
from ray import serve
from ray.serve import Application
from ray.serve.schema import DeploymentStatusOverview

from imgray.artifacts.folder import Folder
from imgray.engine.cluster import cluster, named_cluster, quiet
from imgray.engine.progress import say
from imgray.errors import UserError
from imgray.serving.app import build
from imgray.serving.guard import ADMIN_KEYS, API_KEYS, Keys
from imgray.serving.settings import ServeConfig, ServiceSettings

NAME = "imgray"


class ServeResult(BaseModel):
    """How serving ended."""

    address: str

    def __str__(self) -> str:
        return f"stopped: {self.address}"


def run(config: ServeConfig) -> ServeResult:
    """Serve; SIGINT and SIGTERM let the requests in work finish, and end it."""
    settings = ServiceSettings(
        open=_may_be_open(config),
        index=Folder(config.index).absolute if config.index else None,
        models=dict(_pair(item) for item in config.model),
        replicas=config.replicas,
        keys_file=config.keys_file,
        admin_keys_file=config.admin_keys_file,
    )
    application = build(settings)
    local = not named_cluster()
    if local:
        _check_free(config.host, config.port)
    address = f"http://{config.host}:{config.port}"
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    with cluster():
        _start(application, config)
        say(f"serve: {address} (Ctrl-C stops it)")
        _until_told()
        say("serve: finishing the requests in work")
        with quiet():
            asyncio.run(_end(settings.limits.seconds, local))
    return ServeResult(address=address)


def _check_free(host: str, port: int) -> None:
    """Refuse an address that cannot be listened on, before anything starts. Raises `UserError`."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            text = f"--host {host} --port {port}: {error.strerror or error}; name another"
            raise UserError(text) from None


def _start(application: Application, config: ServeConfig) -> None:
    """Start every part. Raises `UserError` with the reason of the first that cannot."""
    try:
        serve.start(http_options={"host": config.host, "port": config.port})
        serve.run(application, name=NAME)
    except RuntimeError as error:
        text = str(error)
        for name, part in _parts().items():
            if part.message:
                text = f"{name}: {_reason(part.message)}"
                break
        serve.delete(NAME)
        raise UserError(f"the service does not start: {text}") from None


def _parts() -> Mapping[str, DeploymentStatusOverview]:
    status = serve.status().applications.get(NAME)
    return status.deployments if status else {}


def _reason(message: str) -> str:
    """What a replica died of: the user's error in its traceback, or the last line."""
    found = re.findall(r"UserError: (.*?)(?:\\n|\n|'?$)", message)
    return found[-1] if found else message.strip().splitlines()[-1]


def _pair(item: str) -> tuple[str, str]:
    name, equals, uri = item.partition("=")
    if not (equals and uri and name.replace("-", "").replace("_", "").isalnum()):
        raise UserError(f"--model {item}: expected NAME=URI, NAME of letters, digits, - and _")
    return name, Folder(uri).absolute


def _may_be_open(config: ServeConfig) -> bool:
    """Anyone may ask on this machine; others need a key. Raises `UserError`."""
    keys = Keys(config.keys_file, API_KEYS)
    Keys(config.admin_keys_file, ADMIN_KEYS)
    local = config.host in ("127.0.0.1", "localhost", "::1")
    if not (local or keys):
        raise UserError(
            f"--host {config.host}: anyone could use it; set {API_KEYS} or --keys-file first"
        )
    return local


async def _end(seconds: float, all_of_serve: bool) -> None:
    """Let the requests in work finish before anything that answers them ends.

    In one event loop, to which a handle belongs in Serve's high-throughput mode.
    """
    with contextlib.suppress(TimeoutError):
        told = serve.get_app_handle(NAME).broadcast("drain")
        await told.results_async(timeout_s=seconds, return_exceptions=True)
    serve.delete(NAME)
    if all_of_serve:
        await serve.shutdown_async()


def _until_told() -> None:
    """Wait for SIGINT or SIGTERM."""
    told = threading.Event()

    def tell(_signal: int, _frame: FrameType | None) -> None:
        told.set()

    before = {number: signal.signal(number, tell) for number in (signal.SIGINT, signal.SIGTERM)}
    told.wait()
    for number, handler in before.items():
        signal.signal(number, handler)
