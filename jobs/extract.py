"""Extract features: `python jobs/extract.py --help`."""

import sys

from imgray.config import run_job
from imgray.engine.extract import ExtractConfig, extract

if __name__ == "__main__":
    sys.exit(run_job(ExtractConfig, extract))
