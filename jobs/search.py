"""Search with images: `python jobs/search.py --help`."""

import sys

from imgray.config import run_job
from imgray.engine.search import SearchConfig, search

if __name__ == "__main__":
    sys.exit(run_job(SearchConfig, search))
