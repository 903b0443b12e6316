"""Run a model over a collection: `python jobs/predict.py --help`."""

import sys

from imgray.config import run_job
from imgray.engine.predict import PredictConfig, predict

if __name__ == "__main__":
    sys.exit(run_job(PredictConfig, predict))
