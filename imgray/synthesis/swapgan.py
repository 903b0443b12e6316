"""How SwapGAN learns and what it paints; the networks are those of `imgray.synthesis.swapnet`."""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from imgray.synthesis.discriminator import PatchDiscriminator
from imgray.synthesis.generator import to_pixels, to_range
from imgray.synthesis.losses import apart, similar, squares
from imgray.synthesis.optimizers import adam, averaged
from imgray.synthesis.parsing import composed
from imgray.synthesis.pose import COCO18, heat_maps
from imgray.synthesis.realism import Describer
from imgray.synthesis.scoring import ROWS
from imgray.synthesis.segmenter import Segmenter, nearest
from imgray.synthesis.swap_settings import SwapSettings
from imgray.synthesis.swapnet import Conditions, Painted, SwapNet
from imgray.training.task import NOT_FINITE, At, Batch, Learner, Prediction


class Swapped(NamedTuple):
    """What a batch becomes: its references (N, 3, H, W) from -1 to 1, and what is made of them."""

    references: Tensor
    conditions: Conditions
    painted: Painted


class SwapLearner(Learner):
    """The generators and one conditional discriminator, under least squares losses.

    With D the discriminator, X_r a reference and P_r its pose maps, X_I and X_II the pictures of
    the two stages, M_r the mask of the reference's body and M̂ that of X_II by the third generator:

        L_D = ((D(X_r, P_r) − 1)² + (D(X_I, P_r)² + D(X_II, P_r)²) / 2) / 2,
        L_G = (D(X_I, P_r) − 1)² + (D(X_II, P_r) − 1)² + λ |M̂ − M_r|,

    all as means. Found: one real pair, two fake ones, the mask-consistency loss, whose gradient
    reaches all generators. Our reading: least squares (LSGAN), that all pairs hold the pose, that
    fakes weigh half each, L1 of masks, λ, Adam and its rate. An option of ours adds μ |X_II − X_r|
    over pairs of one person, of which X_r is the truth, as a sum of them over the batch's size.

    Args:
        settings: of the recipe.
        parser: what fills in parsing, if there is such a model.
    """

    derived = frozenset({"averaged"})

    def __init__(self, settings: SwapSettings, parser: Segmenter | None = None) -> None:
        self.settings, self.parser = settings, parser
        self.net = SwapNet(settings)
        judge = PatchDiscriminator(
            settings.judge_width, settings.judge_layers, inputs=3 + len(COCO18)
        )
        self.modules = {"generators": self.net, "discriminator": judge}
        self.optimizers = {
            name: adam([net], settings.rate, settings.momentum)
            for name, net in self.modules.items()
        }
        if settings.average:
            self.averaged = averaged(self.net, settings.average)
            self.modules["averaged"] = self.averaged
        if parser:
            self.modules |= {f"parser_{n}": net for n, net in parser.learner.modules.items()}
        self.regions = torch.from_numpy(settings.region_of).long()

    def step(self, batch: Batch, at: At) -> dict[str, Tensor]:
        real, conditions = to_range(batch["reference"]), self.conditions(batch)
        painted: Painted = self.net(to_range(batch["target"]), conditions)
        losses = self._wanted(painted, real, conditions, batch["own"])
        self.descend("generators", torch.stack(list(losses.values())).sum())
        judged = self._judged(painted, real, conditions.pose)
        self.descend("discriminator", judged)
        if self.settings.average:
            self.averaged.update_parameters(self.net)
        return {name: loss.detach() for name, loss in losses.items()} | {"D": judged}

    def _wanted(
        self, painted: Painted, real: Tensor, conditions: Conditions, own: Tensor
    ) -> dict[str, Tensor]:
        """The losses of the generators, weighted, by kind."""
        verdicts = [self._verdict(stage, conditions.pose) for stage in painted.stages]
        found = {"adversarial": torch.stack([squares(one, 1.0) for one in verdicts]).sum()}
        if painted.mask is not None:
            missed = (painted.mask.float() - conditions.body).abs().mean()
            found["mask"] = self.settings.mask * missed
        if self.settings.reconstruction:
            missed = (painted.picture.float() - real).abs().mean(dim=(1, 2, 3))
            found["reconstruction"] = self.settings.reconstruction * (missed * own).mean()
        return found

    def _judged(self, painted: Painted, real: Tensor, pose: Tensor) -> Tensor:
        """The loss of the discriminator: one real pair against the fake ones together."""
        fakes = [squares(self._verdict(one.detach(), pose), 0.0) for one in painted.stages]
        return (squares(self._verdict(real, pose), 1.0) + torch.stack(fakes).mean()) / 2

    def _verdict(self, pictures: Tensor, pose: Tensor) -> Tensor:
        found: Tensor = self.modules["discriminator"](torch.cat([pictures, pose], dim=1))
        return found

    def conditions(self, batch: Batch) -> Conditions:
        """What `Swapping` gives of references, as the networks take it."""
        settings, regions = self.settings, self._regions(batch["parsing"])
        layout = F.one_hot(regions, len(settings.regions)).permute(0, 3, 1, 2).float()
        stays = settings.are_kept(regions)[:, None]
        kept = to_range(batch["reference"]) * stays
        pose = heat_maps(batch["pose"], settings.crop, settings.sigma, settings.visible)
        return Conditions(pose, layout, kept)

    @property
    def _painter(self) -> SwapNet:
        """The averaged generators where there are such."""
        if not self.settings.average:
            return self.net
        found = self.averaged.module
        assert isinstance(found, SwapNet)
        return found

    def _swapped(self, batch: Batch) -> Swapped:
        """References of a batch of `Swapping.example` in the clothes of targets."""
        conditions = self.conditions(batch)
        painted: Painted = self._painter(to_range(batch["target"]), conditions)
        return Swapped(to_range(batch["reference"]), conditions, painted)

    def evaluate(self, batch: Batch) -> dict[str, Tensor]:
        """Sums over the pictures of a batch, of the networks' pictures as they are.

        `mask_iou`: of the third generator's mask of the swapped picture and the reference's body.
        `ssim` and `apart` (of 0 to 255): structural similarity and mean absolute difference of the
        reference and what is painted of it in its own clothes, the target being the reference
        itself; `ssim_mirrored`: the target being that photograph mirrored, which is not to be
        copied. `clothes` (of 0 to 255): how far the mean colour of the clothes painted is from that
        of the target's clothes, `clothes_before`: how far that of the reference's is; of `clothed`
        pairs, in which both wear some.
        """
        return self._scores(batch, self._swapped(batch))

    def _scores(self, batch: Batch, found: Swapped) -> dict[str, Tensor]:
        *_, own = self._painter.paint(found.references, found.conditions)
        *_, other = self._painter.paint(found.references.flip(3), found.conditions)
        sums = {
            "count": torch.tensor(float(len(found.references))),
            "ssim": similar(own, found.references),
            "ssim_mirrored": similar(other, found.references),
            "apart": apart(own, found.references),
        }
        if found.painted.mask is not None:
            sums["mask_iou"] = overlap(found.painted.mask > 0.5, found.conditions.body > 0.5)
        wanted = self._clothes(to_range(batch["target"]), batch["target_parsing"])
        worn = self._clothes(found.painted.picture, batch["parsing"])
        before = self._clothes(found.references, batch["parsing"])
        sums["clothed"] = (before + wanted).isfinite().all(dim=1).sum()
        for name, one in (("clothes", worn), ("clothes_before", before)):
            sums[name] = (one - wanted).abs().mean(dim=1).nansum() * 127.5
        return sums

    def benchmark(self, batch: Batch) -> dict[str, Tensor]:
        """As `evaluate`, and by other networks.

        `made` and `real`: rows of features, for KID and FID, of the swapped pictures and of the
        references, who are all of those that are scored.
        `parser_iou`: as `mask_iou`, of the mask that it finds in the swapped picture;
        `parser_iou_before`: of the one that it finds in the reference, which bounds the other.
        """
        found = self._swapped(batch)
        sums = self._scores(batch, found)
        pictures = (found.painted.picture, found.references)
        if self._describer:
            rows = (self._describer(to_pixels(one)) for one in pictures)
            sums |= zip(ROWS, rows, strict=True)
        if self.parser:
            for name, one in zip(("parser_iou", "parser_iou_before"), pictures, strict=True):
                sums[name] = overlap(self._bodies(one), found.conditions.body > 0.5)
        return sums

    @cached_property
    def _describer(self) -> Describer | None:
        return self.settings.describer()

    def _bodies(self, pictures: Tensor) -> Tensor:
        """The masks (N, 1, H, W) of what the parser finds in pictures (N, 3, H, W)."""
        assert self.parser
        labels = self.parser.classes(to_pixels(pictures))
        return (self._regions(labels) > 0)[:, None]

    def _regions(self, parsing: Tensor) -> Tensor:
        """The places of the regions of labels, int64 of their shape."""
        return self.regions.to(parsing.device)[parsing.long()]

    def _clothes(self, pictures: Tensor, parsing: Tensor) -> Tensor:
        """The mean colours (N, 3) of clothes; nan where there are none."""
        worn = self.settings.are_clothes(self._regions(parsing))[:, None].float()
        return (pictures * worn).sum(dim=(2, 3)) / worn.sum(dim=(2, 3))

    def predict(self, batch: Batch) -> list[Prediction]:
        """Pictures of the references' sizes, uint8 (H, W, 3)."""
        parsing = batch.get("parsing")
        if parsing is None:
            assert self.parser
            parsing = self.parser.classes(batch["whole"])
        with torch.autocast(parsing.device.type, enabled=False):
            small = nearest(parsing, self.settings.crop)
            conditions = self.conditions({**batch, "parsing": small})
            *_, made = self._painter.paint(to_range(batch["target"]), conditions)
        faults = ["" if one.isfinite().all() else NOT_FINITE for one in made]
        arrays = (one.cpu().numpy() for one in (to_pixels(made), batch["whole"], parsing))
        found = [self._finished(*one) for one in zip(*arrays, strict=True)]
        return [Prediction({}, *one) for one in zip(found, faults, strict=True)]

    def _finished(
        self, made: NDArray[np.uint8], whole: NDArray[np.uint8], parsing: NDArray[np.uint8]
    ) -> NDArray[np.uint8]:
        """A painted picture at the reference's size, what is kept laid over it if so wished."""
        large = Image.fromarray(made).resize(whole.shape[1::-1], Image.Resampling.BICUBIC)
        painted = np.asarray(large)
        return (
            composed(painted, whole, parsing, self.settings) if self.settings.composite else painted
        )


def overlap(masks: Tensor, others: Tensor) -> Tensor:
    """The sum over masks, bool (N, 1, H, W), of their intersection over union; 1 of two empty."""
    both, either = ((masks & others).sum(dim=(1, 2, 3)), (masks | others).sum(dim=(1, 2, 3)))
    return torch.where(either > 0, both / either.clamp(min=1), 1.0).sum()
