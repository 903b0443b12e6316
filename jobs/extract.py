"""Extract features: `python jobs/extract.py --help`."""

from imgray.cli import leave, run_job
from imgray.engine.extract import extract
from imgray.engine.settings import ExtractConfig

if __name__ == "__main__":
    leave(run_job(ExtractConfig, extract))
