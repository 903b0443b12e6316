"""The demo: `python jobs/demo.py --help`."""

import sys

from imgray.config import run_job
from imgray.engine.demo import DemoConfig, demo

if __name__ == "__main__":
    sys.exit(run_job(DemoConfig, demo))
