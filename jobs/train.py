"""Train a model: `python jobs/train.py --help`."""

from imgray.cli import leave, run_job
from imgray.engine.train import TrainConfig, train

if __name__ == "__main__":
    leave(run_job(TrainConfig, train))
