"""Jobs as their users run them: processes of their own, to be watched, killed and waited for."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def free_port() -> int:
    """A port of this machine on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Job:
    """A job in a session of its own."""

    process: subprocess.Popen[str]

    def wait_until(self, reached: Callable[[], bool], seconds: float = 600) -> None:
        """Wait for a point in the work; a job that ends before it fails the test."""
        end = time.monotonic() + seconds
        while not reached():
            if self.process.poll() is not None or time.monotonic() > end:
                self.kill()
                pytest.fail(f"the job did not come so far: {self.process.communicate()}")
            time.sleep(0.01)

    def tree(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def kill(self) -> None:
        """SIGKILL the driver alone: the workers must end by themselves, Ray's agents are slow."""
        if self.process.poll() is None:
            left = self.tree()
            agents = [process for process in left if _is_agent(process)]
            self.process.kill()
            self.process.wait()
            _, alive = psutil.wait_procs([p for p in left if p not in agents], timeout=60)
            assert not alive
            for process in agents:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()

    def finish(self, seconds: float = 900) -> tuple[int, str, str]:
        """Exit code, standard output and standard error."""
        try:
            output, error = self.process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            pytest.fail(f"still running after {seconds} s: {self.process.communicate()}")
        return self.process.returncode, output, error


def _is_agent(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.name().endswith("Agent")
    return False


Start = Callable[..., Job]


def checkpointed(output: Path, step: int) -> bool:
    """Whether a step of a training is in a checkpoint."""
    kept = output / "_work" / "checkpoints"
    return any(int(path.name.split("-")[1]) >= step for path in kept.glob("step-*"))


def await_step(job: Job, output: Path, step: int) -> None:
    """Wait until a step is in a checkpoint, and a little further."""
    job.wait_until(lambda: checkpointed(output, step))
    time.sleep(0.4)


def own_workers() -> list[psutil.Process]:
    """The processes of the tests' own Ray, but not of those that other programs have started."""
    raylets = (one for one in psutil.Process().children() if one.name() == "raylet")
    return [worker for raylet in raylets for worker in raylet.children(recursive=True)]


def train_worker() -> psutil.Process:
    """One of the workers of a training on the tests' own Ray."""
    living = (one for one in own_workers() if one.status() != psutil.STATUS_ZOMBIE)
    return next(one for one in living if "TrainWorker" in " ".join(one.cmdline()))


def kill_train_worker(output: Path, step: int, pause: float) -> None:
    """Kill a worker of a training on the tests' own Ray a while after a step is in a checkpoint."""
    end = time.monotonic() + 120
    while not checkpointed(output, step) and time.monotonic() < end:
        time.sleep(0.01)
    time.sleep(pause)
    train_worker().kill()


def killed_twice(
    start: Start, address: str, output: Path, flags: Sequence[str], steps: tuple[int, int]
) -> None:
    """Train on a Ray to the end, a worker killed after a step and the driver after another."""
    job = start("train", output, *flags, address=address)
    await_step(job, output, steps[0])
    train_worker().kill()
    await_step(job, output, steps[1])
    job.kill()
    assert not (output / "manifest.json").exists()
    code, _, error = start("train", output, *flags, address=address).finish(300)
    assert code == 0, error


def command(*words: str, folder: Path) -> Job:
    """Start `imgray WORDS` in a folder, as its users do."""
    script = Path(sys.executable).with_name("imgray")
    return program(*([script] if script.exists() else ["-m", "imgray"]), *words, folder=folder)


def program(*words: str | Path, folder: Path | None = None) -> Job:
    """Start `python WORDS`, in a folder, with a Ray of its own if any."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    command = [sys.executable, *words]
    return Job(subprocess.Popen(command, cwd=folder, text=True, start_new_session=True, **pipes))


def run(name: str, output: Path | str, *flags: str, address: str | None = None) -> Job:
    """Start `jobs/NAME.py` with flags; Ctrl-C reaches it as from a terminal."""
    process = subprocess.Popen(
        [sys.executable, f"jobs/{name}.py", "--output", str(output), *flags],
        cwd=ROOT,
        env=os.environ | ({"RAY_ADDRESS": address} if address else {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    return Job(process)
