"""What evaluation says of translations beside how far they are from true pictures."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from imgray.data.unpaired import DOMAINS
from imgray.synthesis.realism import distances
from imgray.synthesis.segmenter import Palette, Segmenter, open_segmenter
from imgray.synthesis.settings import TranslationSettings
from imgray.training.classes import agreement, confusion

ROWS = ("made", "real")
"""Of which pictures the features are kept."""


class Scoring:
    """The networks that look at translations.

    Args:
        settings: which these are.
        mapped: the domain, x or y, whose pictures are class maps, if there is one.

    Raises:
        UserError: a network or a model that cannot be had, or of other classes.
    """

    def __init__(self, settings: TranslationSettings, mapped: str | None) -> None:
        self.mapped, self.classes = mapped, len(settings.palette)
        self.describer = settings.describer()
        readers: dict[str, Palette | Segmenter] = {}
        if mapped:
            readers[mapped] = self.palette = Palette(settings.palette)
        if settings.segmenter:
            [pictured] = set(DOMAINS) - {mapped}
            readers[pictured] = open_segmenter(settings.segmenter, tuple(settings.palette))
        self.readers = readers

    def sums(self, made: Mapping[str, Tensor], real: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """By name and domain the features of pictures, and counts (C, C) of pixels, rows the truth.

        Args:
            made: by domain translations into it, uint8 (N, H, W, 3).
            real: by domain its true pictures; the partners of those made, where pixels are counted.
        """
        found: dict[str, Tensor] = {}
        if self.describer:
            for kind, pictures in zip(ROWS, (made, real), strict=True):
                found |= {
                    f"{kind}_{domain}": self.describer(one) for domain, one in pictures.items()
                }
        if self.mapped:
            truth = self.palette.classes(real[self.mapped])
            for domain, reader in self.readers.items():
                shown = {"confusion": made} | ({"ceiling": real} if domain != self.mapped else {})
                for kind, pictures in shown.items():
                    seen = reader.classes(pictures[domain]).flatten()
                    found[f"{kind}_{domain}"] = confusion(truth.flatten(), seen, self.classes)
        return found


def near(net: str | None, sums: Mapping[str, Tensor]) -> dict[str, float]:
    """KID and FID by the name of the network of whose features `sums` have rows, if they have."""
    found = distances(sums["made"], sums["real"]) if "made" in sums else {}
    named = {f"{name}_{net}": one for name, one in found.items()}
    return named | ({"fid_n": float(min(len(sums[kind]) for kind in ROWS))} if found else {})


def scores(settings: TranslationSettings, sums: Mapping[str, Tensor]) -> dict[str, float]:
    """Metrics of a domain from what `Scoring.sums` has for it, by name.

    KID and FID are named by their network, and beside FID stands the number of pictures; what a
    segmenter says of true pictures is the ceiling of what it says of translations.
    """
    found = near(settings.kid, sums)
    if "confusion" in sums:
        found |= agreement(sums["confusion"])
    if "ceiling" in sums:
        found |= {f"ceiling_{name}": one for name, one in agreement(sums["ceiling"]).items()}
    return found
