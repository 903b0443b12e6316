"""Tiny dual encoders with random weights, as folders of transformers."""

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
