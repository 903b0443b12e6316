"""The command `imgray`: what it can do, and where that lies."""

from __future__ import annotations

import sys
from typing import NoReturn

from imgray.cli import Command, always, leave, run_command

SETTINGS = "imgray.engine.settings"
COMMANDS = {
    "extract": Command(f"{SETTINGS}:ExtractConfig", "imgray.engine.extract:extract"),
    "index": Command(f"{SETTINGS}:IndexConfig", "imgray.engine.index:build_index", always),
    "search": Command(f"{SETTINGS}:SearchConfig", "imgray.engine.search:search", always),
    "evaluate index": Command(
        f"{SETTINGS}:EvaluateConfig",
        "imgray.engine.evaluate_index:evaluate",
        always,
        synonyms=("evaluate retrieval",),
    ),
    "evaluate model": Command(
        f"{SETTINGS}:EvaluateModelConfig",
        "imgray.engine.evaluate_model:evaluate_model",
        synonyms=("evaluate classification", "evaluate segmentation", "evaluate edges"),
    ),
    "train": Command(
        f"{SETTINGS}:TrainConfig",
        "imgray.engine.train:train",
        listing="imgray.training.catalog:listing",
    ),
    "predict": Command(f"{SETTINGS}:PredictConfig", "imgray.engine.predict:predict"),
    "serve": Command(
        "imgray.serving.settings:ServeConfig",
        "imgray.serving.run:run",
        lambda config: config.index is not None,
    ),
    "demo": Command(f"{SETTINGS}:DemoConfig", "imgray.engine.demo:demo", always),
    "verify": Command(f"{SETTINGS}:VerifyConfig", "imgray.engine.verify:verify"),
}


def main(*command: str) -> NoReturn:
    """Run the command line to its end; a script in `jobs/` names the command that it stands for."""
    leave(run_command(COMMANDS, [*command, *sys.argv[1:]]))


if __name__ == "__main__":
    main()
