"""The models of the demo, trained on built-in pictures.

A classifier, a segmenter and an edge detector, and a translator between black and white and colour.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from imgray.data.mosaics import write_mosaics
from imgray.data.samples import write_digits, write_tones
from imgray.engine.cluster import cluster, cores
from imgray.engine.progress import say
from imgray.engine.settings import TrainConfig
from imgray.engine.train import read_recipe, train

WRITERS: Mapping[str, Callable[[Path], object]] = {
    "digits": write_digits,
    "mosaics": write_mosaics,
    "tones": write_tones,
}
"""What writes each data set."""
Trained = Mapping[str, tuple[str, str]]
MODELS: Trained = {
    "digits": ("cfn-digits", "digits"),
    "materials": ("fcfn-mosaics", "mosaics"),
    "edges": ("rds-mosaics", "mosaics"),
}
"""By name the recipe, and the data set that it learns from."""
TRANSLATOR: Trained = {"tint": ("cyclegan-tones", "tones")}


def train_models(models: Trained, output: Path, overwrite: bool) -> dict[str, str]:
    """Train what is not trained yet: the folder of each model by its name. Raises `UserError`."""
    found = {name: output / "models" / name for name in models}
    lacking = [n for n, folder in found.items() if not (folder / "manifest.json").exists()]
    for data in {models[name][1] for name in (models if overwrite else lacking)}:
        WRITERS[data](output / data)
    with cluster():
        for name, (recipe, data) in models.items():
            say(f"demo: training {name}")
            train(
                TrainConfig(
                    recipe=recipe,
                    data=str(output / data),
                    output=str(found[name]),
                    workers=str(min(2, cores(), read_recipe(recipe, []).batch_size)),
                    feeders=0,
                    overwrite=overwrite,
                )
            )
    return {name: str(folder) for name, folder in found.items()}
