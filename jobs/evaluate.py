"""Score an artifact against a known truth: `python jobs/evaluate.py --help`."""

import sys

from imgray.config import run_job
from imgray.engine.evaluate import EvaluateConfig, evaluate

if __name__ == "__main__":
    sys.exit(run_job(EvaluateConfig, evaluate))
