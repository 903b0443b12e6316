"""The models of the demo: a classifier, a segmenter and an edge detector of built-in pictures."""

from __future__ import annotations

from pathlib import Path

from imgray.data.mosaics import write_mosaics
from imgray.data.samples import write_digits
from imgray.engine.cluster import cluster, cores
from imgray.engine.progress import say
from imgray.engine.settings import TrainConfig
from imgray.engine.train import train

MODELS = {
    "digits": ("cfn-digits", "digits"),
    "materials": ("fcfn-mosaics", "mosaics"),
    "edges": ("rds-mosaics", "mosaics"),
}
"""By name the recipe, and the data set that it learns from."""


def train_models(output: Path, overwrite: bool) -> dict[str, str]:
    """Train what is not trained yet: the folder of each model by its name. Raises `UserError`."""
    found = {name: output / "models" / name for name in MODELS}
    if overwrite or not all((folder / "manifest.json").exists() for folder in found.values()):
        write_digits(output / "digits")
        write_mosaics(output / "mosaics")
    with cluster():
        for name, (recipe, data) in MODELS.items():
            say(f"demo: training {name}")
            train(
                TrainConfig(
                    recipe=recipe,
                    data=str(output / data),
                    output=str(found[name]),
                    workers=str(min(2, cores())),
                    feeders=0,
                    overwrite=overwrite,
                )
            )
    return {name: str(folder) for name, folder in found.items()}
