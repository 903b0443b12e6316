"""How translation is learnt, and done: the generators of a wiring with their discriminators."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from imgray.data.pixels import Rejected
from imgray.data.unpaired import DOMAINS
from imgray.synthesis import strips
from imgray.synthesis.generator import LEAST, STRIDE, to_pixels, to_range
from imgray.synthesis.losses import apart, differences, similar, squares
from imgray.synthesis.optimizers import adam, averaged
from imgray.synthesis.pool import Pool
from imgray.synthesis.scoring import Scoring
from imgray.synthesis.settings import TranslationSettings
from imgray.synthesis.wiring import Route, other
from imgray.training.task import NOT_FINITE, At, Batch, Learner, Prediction
from imgray.training.wanted import check_wanted

WHOLE = 2**26
"""Values of pictures times the width of generators, up to which they go through whole: 0.8 GB."""
TOGETHER = 2**21
"""As `WHOLE`, of pictures that go together on a CPU: of more its caches hold too little."""


class TranslationLearner(Learner):
    """The generators of a wiring and a discriminator for each domain, under least squares losses.

    LSGAN (Mao et al., ICCV 2017): with D the discriminator of a domain and p a picture of it,

        L_D = ((D(p) − 1)² + D(fake)²) / 2,    L_G = Σ (D(fake) − 1)² + λ Σ |route − target|,

    both as means. A discriminator goes down once a step, on fakes of its pool.

    With `supervised` the translation of a picture is also to be its true partner, as in pix2pix
    (Isola et al., CVPR 2017, equations 3 and 4), whose discriminator sees the input beside it; here
    it does not, so that all but this term is equal, and both ways are learnt at once.
    """

    derived = frozenset({"averaged"})  # the first step makes it the generators as they then are

    def __init__(
        self, settings: TranslationSettings, mapped: str | None = None, initial: bool = True
    ) -> None:
        self.settings, self.wiring, self.mapped = settings, settings.wiring, mapped
        self.made = nn.ModuleDict({n: settings.generator() for n in self.wiring.generators})
        judges = settings.discriminators(initial)
        self.features = judges.get("trunk", nn.Identity())
        self.modules: dict[str, nn.Module] = {**self.made, **judges}
        self.pools = {domain: Pool(settings.pool) for domain in DOMAINS}
        self.optimizers = {
            "generators": adam(self.made.values(), settings.rate, settings.momentum),
            "discriminators": adam(judges.values(), settings.rate, settings.momentum),
        }
        if settings.average:
            self.averaged = averaged(self.made, settings.average)
            self.modules["averaged"] = self.averaged

    def step(self, batch: Batch, at: At) -> dict[str, Tensor]:
        routes = Routes(self.made, {name: to_range(batch[name]) for name in DOMAINS})
        losses = self._wanted(routes)
        self.descend("generators", torch.stack(list(losses.values())).sum())
        found = {name: loss.detach() for name, loss in losses.items()}
        judged = {f"D{domain}": self._judged(domain, routes) for domain in DOMAINS}
        self.descend("discriminators", torch.stack(list(judged.values())).sum())
        if self.settings.average:
            self.averaged.update_parameters(self.made)
        return found | judged

    def _wanted(self, routes: Routes) -> dict[str, Tensor]:
        """The losses of the generators, weighted, by kind."""
        settings = self.settings
        weights = {"long": settings.cycle, "inner": settings.inner_cycle}
        found: dict[str, Tensor] = {}
        for term in self.wiring.adversarial:
            loss = squares(self._logits(term.domain, routes[term.route]), 1.0)
            found[term.name] = found.get(term.name, 0) + loss
        for cycle in (c for c in self.wiring.cycles if weights[c.name]):
            loss = weights[cycle.name] * (routes[cycle.route] - routes[cycle.target]).abs().mean()
            found[cycle.name] = found.get(cycle.name, 0) + loss
        if settings.identity:
            found["identity"] = settings.identity * settings.cycle * self._moved(routes)
        if settings.supervised:
            found["supervised"] = settings.supervised * self._missed(routes)
        return found

    def _missed(self, routes: Routes) -> Tensor:
        """How far translations are from the true pictures."""
        there = self.wiring.translations.items()
        return differences((routes[route], routes[(other(domain),)]) for domain, route in there)

    def _moved(self, routes: Routes) -> Tensor:
        """How far pictures that are of a domain already are from their translations into it."""
        return differences(
            (routes[(other(domain), *route[1:])], routes[(other(domain),)])
            for domain, route in self.wiring.translations.items()
        )

    def _judged(self, domain: str, routes: Routes) -> Tensor:
        """The loss of a domain's discriminator."""
        judged = [term.route for term in self.wiring.adversarial if term.domain == domain]
        fakes = torch.cat([routes[route].detach() for route in judged])
        real = squares(self._logits(domain, routes[(domain,)]), 1.0)
        fake = squares(self._logits(domain, self.pools[domain].exchange(fakes)), 0.0)
        return (real + fake) / 2

    def _logits(self, domain: str, pictures: Tensor) -> Tensor:
        """Of a domain's discriminator."""
        found: Tensor = self.modules[f"D{domain}"](self.features(pictures))
        return found

    def state(self) -> dict[str, Tensor]:
        return {domain: pool.items for domain, pool in self.pools.items() if len(pool.items)}

    def load(self, state: Mapping[str, Tensor]) -> None:
        for domain, items in state.items():
            self.pools[domain].items = items[: self.settings.pool].clone()

    def evaluate(self, batch: Batch) -> dict[str, Tensor]:
        """Sums over the pictures of a batch, each once, by the domain that they are of.

        `cycle` is how far a picture is, of 0 to 255, from what the long cycle makes of it. Where
        there are pairs, by the domain that is translated into, `apart` is how far the translation
        is from the true picture, and `ssim` their structural similarity (Wang et al. 2004), in
        colour.
        """
        return self._measured(self._seen(batch))

    def _measured(self, routes: Routes) -> dict[str, Tensor]:
        sums = {}
        for cycle in self.wiring.cycles:
            domain = cycle.target[0]
            if cycle.name == "long" and domain in routes.pictures:
                sums[f"count_{domain}"] = torch.tensor(float(len(routes[cycle.target])))
                sums[f"cycle_{domain}"] = apart(routes[cycle.route], routes[cycle.target])
        for domain, route in self.wiring.translations.items() if self.settings.paired else ():
            made, into = routes[route], other(domain)
            sums[f"apart_{into}"] = apart(made, routes[(into,)])
            sums[f"ssim_{into}"] = similar(made, routes[(into,)])
        return sums

    def benchmark(self, batch: Batch) -> dict[str, Tensor]:
        """As `evaluate`, and the sums of `Scoring`."""
        routes = self._seen(batch)
        ways = {other(domain): route for domain, route in self.wiring.translations.items()}
        made = {d: to_pixels(routes[w]) for d, w in ways.items() if w[0] in routes.pictures}
        real = {domain: to_pixels(routes[(domain,)]) for domain in routes.pictures}
        return self._measured(routes) | self._scoring.sums(made, real)

    @cached_property
    def _scoring(self) -> Scoring:
        return Scoring(self.settings, self.mapped)

    def _seen(self, batch: Batch) -> Routes:
        """From the pictures of a batch that had not been yet."""
        new = {name: batch[name][batch[f"new_{name}"]] for name in DOMAINS}
        return Routes(
            self._painters, {name: to_range(one) for name, one in new.items() if len(one)}
        )

    @property
    def _painters(self) -> nn.ModuleDict:
        """The generators that translate: the averaged ones where there are such."""
        found = self.averaged.module if self.settings.average else self.made
        assert isinstance(found, nn.ModuleDict)
        return found

    def predict(self, batch: Batch) -> list[Prediction]:
        towards = batch["to"].tolist()
        found: dict[int, NDArray[np.uint8] | None] = {}
        for to in set(towards):
            places = [place for place, one in enumerate(towards) if one == to]
            way = self.wiring.translations[DOMAINS[1 - to]]
            found |= zip(places, self._translated(batch["image"][places], way), strict=True)
        pictures = [found[place] for place in range(len(towards))]
        return [Prediction({}, one, NOT_FINITE if one is None else "") for one in pictures]

    def _translated(self, pictures: Tensor, way: Route) -> Iterator[NDArray[np.uint8] | None]:
        """Pictures, uint8 (N, H, W, 3), that have gone a way, in float32 whatever was learnt in.

        None is one of which the generators make numbers that are not finite.

        As many go together as have `WHOLE` values, or `TOGETHER`; one of more than `WHOLE` goes
        through by strips.
        """
        height, width = pictures.shape[1:3]
        framed = np.stack([frame(picture) for picture in pictures.cpu().numpy()])
        values = framed[0].size * self.settings.width
        most = max(1, (TOGETHER if pictures.device.type == "cpu" else WHOLE) // values)
        painted = self._whole if values <= WHOLE else self._by_strips
        with torch.autocast(pictures.device.type, enabled=False):
            for start in range(0, len(framed), most):
                check_wanted()
                for made in painted(framed[start : start + most], way, pictures.device):
                    yield made if made is None else made[:height, :width]

    def _whole(
        self, framed: NDArray[np.uint8], way: Route, device: torch.device
    ) -> list[NDArray[np.uint8] | None]:
        made = to_range(torch.tensor(framed, device=device))
        for name in way[1:]:
            made = self._painters[name](made)
        finite = made.isfinite().flatten(1).all(dim=1).tolist()
        painted = to_pixels(made).cpu().numpy()
        return [one if whole else None for one, whole in zip(painted, finite, strict=True)]

    def _by_strips(
        self, framed: NDArray[np.uint8], way: Route, device: torch.device
    ) -> list[NDArray[np.uint8] | None]:
        nets: Any = [self._painters[name] for name in way[1:]]
        maps = strips.run(chain.from_iterable(nets), strips.Pixels(framed[0]), str(device))
        try:
            return [strips.picture_of(maps)]
        except Rejected:
            return [None]


class Routes:
    """What routes make of pictures, each generator running once on a picture.

    Args:
        nets: by name.
        pictures: by domain (N, 3, H, W) from -1 to 1.
    """

    def __init__(self, nets: nn.ModuleDict, pictures: Mapping[str, Tensor]) -> None:
        self.nets, self.pictures = nets, pictures
        self.found: dict[Route, Tensor] = {(name,): one for name, one in pictures.items()}

    def __getitem__(self, route: Route) -> Tensor:
        if route not in self.found:
            self.found[route] = self.nets[route[-1]](self[route[:-1]])
        return self.found[route]


def frame(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A picture (H, W, 3) reflected at its right and lower border to sides a generator takes."""
    sides = [max(LEAST, -(-side // STRIDE) * STRIDE) for side in picture.shape[:2]]
    border = [(0, side - own) for side, own in zip(sides, picture.shape, strict=False)]
    return np.pad(picture, [*border, (0, 0)], mode="reflect")
