"""Train a model: `python jobs/train.py --help`."""

import sys

from imgray.config import run_job
from imgray.engine.train import TrainConfig, train

if __name__ == "__main__":
    sys.exit(run_job(TrainConfig, train))
