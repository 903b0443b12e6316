"""Serve an index and models over HTTP: `python jobs/serve.py --help`."""

from imgray.cli import leave, run_job
from imgray.serving.run import run
from imgray.serving.settings import ServeConfig

if __name__ == "__main__":
    leave(run_job(ServeConfig, run))
