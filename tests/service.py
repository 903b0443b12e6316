"""A running service, as `jobs/serve.py`: two versions of an index, models of all kinds and none.

The first version has a joint part, and so is searched by words; the second has none.
"""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import requests
import words
from running import ROOT, free_port
from trained import RECIPES, recipe_of, train, untrained, write

from imgray.artifacts.folder import Folder
from imgray.engine.extract import extract
from imgray.engine.index import build_index
from imgray.engine.settings import ExtractConfig, IndexConfig
from imgray.serving.models import Served
from imgray.training.task import task_of

ADMIN = "an-admin-key"
KINDS = {"classify": "folders", "segment": "masks", "edges": "edges"}
OTHER = {"pairs": "pairs:Pairs"}


@dataclass(frozen=True)
class Artifacts:
    """Features of a collection, two indexes of them, and models by name: their folders.

    captions: a table about the images, in the columns `image` and `caption`.
    """

    images: Path
    captions: Path
    features: str
    indexes: tuple[str, str]
    models: dict[str, str]


def make(folder: Path, images: Path, net: str, weights: str) -> Artifacts:
    """Extract, index twice, and train; joins the Ray that runs."""
    features = str(folder / "features")
    extract(
        ExtractConfig(
            images=str(images), output=features, extractor=[f"{net}.mid", f"{net}.high"],
            weights=[weights], size=64, regions="pyramid", workers=1,
        )
    )  # fmt: skip
    names = [f"{net}.mid", f"{net}.high"]
    captions = words.write_captions(images, folder / "captions.csv")
    matcher = words.train_matcher(folder, captions, features, net)
    indexes = []
    for number, (shards, codewords, joint) in enumerate(((2, 8, matcher), (3, 12, None))):
        indexes.append(str(folder / f"index-{number}"))
        build_index(
            IndexConfig(
                features=features, output=indexes[-1], feature=names, shards=shards,
                codewords=[codewords], probes=[20], sample=300, dim=16, joint=joint,
            )
        )  # fmt: skip
    models = {}
    for kind, format in KINDS.items():
        output = Folder(str(folder / kind))
        train(format, write(format, folder / f"{kind}-data"), output)
        models[kind] = output.uri
    for name, task in OTHER.items():
        models[name] = str(folder / name)
        untrained(task, Folder(models[name]))
    return Artifacts(images, captions, features, (indexes[0], indexes[1]), models)


def declared() -> list[Served]:
    """The models as their tasks declare them, without artifacts."""
    tasks = {kind: RECIPES[format] for kind, format in KINDS.items()}
    tasks |= {name: {"task": task, "settings": {}} for name, task in OTHER.items()}
    recipes = {name: recipe_of(one["task"], **one["settings"]) for name, one in tasks.items()}
    tasks = {name: task_of(recipe, ()) for name, recipe in recipes.items()}
    return [Served(name, "", task, "", task.inputs) for name, task in tasks.items()]


@dataclass
class Service:
    """`jobs/serve.py` in a process of its own."""

    process: subprocess.Popen[str]
    url: str

    def replicas(self) -> dict[str, int]:
        """Process id of every replica by the name of its deployment."""
        tree = psutil.Process(self.process.pid).children(recursive=True)
        titles = {process.pid: " ".join(process.cmdline()) for process in tree}
        found = {pid: text.split(":") for pid, text in titles.items() if "ServeReplica" in text}
        return {parts[-1].partition(".")[0].strip(): pid for pid, parts in found.items()}

    def stop_at_work(self, picture: bytes) -> None:
        """Stop while batches are in work: they are answered, and the exit code is 0."""
        with ThreadPoolExecutor(6) as pool:
            asked = [pool.submit(ask_much, self.url, picture) for _ in range(6)]
            time.sleep(1.0)
            told = time.monotonic()
            code, error = self.stop()
            ends, statuses = zip(*(one.result() for one in asked), strict=True)
        assert code == 0, error
        assert set(statuses) == {200}, statuses
        assert max(ends) > told, "no request was in work"

    def stop(self) -> tuple[int, str]:
        """Exit code, and what stood on standard error."""
        self.process.send_signal(signal.SIGINT)
        try:
            _, error = self.process.communicate(timeout=180)
        finally:
            self.process.kill()
        return self.process.returncode, error


def start(*flags: str, **environment: str) -> Service:
    """Start on a free port, and wait until it answers."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "jobs/serve.py", "--port", str(port), *flags],
        cwd=ROOT,
        env=os.environ | environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    service = Service(process, f"http://127.0.0.1:{port}")
    end = time.monotonic() + 600
    while not ready(service):
        if service.process.poll() is not None or time.monotonic() > end:
            service.process.kill()
            pytest.fail(f"the service did not start: {service.process.communicate()[1]}")
        time.sleep(0.5)
    return service


def ask_much(url: str, picture: bytes) -> tuple[float, int]:
    """Ask for a batch that takes a while: when it was answered, and the status."""
    files = [("image", picture)] * 32
    status = requests.post(f"{url}/v1/search/batch", files=files, timeout=120).status_code
    return time.monotonic(), status


def ready(service: Service) -> bool:
    """Whether every part of a service answers."""
    try:
        return requests.get(f"{service.url}/readyz", timeout=5).status_code == 200
    except requests.RequestException:
        return False
