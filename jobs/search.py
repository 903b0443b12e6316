"""Search with images: `python jobs/search.py --help`."""

from imgray.cli import leave, run_job
from imgray.engine.search import search
from imgray.engine.settings import SearchConfig

if __name__ == "__main__":
    leave(run_job(SearchConfig, search))
