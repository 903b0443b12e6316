"""Dual encoders in a folder of transformers or of sentence-transformers.

CLIP (Radford et al., ICML 2021) and SigLIP (Zhai et al., ICCV 2023). The picture tower is
transformers' own; the text tower is an encoder of sentence-transformers, whose folder may have the
model in a folder of its own, such as `0_CLIPModel`.
Pictures are squashed to a square, as for all networks, while CLIP was trained on centre crops.
"""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor, nn

from imgray.artifacts.folder import Folder
from imgray.artifacts.manifest import sha256
from imgray.config import Precision, validate
from imgray.errors import UserError
from imgray.features.backbones import Backbone, BackboneConfig, Colours
from imgray.features.sentences import MODULES, SUFFIXES, installed, sentence_encoder
from imgray.features.texts import LAYER, TextEncoder, files_at, json_at, linked

CONFIG, PREPROCESSORS = "config.json", ("preprocessor_config.json", "processor_config.json")
DUALS = ("clip", "siglip")
"""Types of models, as transformers names them."""
PADDED = ("siglip",)
"""Those that read texts padded to full length, as in their training."""
UNITS = "Normalize"
"""The only module of sentence-transformers that may follow: vectors have unit length as it is."""


class PictureTower(nn.Module):
    """The picture side of a dual encoder: float (B, 3, S, S) to (B, C).

    Args:
        config: the settings of the whole model, as its `config.json` has them.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        model = _model(config | {"text_config": config["text_config"] | {"num_hidden_layers": 1}})
        self.vision = model.vision_model
        self.projection = getattr(model, "visual_projection", nn.Identity())
        self.pooled = nn.Identity()

    def forward(self, pixels: Tensor) -> Tensor:
        found: Tensor = self.pooled(self.projection(self.vision(pixels).pooler_output))
        return found


def dual_type(place: Folder) -> str | None:
    """The type of the dual encoder in a folder; None where there is none. Raises `UserError`."""
    found = json_at(place, f"{_inner(place)}{CONFIG}").get("model_type")
    return found if found in DUALS else None


def space_of(place: Folder) -> str:
    """The digest of a model's tensors: towers that share it share a space."""
    return sha256("".join(e.sha256 for e in files_at(place, (".safetensors",))).encode())


def picture_tower(place: Folder, what: str, precision: Precision) -> Backbone:
    """The picture tower of a folder, ready to extract. Raises `UserError`."""
    for module in _modules(place)[1:]:
        if not (isinstance(module, dict) and str(module.get("type")).endswith(f".{UNITS}")):
            raise UserError(
                f"{place.uri}/{MODULES}: more follows the model than {UNITS}, and pictures would "
                "not pass through it; choose another model, or extract texts alone"
            )
    with linked(place, files_at(place, SUFFIXES)) as folder:
        model = _trained(str(folder / _inner(place)), what)
    config = json.loads(model.config.to_json_string(use_diff=False))
    tower = PictureTower(config)
    tower.vision.load_state_dict(model.vision_model.state_dict())
    if isinstance(tower.projection, nn.Linear):
        tower.projection.load_state_dict(model.visual_projection.state_dict())
    colours = _colours(place)
    settings = BackboneConfig(
        library="imgray",
        net=f"{PictureTower.__module__}:{PictureTower.__name__}",
        arguments={"config": config},
        layers={LAYER: "pooled"},
        size=model.config.vision_config.image_size,
        mean=colours.mean,
        std=colours.std,
        precision=precision,
        space=space_of(place),
    )
    return Backbone(tower, settings)


def text_tower(place: Folder, precision: Precision) -> TextEncoder:
    """The text tower of a folder. Raises `UserError`."""
    padded = dual_type(place) in PADDED
    return sentence_encoder(place, precision, padded=padded, space=space_of(place))


def _model(config: dict[str, Any]) -> Any:
    """A model of these settings, its weights yet to be loaded. Raises `UserError`."""
    if config.get("model_type") not in DUALS:
        raise UserError(f"{config.get('model_type')!r} is no dual encoder: {', '.join(DUALS)} are")
    installed("a dual encoder")
    from transformers import AutoConfig, AutoModel

    return AutoModel.from_config(AutoConfig.for_model(**config))


def _trained(folder: str, flag: str) -> Any:
    installed(flag)
    from transformers import AutoModel

    try:
        model, found = AutoModel.from_pretrained(
            folder,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            dtype=torch.float32,
            output_loading_info=True,
        )
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(
            f"{flag}: not a model of transformers with safetensors ({reason})"
        ) from None
    if lost := sorted(found["missing_keys"]):
        raise UserError(f"{flag}: {len(lost)} tensors are missing, the first is {lost[0]}")
    return model.eval()


def _colours(place: Folder) -> Colours:
    """How a model's pixels are standardised."""
    for name in (f"{_inner(place)}{file}" for file in PREPROCESSORS):
        found = json_at(place, name)
        found = found.get("image_processor", found)
        if isinstance(found, dict) and "image_mean" in found:
            given = {"mean": found["image_mean"], "std": found.get("image_std")}
            return validate(Colours, given, f"{place.uri}/{name}")
    raise UserError(f"{place.uri}: no {PREPROCESSORS[0]} with image_mean and image_std here")


def _inner(place: Folder) -> str:
    """Where the model of transformers lies in a folder, which may be of sentence-transformers."""
    modules = _modules(place)
    if not modules:
        return ""
    path = modules[0].get("path", "") if isinstance(modules[0], dict) else None
    if not isinstance(path, str) or ".." in path.split("/"):
        raise UserError(
            f"{place.uri}/{MODULES}: no list of modules in folders here; fetch it again"
        )
    return f"{path.strip('/')}/" if path.strip("/") else ""


def _modules(place: Folder) -> list[Any]:
    found: list[Any] = json_at(place, MODULES, list)
    return found
