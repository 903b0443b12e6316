"""Dual encoders: a picture tower and a text tower whose vectors lie in one space.

CLIP (Radford et al., ICML 2021) and SigLIP (Zhai et al., ICCV 2023), from a local folder of
transformers or of sentence-transformers. The picture tower is a network like others, whose layer
`high` is the pooled and projected vector; the text tower is an encoder of sentence-transformers.
Pictures are squashed to a square, as for all networks, while CLIP was trained on centre crops.
"""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor, nn

from imgray.artifacts.folder import Folder
from imgray.artifacts.manifest import sha256
from imgray.config import Precision
from imgray.errors import UserError
from imgray.features.backbones import Backbone, BackboneConfig
from imgray.features.sentences import MODULES, SUFFIXES, installed
from imgray.features.texts import LAYER, files_at, linked
from imgray.features.weights import Request

CONFIG, PREPROCESSORS = "config.json", ("preprocessor_config.json", "processor_config.json")
DUALS = ("clip", "siglip")
"""Types of models, as transformers names them."""
PADDED = ("siglip",)
"""Those that read texts padded to full length, as in their training."""


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
    found = _json(place, f"{_inner(place)}{CONFIG}").get("model_type")
    return found if found in DUALS else None


def space_of(place: Folder) -> str:
    """The digest of a model's tensors: towers that share it share a space."""
    return sha256("".join(e.sha256 for e in files_at(place, (".safetensors",))).encode())


def picture_tower(
    request: Request, size: int | None = None, precision: Precision = "float32"
) -> Backbone:
    """The picture tower of the dual encoder in a folder, `request.weights`, ready to extract.

    Raises:
        UserError: it cannot be read, or another layer or size is asked of it than it has.
    """
    flag = f"--weights {request.net}={request.weights}"
    if request.layers != (LAYER,):
        raise UserError(f"{flag}: a dual encoder has the layer {LAYER} alone")
    place = Folder(request.weights)
    with linked(place, files_at(place, SUFFIXES)) as folder:
        model = _trained(str(folder / _inner(place)), flag)
    own = model.config.vision_config.image_size
    if size not in (None, own):
        raise UserError(f"{flag}: takes {own} x {own} pixels; leave out --size {size}")
    config = json.loads(model.config.to_json_string(use_diff=False))
    tower = PictureTower(config)
    tower.vision.load_state_dict(model.vision_model.state_dict())
    if isinstance(tower.projection, nn.Linear):
        tower.projection.load_state_dict(model.visual_projection.state_dict())
    mean, std = _colours(place, config["model_type"])
    settings = BackboneConfig(
        library="imgray",
        net=f"{PictureTower.__module__}:{PictureTower.__name__}",
        arguments={"config": config},
        layers={LAYER: "pooled"},
        size=own,
        mean=mean,
        std=std,
        precision=precision,
        space=space_of(place),
    )
    return Backbone(tower, settings)


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


def _colours(place: Folder, kind: str) -> tuple[Any, Any]:
    """The mean and the deviation by which a model standardises RGB from 0 to 1."""
    for name in PREPROCESSORS:
        found = _json(place, f"{_inner(place)}{name}")
        found = found.get("image_processor", found)
        if "image_mean" in found:
            return tuple(found["image_mean"]), tuple(found["image_std"])
    raise UserError(f"{place.uri}: no {PREPROCESSORS[0]} with image_mean and image_std here")


def _inner(place: Folder) -> str:
    """Where the model of transformers lies in a folder, which may be of sentence-transformers."""
    if not place.exists(MODULES):
        return ""
    modules = _json(place, MODULES, list)
    path = modules[0].get("path", "") if modules and isinstance(modules[0], dict) else None
    if not isinstance(path, str) or ".." in path.split("/"):
        raise UserError(
            f"{place.uri}/{MODULES}: no list of modules in folders here; fetch it again"
        )
    return f"{path.strip('/')}/" if path.strip("/") else ""


def _json(place: Folder, name: str, kind: type[list[Any]] | type[dict[str, Any]] = dict) -> Any:
    if not place.exists(name):
        return kind()
    try:
        found = json.loads(place.read(name))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, kind):
        raise UserError(f"{place.uri}/{name}: not the JSON of a model; fetch the model again")
    return found
