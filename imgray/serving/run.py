"""Serve on this machine, or on the cluster that `RAY_ADDRESS` names, until it is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import signal
import socket
import threading
from collections.abc import Mapping
from types import FrameType
from typing import Any

import ray
from pydantic import BaseModel
from ray import serve
from ray.serve import Application
from ray.serve.context import _get_global_client
from ray.serve.schema import APIType, DeploymentStatusOverview

from imgray.artifacts.folder import Folder, located
from imgray.data.layout import pairs
from imgray.engine.cluster import cluster, named_cluster, quiet
from imgray.engine.progress import say
from imgray.errors import UserError
from imgray.serving.app import build
from imgray.serving.guard import API_KEYS, Keys
from imgray.serving.settings import LOOPBACK, CaptionSettings, ServeConfig, ServiceSettings

NAME = "imgray"
DRAINING = "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S"
"""In the high-throughput mode replicas wait so long for load balancers before they end: by default
half a minute, but none stands before a Ray that is started here."""


class ServeResult(BaseModel):
    """How serving ended."""

    address: str

    def __str__(self) -> str:
        return f"stopped: {self.address}"


def run(config: ServeConfig) -> ServeResult:
    """Serve; SIGINT and SIGTERM let the requests in work finish, and end what was started here."""
    shared = _shared_ray()
    settings = ServiceSettings(
        open=_is_open(config, shared),
        index=Folder(config.index).absolute if config.index else None,
        models=dict(_pair(item) for item in config.model),
        captions=_captions(config),
        replicas=config.replicas,
        hosts=config.hosts,
        keys_file=config.keys_file,
        admin_keys_file=config.admin_keys_file,
    )
    application = build(settings)
    if not shared:
        _check_free(config.host, config.port)
        os.environ.setdefault(DRAINING, "1")
    address = f"http://{config.host}:{config.port}"
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    with cluster():
        running = _details()
        _check_way_is_free(running, config)
        _start(application, config)
        say(f"serve: {address} (Ctrl-C stops it)")
        _until_told()
        if _is_replaced():
            say("serve: what was deployed in its place stays")
        else:
            say("serve: finishing the requests in work")
            with quiet():
                asyncio.run(_end(settings.limits.seconds, all_of_serve=not running))
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


def _shared_ray() -> str | None:
    """The Ray that others may use too, unless this process starts one of its own."""
    address = named_cluster()
    if address:
        return f"RAY_ADDRESS={address}"
    return "the Ray that this process is connected to" if ray.is_initialized() else None


def _details() -> dict[str, Any]:
    """What Serve says of itself, as `serve.schema.ServeInstanceDetails`; nothing where it is not.

    The public `serve.status` leaves out where it listens, and the routes and sources.
    """
    client = _get_global_client(raise_if_no_controller_running=False)
    return dict(client.get_serve_details()) if client else {}


def _check_way_is_free(running: Mapping[str, Any], config: ServeConfig) -> None:
    """Refuse a Serve that listens elsewhere than asked, or answers there already.

    Serve would keep its address, and replace the application. Raises `UserError`.
    """
    if not running:
        return
    host, port = (running["http_options"][name] for name in ("host", "port"))
    if (host, port) != (config.host, config.port):
        raise UserError(
            f"--host {config.host} --port {config.port}: Serve runs on this Ray already, and"
            f" listens with --host {host} --port {port}: say these, or end it with `serve shutdown`"
        )
    for name, application in running["applications"].items():
        if name == NAME or application["route_prefix"] == "/":
            raise UserError(
                f"the application {name!r} answers on this Ray already;"
                f" `serve delete {name}` ends it, `serve deploy` changes it"
            )


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
    if not (equals and uri and re.fullmatch("[A-Za-z0-9_-]+", name)):
        raise UserError(f"--model {item}: expected NAME=URI, NAME of letters, digits, - and _")
    return name, Folder(uri).absolute


def _captions(config: ServeConfig) -> CaptionSettings | None:
    columns = pairs("--columns", config.columns, "COLUMN")
    if config.captions:
        folder, name = located(config.captions)
        return CaptionSettings(table=f"{folder.absolute.rstrip('/')}/{name}", columns=columns)
    if columns:
        raise UserError("--columns: they are those of --captions, a table")
    return None


def _is_open(config: ServeConfig, shared: str | None) -> bool:
    """Whether anyone may ask: without keys, on this machine, on a Ray that nobody shares.

    Raises:
        UserError: there are no keys, and others could ask.
    """
    if Keys(config.keys_file, API_KEYS):
        return False
    exposed = shared if config.host in LOOPBACK else f"--host {config.host}"
    if exposed:
        raise UserError(f"{exposed}: anyone could use it; set {API_KEYS} or --keys-file first")
    return True


def _is_replaced() -> bool:
    """Whether `serve deploy` has put another application in the place of this one, or ended it."""
    application = _details().get("applications", {}).get(NAME)
    return not application or application["source"] != APIType.IMPERATIVE


async def _end(seconds: float, all_of_serve: bool) -> None:
    """Let the requests in work finish before anything that answers them ends.

    In one event loop, to which a handle belongs in Serve's high-throughput mode.
    """
    with contextlib.suppress(TimeoutError):
        told = serve.get_app_handle(NAME).broadcast("drain")
        await told.results_async(timeout_s=seconds, return_exceptions=True)
    serve.delete(NAME)
    if all_of_serve and not serve.status().applications:
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
