"""Run a model over a collection: `python jobs/predict.py --help`."""

from imgray.cli import leave, run_job
from imgray.engine.predict import predict
from imgray.engine.settings import PredictConfig

if __name__ == "__main__":
    leave(run_job(PredictConfig, predict))
