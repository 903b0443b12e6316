"""Score an artifact against a known truth: `python jobs/evaluate.py --help`."""

from imgray.cli import leave, run_one_of
from imgray.engine.evaluate_index import evaluate
from imgray.engine.evaluate_model import evaluate_model
from imgray.engine.settings import EvaluateConfig, EvaluateModelConfig

if __name__ == "__main__":
    job = (EvaluateModelConfig, evaluate_model)
    jobs = {"classification": job, "segmentation": job, "edges": job}
    leave(run_one_of({"retrieval": (EvaluateConfig, evaluate), **jobs}))
