"""Sentence-transformers as text encoders: of a folder, a wheel or the hub.

The library is imported where it is used: that takes seconds. Only safetensors and settings are
read, and no code that comes with a model is run.
"""

from __future__ import annotations

import math
import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from imgray.artifacts.folder import Folder
from imgray.config import Precision
from imgray.errors import UserError
from imgray.features.texts import TextEncoder, TextNet, files_at, linked

MODULES = "modules.json"
"""What tells a folder of sentence-transformers."""
SUFFIXES = (".json", ".txt", ".model", ".safetensors")
"""Of the files that are taken: settings, vocabularies, SentencePiece tables and tensors."""
ROWS = {"cpu": 4, "cuda": 64}
"""Texts of a forward pass, always as many: kernels are chosen by shape, and they round in different
ways. With it and texts of equal length, a vector depends neither on its batch nor on the number of
threads."""
TOKENS, MOST_TOKENS = 512, 10**6
"""Of a transformer that states more than can be meant."""
PASSAGES = ("document", "passage", "corpus")
"""Names that models give to the prompt of stored texts, as the library looks for them."""


class SentenceEncoder(TextEncoder):
    """A model of sentence-transformers.

    Texts of equally many tokens go together, so none is padded; those of more tokens than
    `TextNet.longest`, the model's own limit, are cut there.
    """

    def __init__(self, config: TextNet, place: Folder) -> None:
        super().__init__(config, place)
        self._lock = threading.Lock()

    def to(self, device: str) -> None:
        super().to(device)
        self._model.to(device)

    def encode(self, texts: Sequence[str], query: bool) -> NDArray[np.float32]:
        with self._lock, torch.inference_mode():
            found: dict[int, NDArray[np.float32]] = {}
            for places, inputs in self._passes(texts, query):
                vectors = self._forward(inputs, query)
                found |= zip(places, vectors[: len(places)], strict=True)
        return np.stack([found[place] for place in range(len(texts))])

    def _passes(self, texts: Sequence[str], query: bool) -> Iterator[tuple[list[int], Any]]:
        """The places of the texts that go together, and what the model takes of them."""
        inputs = self._tokens(texts, query)
        if "attention_mask" not in inputs:  # no transformer: nothing is padded
            for place, text in enumerate(texts):
                yield [place], self._tokens([text], query)
            return
        mask = inputs["attention_mask"].bool()
        if self.config.padded:
            mask = torch.ones_like(mask)
            del inputs["attention_mask"]
        lengths: dict[int, list[int]] = defaultdict(list)
        for place, length in enumerate(mask.sum(1).tolist()):
            lengths[length].append(place)
        rows = rows_on(self.device)
        for length in sorted(lengths):
            for start in range(0, len(lengths[length]), rows):
                places = lengths[length][start : start + rows]
                yield places, _cut(inputs, np.resize(places, rows), mask)

    def _tokens(self, texts: Sequence[str], query: bool) -> Any:
        prompt = self.config.query if query else self.config.passage
        full = {"text": {"padding": "max_length", "max_length": self.config.longest}}
        return self._model.preprocess(
            list(texts),
            prompt=prompt or None,
            task=_task(query),
            processing_kwargs=full if self.config.padded else None,
        )

    def _forward(self, inputs: Any, query: bool) -> NDArray[np.float32]:
        inputs = {k: v.to(self.device) if isinstance(v, Tensor) else v for k, v in inputs.items()}
        bf16 = self.config.precision == "bfloat16"
        with torch.autocast(self.device.partition(":")[0], torch.bfloat16, enabled=bf16):
            output = self._model(inputs, task=_task(query))["sentence_embedding"]
        found: NDArray[np.float32] = F.normalize(output.float(), dim=1).cpu().numpy()
        return found

    @cached_property
    def _model(self) -> Any:
        with linked(self.place, self.config.files) as folder:
            found = _open(folder, self.place.uri).to(self.device)
        if self.config.longest:
            found.max_seq_length = self.config.longest
        return found


def sentence_encoder(
    place: Folder, precision: Precision = "float32", *, padded: bool = False, space: str = ""
) -> SentenceEncoder:
    """The model in a folder, with its own prompts and its own limit of tokens.

    Args:
        place: the folder.
        precision: of its forward passes.
        padded: as of `TextNet`.
        space: as of `TextNet`.

    Raises:
        UserError: no model of sentence-transformers, one without safetensors, or without some of
            its tensors.
    """
    files = files_at(place, SUFFIXES)
    if not any(entry.name.endswith(".safetensors") for entry in files):
        raise UserError(
            f"{place.uri}: no .safetensors here, and weights in other formats are not read; save "
            "the model again with sentence-transformers"
        )
    with linked(place, files) as folder:
        model = _open(folder, place.uri)
    config = TextNet(
        library="sentence-transformers",
        files=files,
        longest=_longest(model.max_seq_length),
        padded=padded,
        query=model.prompts.get("query") or "",
        passage=next((model.prompts[name] for name in PASSAGES if model.prompts.get(name)), ""),
        precision=precision,
        space=space,
    )
    found, again = SentenceEncoder(config, place), SentenceEncoder(config, place)
    found._model = model
    if not np.array_equal(found.encode(["a"], False), again.encode(["a"], False)):
        raise UserError(  # they are drawn at random, on every worker anew
            f"{place.uri}: some of the model's tensors are missing; fetch it again"
        )
    return again


def rows_on(device: str) -> int:
    """The texts of a forward pass on a device."""
    return ROWS.get(device.partition(":")[0], ROWS["cuda"])


def _longest(stated: float | None) -> int | None:
    """The limit of tokens; static embeddings state an infinite one, and have none."""
    if stated is None or stated == math.inf:
        return None
    return int(stated) if stated <= MOST_TOKENS else TOKENS


def from_hub(name: str) -> Folder:
    """The folder into which the hub's files of a model were fetched. Raises `UserError`."""
    from huggingface_hub import snapshot_download

    try:
        found = snapshot_download(name, allow_patterns=[f"*{suffix}" for suffix in SUFFIXES])
    except Exception as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"--extractor {name}: not to be had from the hub ({reason}); connect to it, or fetch "
            "the model elsewhere and say --weights NAME=FOLDER with --extractor NAME"
        ) from None
    return Folder(found)


def installed(what: str) -> None:
    """Refuse to go on without the libraries, and have them be quiet. Raises `UserError`."""
    try:
        from transformers.utils import logging
    except ImportError:
        raise UserError(f"{what}: needs an extra: pip install 'imgray[text]'") from None
    logging.disable_progress_bar()
    logging.set_verbosity_error()


def _open(folder: Path, place: str) -> Any:
    """The model in a local folder; `place` is where a person knows it. Raises `UserError`."""
    installed(place)
    from sentence_transformers import SentenceTransformer

    try:
        model = SentenceTransformer(
            str(folder),
            device="cpu",
            trust_remote_code=False,
            local_files_only=True,
            model_kwargs={"use_safetensors": True, "dtype": torch.float32},
        )
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(f"{place}: not a model of sentence-transformers ({reason})") from None
    return model.eval()


def _task(query: bool) -> str:
    return "query" if query else "document"


def _cut(inputs: Any, rows: NDArray[np.int64], mask: Tensor) -> dict[str, Any]:
    """Some rows of tokens, all of one length, without what pads them."""
    kept = mask[int(rows[0])]
    return {
        name: value[rows][:, kept] if isinstance(value, Tensor) and value.ndim == 2 else value
        for name, value in inputs.items()
    }
