"""Build a multi-DeepIndex: `python jobs/index.py --help`."""

from imgray.cli import leave, run_job
from imgray.engine.index import IndexConfig, build_index

if __name__ == "__main__":
    leave(run_job(IndexConfig, build_index))
