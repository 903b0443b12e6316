"""Train a model: `python jobs/train.py --help`."""

from imgray.cli import leave, run_job
from imgray.engine.settings import TrainConfig
from imgray.engine.train import train

if __name__ == "__main__":
    leave(run_job(TrainConfig, train))
