"""The demo: `python jobs/demo.py --help`."""

from imgray.cli import leave, run_job
from imgray.engine.demo import DemoConfig, demo

if __name__ == "__main__":
    leave(run_job(DemoConfig, demo))
