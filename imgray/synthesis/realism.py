"""How near made pictures are to real ones as wholes: KID and FID, on a network of one's own.

Published values are those of an Inception network and are not comparable with these. FID is biased
by the number of pictures (Bińkowski et al., ICLR 2018), which therefore stands beside it; KID is
not.
"""

from __future__ import annotations

import warnings

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imgray.errors import UserError
from imgray.features import weights
from imgray.features.backbones import as_map, standardised

SUBSETS, SUBSET = 100, 1000
"""Of KID, and pictures of each: as published."""


class Describer:
    """The means over the last map of a pretrained network, as it is.

    Args:
        net: a library's network, as of `imgray extract --extractor`.
        source: of its weights: `auto`, or the URI of a safetensors file.

    Raises:
        UserError: no such network or weights.
    """

    def __init__(self, net: str, source: str) -> None:
        try:
            self.backbone = weights.load(weights.Request(net, ("high",), source))
        except UserError as error:
            raise UserError(
                f"KID and FID: {error}; or leave them out (--set settings.kid=null)"
            ) from None

    @torch.inference_mode()
    def __call__(self, pictures: Tensor) -> Tensor:
        """Features, float32 (N, D), of pictures, uint8 (N, H, W, 3), squashed to squares."""
        backbone = self.backbone.to(pictures.device)
        config, found = backbone.config, []
        batch = standardised(pictures, config.mean, config.std)
        batch = F.interpolate(batch, (config.size,) * 2, mode="bilinear", antialias=True)

        def keep(_: nn.Module, __: object, output: Tensor) -> None:
            found.append(as_map(output, backbone.prefix_tokens).float().mean(dim=(2, 3)))

        hook = backbone.net.get_submodule(config.layers["high"]).register_forward_hook(keep)
        try:
            with torch.autocast(batch.device.type, enabled=False):
                backbone.net(batch)
        finally:
            hook.remove()
        return found[0]


def distances(made: Tensor, real: Tensor) -> dict[str, float]:
    """KID, the mean over subsets, and FID of features, float32 (N, D) and (M, D), in any order.

    Without two pictures on either side there is neither.
    """
    made, real = (rows[rows.sum(dim=1).argsort()] for rows in (made, real))
    least = min(len(made), len(real))
    if least < 2:
        return {}
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.kid import KernelInceptionDistance

    given = nn.Identity()
    given.num_features = made.shape[1]  # type: ignore[assignment]
    size = min(least, SUBSET)
    whole = size == len(made) == len(real)
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        kid = KernelInceptionDistance(given, 1 if whole else SUBSETS, size)
        fid = FrechetInceptionDistance(given)
        for metric in (kid, fid):
            metric.update(real, real=True)
            metric.update(made, real=False)
        return {"kid": float(kid.compute()[0]), "fid": float(fid.compute())}
