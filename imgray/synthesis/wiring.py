"""How generators are chained and what is asked of them: CycleGAN, Long and Nest as lists of terms.

A picture goes along a route: x.G1.F1 is what F1 makes of what G1 makes of x. Generators of one
letter lead one way, G from the domain of x to that of y, F back. A term asks that what a route
gives look real to the discriminator of its domain (`Adversarial`), or that it be what another gives
(`Cycle`).

Of Long and Nest CycleGAN (Liu et al., ICPR 2018; thesis chapter 7) the abstract alone is at hand:
Long "cascades several generators to perform the domain translation in a long cycle", Nest "in
addition to the long cycle, develops new inner cycles to bridge intermediate generators directly".
Two readings of it, neither verified, with n stages, here of two:

* `cascaded`: x.G1.G2 is the translation, the long cycle x.G1.G2.F2.F1 = x, and the inner one
  x.G1.G2.F2 = x.G1; intermediate pictures are judged too where `judged` says so. A stacked cycle of
  this kind is that of SCAN (Li et al., ECCV 2018).
* `alternating`: x.G1.F1.G2 is the translation, the long cycle x.G1.F1.G2.F2 = x, and the inner ones
  x.G1.F1 = x and x.G1.F1.G2 = x.G1; every picture is judged.

Both have the mirror image of each term, from y. With one stage both are CycleGAN (Zhu et al., ICCV
2017).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Reading = Literal["cascaded", "alternating"]
Route = tuple[str, ...]
"""The domain of the picture, x or y, and the generators it goes through, in their order."""
FORTH = {"x": "G", "y": "F"}
BACK = {"x": "F", "y": "G"}


@dataclass(frozen=True)
class Adversarial:
    """What a route gives is to look real to the discriminator of a domain."""

    name: str
    route: Route
    domain: str


@dataclass(frozen=True)
class Cycle:
    """What a route gives is to be what another gives, which is a part of it."""

    name: str
    route: Route
    target: Route


@dataclass(frozen=True)
class Wiring:
    """The terms of a system of n stages.

    translations: by the domain that a picture comes from, the route that translates it.
    """

    generators: tuple[str, ...]
    translations: dict[str, Route]
    adversarial: tuple[Adversarial, ...]
    cycles: tuple[Cycle, ...]


def wiring(reading: Reading, stages: int, inner: bool, judged: bool) -> Wiring:
    """The terms of Long CycleGAN, or with `inner` cycles of Nest.

    Args:
        reading: of the abstract.
        stages: n, 1 at least.
        inner: whether there are inner cycles.
        judged: whether intermediate pictures of the cascaded reading are judged.
    """
    read = {"cascaded": _cascaded, "alternating": _alternating}[reading]
    both = {domain: read(domain, stages, judged) for domain in FORTH}
    cycles = [c for _, _, found in both.values() for c in found if inner or c.name == "long"]
    return Wiring(
        tuple(f"{letter}{n}" for letter in FORTH.values() for n in range(1, stages + 1)),
        {domain: route for domain, (route, _, _) in both.items()},
        tuple(term for _, found, _ in both.values() for term in found),
        tuple(cycles),
    )


Terms = tuple[Route, list[Adversarial], list[Cycle]]


def _cascaded(domain: str, stages: int, judged: bool) -> Terms:
    """Of one domain: there through all stages, and back."""
    numbers = range(1, stages + 1) if domain == "x" else range(stages, 0, -1)
    whole: Route = (domain, *(f"{FORTH[domain]}{n}" for n in numbers))
    there = [whole[: 1 + n] for n in range(1, stages + 1)]
    back = tuple(f"{BACK[domain]}{n}" for n in reversed(numbers))
    shown = there if judged else [whole]
    cycles = [Cycle("long", whole + back, (domain,))]
    cycles += [Cycle("inner", whole + back[: stages - n], there[n - 1]) for n in range(1, stages)]
    return whole, [Adversarial("adversarial", r, other(domain)) for r in shown], cycles


def _alternating(domain: str, stages: int, judged: bool) -> Terms:
    """Of one domain: there and back at every stage."""
    whole: Route = (domain,)
    for n in range(1, stages + 1):
        whole += (f"{FORTH[domain]}{n}", f"{BACK[domain]}{n}")
    routes = [whole[:n] for n in range(1, len(whole) + 1)]
    sides = [domain, other(domain)]
    shown = [Adversarial("adversarial", r, sides[n % 2]) for n, r in enumerate(routes) if n]
    inner = [Cycle("inner", route, routes[n - 2]) for n, route in enumerate(routes) if n > 1]
    return routes[-2], shown[:-1], [Cycle("long", whole, (domain,)), *inner[:-1]]


def other(domain: str) -> str:
    """The other domain."""
    return "y" if domain == "x" else "x"
