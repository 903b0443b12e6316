"""Build a multi-DeepIndex: `python jobs/index.py --help`."""

from imgray.cli import leave, run_job
from imgray.engine.index import build_index
from imgray.engine.settings import IndexConfig

if __name__ == "__main__":
    leave(run_job(IndexConfig, build_index))
