"""A folder as open_clip writes it: its settings, its files, and the model that they describe.

The library is imported where it is used: that takes seconds. Only safetensors and settings are
read, nothing is fetched, and no code that comes with a model is run. So there are no models whose
text tower is named after one of the hub, which has its settings.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, PositiveInt

from imgray.artifacts.folder import Folder
from imgray.artifacts.manifest import FileEntry, sha256
from imgray.config import validate
from imgray.errors import UserError, brief
from imgray.features.backbones import Colours
from imgray.features.sentences import SUFFIXES, installed
from imgray.features.texts import files_at, json_at

CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"


class Tokenizing(BaseModel):
    """The settings of a tokenizer that are taken: others may ask for code, the hub or chance."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    clean: Literal["lower", "whitespace", "canonicalize"] | None = None
    strip_sep_token: bool | None = None
    language: str | None = None


class Texts(BaseModel):
    """The settings of a text tower, as far as they are of its tokens; open_clip's defaults."""

    model_config = ConfigDict(extra="allow", frozen=True)

    context_length: PositiveInt = 77
    hf_tokenizer_name: str | None = None
    tokenizer_mode: str | None = None
    tokenizer_kwargs: Tokenizing | None = None


class Model(BaseModel):
    """The arguments of a model."""

    model_config = ConfigDict(extra="allow", frozen=True)

    embed_dim: PositiveInt
    vision_cfg: dict[str, Any]
    text_cfg: Texts

    @property
    def config(self) -> dict[str, Any]:
        """As they were given."""
        return self.model_dump(exclude_unset=True)


class OpenAi(Colours):
    """Those of OpenAI's CLIP, where a folder has none."""

    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)


class Described(BaseModel):
    """What `open_clip_config.json` holds: the model, and how pixels are prepared."""

    model_cfg: Model
    preprocess_cfg: OpenAi = OpenAi()


def described(place: Folder) -> Described:
    """The settings in a folder. Raises `UserError`."""
    return validate(Described, json_at(place, CONFIG), f"{place.uri}/{CONFIG}")


def files_of(place: Folder) -> tuple[FileEntry, ...]:
    """Those of open_clip in a folder, which may hold the same model for other libraries too."""
    if not place.exists(WEIGHTS):
        raise UserError(
            f"{place.uri}: no {WEIGHTS} here, and weights in other formats are not read; save the "
            "model again with open_clip's save_for_hf and safe_serialization=True"
        )
    return tuple(
        entry
        for entry in files_at(place, SUFFIXES)
        if "/" not in entry.name
        and (entry.name == WEIGHTS or not entry.name.endswith(".safetensors"))
    )


def space_of(files: Sequence[FileEntry]) -> str:
    """The digest of a model's settings and tensors."""
    return sha256(" ".join(e.sha256 for e in files if e.name in (CONFIG, WEIGHTS)).encode())


def trained(folder: Path, settings: Described, what: str) -> Any:
    """The model in a local folder; `what` is how a person knows it. Raises `UserError`."""
    model = model_of(settings.model_cfg.config, what)
    from open_clip import load_checkpoint

    try:
        load_checkpoint(model, str(folder / WEIGHTS))
    except Exception as error:
        raise UserError(
            f"{what}: {WEIGHTS} does not fit {CONFIG} ({reason_of(error)}); fetch both again"
        ) from None
    return model.eval()


def model_of(config: dict[str, Any], what: str) -> Any:
    """A model of these settings, its weights yet to be loaded. Raises `UserError`."""
    _installed(what)
    from open_clip import CLIP, CustomTextCLIP
    from timm import is_model

    try:
        vision = config["vision_cfg"] | {"timm_model_pretrained": False, "output_tokens": False}
        text = config["text_cfg"] | {"output_tokens": False}
        net, texts = vision.get("timm_model_name"), text.get("hf_model_name")
        if texts or (net and not is_model(net)):
            raise ValueError(f"a tower of a hub, {texts or net}")
        own = {name: value for name, value in config.items() if name != "custom_text"}
        kind = CustomTextCLIP if config.get("custom_text") else CLIP
        return kind(**own | {"vision_cfg": vision, "text_cfg": text})
    except Exception as error:
        raise UserError(
            f"{what}: no dual encoder that {CONFIG} describes wholly ({reason_of(error)}); choose "
            "another model"
        ) from None


def tokenizer_of(folder: Path, texts: Texts, what: str) -> Any:
    """The folder's own tokenizer, or OpenAI's, which open_clip carries. Raises `UserError`."""
    from open_clip.tokenizer import HFTokenizer, SimpleTokenizer

    more = texts.tokenizer_kwargs or Tokenizing()
    given = {"context_length": texts.context_length, **more.model_dump(exclude_none=True)}
    try:
        if not texts.hf_tokenizer_name:
            return SimpleTokenizer(**given)
        return HFTokenizer(
            str(folder),
            tokenizer_mode=texts.tokenizer_mode,
            trust_remote_code=False,
            local_files_only=True,
            **given,
        )
    except Exception as error:
        raise UserError(
            f"{what}: no tokenizer of {CONFIG} here ({reason_of(error)}); fetch the model with all "
            "its files"
        ) from None


def _installed(what: str) -> None:
    installed(what)
    try:
        import open_clip  # noqa: F401
    except ImportError:
        raise UserError(f"{what}: needs an extra: pip install 'imgray[text]'") from None


def reason_of(error: Exception) -> str:
    """What a library says, in a line."""
    return brief(" ".join(f"{type(error).__name__}: {error}".split()), 200)
