"""Tiny dual encoders with random weights, as folders of several libraries, and their towers."""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPConfig,
    CLIPModel,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipModel,
)

from imgray.engine.extract import build_extractor
from imgray.engine.settings import ExtractConfig
from imgray.features.extractor import Extractor, PictureExtractor, TextExtractor

SIZE, LENGTH = 32, 12
WORDS = ["[pad]", "[start]", "[end]", "[unk]", "a", "dog", "red", "car", "small", "runs"]
SMALL = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
}  # fmt: skip
TEXT = SMALL | {"vocab_size": len(WORDS), "max_position_embeddings": LENGTH}
VISION = SMALL | {"image_size": SIZE, "patch_size": 8}
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)


def model(kind: str) -> Any:
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    torch.manual_seed(0)
    if kind == "clip":
        text, vision = (TEXT | ids | {"projection_dim": 16}, VISION | {"projection_dim": 16})
        return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16))
    return SiglipModel(
        SiglipConfig(text_config=TEXT | ids | {"projection_size": 32}, vision_config=VISION)
    )


def tokenizer() -> PreTrainedTokenizerFast:
    found = Tokenizer(models.WordLevel({w: n for n, w in enumerate(WORDS)}, unk_token="[unk]"))
    found.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [("[start]", 1), ("[end]", 2)]
    found.post_processor = processors.TemplateProcessing("[start] $A [end]", special_tokens=ends)
    names = {"pad_token": "[pad]", "bos_token": "[start]", "eos_token": "[end]"}
    return PreTrainedTokenizerFast(tokenizer_object=found, model_max_length=LENGTH, **names)


def write_dual(kind: str, folder: Path) -> None:
    """Write a `clip` or a `siglip`."""
    model(kind).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    colours = {"image_mean": MEAN, "image_std": STD}
    (folder / "preprocessor_config.json").write_text(json.dumps(colours))


VIT = {"image_size": SIZE, "layers": 2, "width": 32, "head_width": 8, "patch_size": 8}
READ = {
    "context_length": LENGTH, "vocab_size": len(WORDS), "width": 32, "heads": 4, "layers": 2,
    "hf_tokenizer_name": "someone/elsewhere",
}  # fmt: skip
OPEN_CLIP: dict[str, dict[str, Any]] = {
    "vit": {"vision_cfg": VIT, "text_cfg": READ, "quick_gelu": True},
    "resnet": {
        "vision_cfg": {"image_size": SIZE, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None},
        "text_cfg": {k: v for k, v in READ.items() if not k.startswith("hf")}
        | {"vocab_size": 49408},
    },
    "siglip": {
        "custom_text": True,
        "init_logit_bias": -10,
        "vision_cfg": {
            "image_size": 160, "timm_model_name": "test_vit", "timm_pool": "avg",
            "timm_proj": "linear",
        },
        "text_cfg": READ | {
            "no_causal_mask": True, "proj_bias": True, "pool_type": "last",
            "tokenizer_kwargs": {"clean": "canonicalize"},
        },
    },
}  # fmt: skip
"""By name, the settings of small models of open_clip: of each kind of tower, tensor and tokens."""


def write_open_clip(kind: str, folder: Path, seed: int = 0) -> None:
    """Write one of `OPEN_CLIP`, as open_clip does."""
    from open_clip import create_model
    from open_clip.model import set_model_preprocess_cfg
    from open_clip.push_to_hf_hub import save_for_hf

    config = {"embed_dim": 16, **OPEN_CLIP[kind]}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    torch.manual_seed(seed)
    model = create_model(f"local-dir:{folder}", load_weights=False)
    shown = {"size": SIZE, "interpolation": "bicubic", "resize_mode": "squash"}
    set_model_preprocess_cfg(model, {"mean": MEAN, "std": STD, **shown})
    save_for_hf(model, tokenizer(), config, str(folder), safe_serialization=True)


def build(dual: Path | str, **changes: Any) -> Extractor:
    """The extractor `dual` of a folder, of pictures; with a column `text`, of texts."""
    given: dict[str, Any] = {"images": "x.csv", "output": "out", "extractor": ["dual"]}
    return build_extractor(ExtractConfig(**given | {"weights": [f"dual={dual}"]} | changes))


def texts_of(dual: Path | str) -> TextExtractor:
    """The text tower of a folder."""
    found = build(dual, columns=["text=caption"])
    assert isinstance(found, TextExtractor)
    return found


def pictures_of(dual: Path | str) -> PictureExtractor:
    """The picture tower of a folder."""
    found = build(dual)
    assert isinstance(found, PictureExtractor)
    return found
