"""Dual encoders in a folder as open_clip writes it: settings, tensors and a tokenizer.

Cherti et al., CVPR 2023. Pictures are squashed to a square of the model's size, bicubically, as for
all networks, and standardised as the folder says: that is what open_clip does where the folder's
`resize_mode` is `squash` (SigLIP), while `shortest` and `longest` cut off or pad. Texts are always
padded to full length, as open_clip does.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from imgray.artifacts.folder import Folder
from imgray.config import Precision
from imgray.errors import UserError
from imgray.features.backbones import Backbone, BackboneConfig
from imgray.features.openclip_folder import (
    described,
    files_of,
    model_of,
    reason_of,
    space_of,
    tokenizer_of,
    trained,
)
from imgray.features.sentences import rows_on
from imgray.features.texts import LAYER, TextEncoder, TextNet, linked

NO_TEXTS = {"width": 8, "heads": 1, "layers": 1, "vocab_size": 1, "context_length": 1}
"""The settings of a text tower that is thrown away."""
PICTURES = ("embed_dim", "vision_cfg", "quick_gelu")
"""The settings of a model that its pictures depend on."""


class PictureTower(nn.Module):
    """The picture side of a dual encoder: float (B, 3, S, S) to (B, C).

    Args:
        config: the settings of the model that are `PICTURES`.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        model = model_of(config | {"text_cfg": NO_TEXTS}, "a picture tower of open_clip")
        self.vision = model.visual
        self.pooled = nn.Identity()

    def forward(self, pixels: Tensor) -> Tensor:
        found: Tensor = self.pooled(self.vision(pixels))
        return found


class OpenClipEncoder(TextEncoder):
    """The text side. All texts have `TextNet.longest` tokens, longer ones are cut there."""

    def __init__(self, config: TextNet, place: Folder) -> None:
        super().__init__(config, place)
        self._lock = threading.Lock()

    def to(self, device: str) -> None:
        super().to(device)
        self._opened[0].to(device)

    def encode(self, texts: Sequence[str], query: bool) -> NDArray[np.float32]:
        rows = rows_on(self.device)
        with self._lock, torch.inference_mode():
            passes = [texts[start : start + rows] for start in range(0, len(texts), rows)]
            return np.concatenate([self._forward(one, rows) for one in passes])

    def _forward(self, texts: Sequence[str], rows: int) -> NDArray[np.float32]:
        """The vectors of a forward pass, which is filled up to `rows` texts."""
        model, tokens = self._opened
        given = tokens(list(texts))[np.resize(np.arange(len(texts)), rows)].to(self.device)
        bf16 = self.config.precision == "bfloat16"
        with torch.autocast(self.device.partition(":")[0], torch.bfloat16, enabled=bf16):
            output = model.encode_text(given)
        vectors: NDArray[np.float32] = F.normalize(output.float(), dim=1).cpu().numpy()
        return vectors[: len(texts)]

    @cached_property
    def _opened(self) -> tuple[Any, Any]:
        """The model without its picture side, and what makes tokens of texts."""
        what = self.place.uri
        with linked(self.place, self.config.files) as folder:
            settings = described(Folder(str(folder)))
            model = trained(folder, settings, what)
            tokens = tokenizer_of(folder, settings.model_cfg.text_cfg, what)
        del model.visual
        return model.to(self.device), tokens


def picture_tower(place: Folder, what: str, precision: Precision) -> Backbone:
    """The picture tower of a folder, ready to extract. Raises `UserError`."""
    settings, files = described(place), files_of(place)
    with linked(place, files) as folder:
        vision = trained(folder, settings, what).visual
    height, width = np.broadcast_to(vision.image_size, 2).tolist()
    if height != width:
        raise UserError(f"{what}: takes {width} x {height} pixels; only squares are extracted from")
    config = {k: v for k, v in settings.model_cfg.config.items() if k in PICTURES}
    tower = PictureTower(config)
    tower.vision.load_state_dict(vision.state_dict())
    return Backbone(
        tower,
        BackboneConfig(
            library="imgray",
            net=f"{PictureTower.__module__}:{PictureTower.__name__}",
            arguments={"config": config},
            layers={LAYER: "pooled"},
            size=height,
            mean=settings.preprocess_cfg.mean,
            std=settings.preprocess_cfg.std,
            precision=precision,
            space=space_of(files),
        ),
    )


def text_tower(place: Folder, precision: Precision) -> TextEncoder:
    """The text tower of a folder, with the model's own limit of tokens. Raises `UserError`."""
    files, text = files_of(place), described(place).model_cfg.text_cfg
    config = TextNet(
        library="open_clip",
        files=files,
        longest=text.context_length,
        padded=True,
        precision=precision,
        space=space_of(files),
    )
    try:
        OpenClipEncoder(config, place).encode(["a"], False)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"{place.uri}: the text tower fails ({reason_of(error)}); fetch the model again"
        ) from None
    return OpenClipEncoder(config, place)
