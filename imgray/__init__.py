"""imgray: distributed batch processing of images on Ray."""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["__version__", "open_features", "open_index", "open_model"]

if TYPE_CHECKING:
    from imgray.library import open_features, open_index, open_model


def __getattr__(name: str) -> Any:
    """Load the library when it is first used: commands need it not, and torch takes seconds."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from imgray import library

    return getattr(library, name)


def __dir__() -> list[str]:
    """Everything that the module has, also what is loaded later."""
    return sorted({*globals(), *__all__})
