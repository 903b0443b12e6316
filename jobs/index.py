"""Build a multi-DeepIndex: `python jobs/index.py --help`."""

import sys

from imgray.config import run_job
from imgray.engine.index import IndexConfig, build_index

if __name__ == "__main__":
    sys.exit(run_job(IndexConfig, build_index))
