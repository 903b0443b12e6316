"""The demo: `python jobs/demo.py --help`."""

from imgray.cli import leave, run_job
from imgray.engine.demo import demo
from imgray.engine.settings import DemoConfig

if __name__ == "__main__":
    leave(run_job(DemoConfig, demo))
