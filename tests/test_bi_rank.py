"""The bi-rank loss against a loop over its definition, and what it leaves out of account."""

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from imgray.matching.bi_rank import BiRank, Pairs

PUBLISHED = (1.0, 0.5, 2.0, 1.0)
TWO = (1.0, 0.0, 2.0, 0.0)


def pairs(seed: int, count: int, dim: int = 6, siblings: int = 1, near: float = 0.5) -> Pairs:
    """Random pairs in float64, of which some texts share an image.

    They are multiples of 1/64, so that scores are exact and those of siblings equal.
    """
    torch.manual_seed(seed)
    images = F.normalize(torch.randn(-(-count // siblings), dim, dtype=torch.float64), dim=1)
    ids = torch.arange(len(images)).repeat_interleave(siblings)[torch.randperm(count)]
    noise = torch.randn(count, dim, dtype=torch.float64)
    texts = F.normalize(images[ids] + near * noise, dim=1)
    return Pairs(_rounded(images[ids]), _rounded(texts), ids)


def _rounded(vectors: Tensor) -> Tensor:
    return (vectors * 64).round() / 64


def loop(
    images: Any, texts: Any, ids: Any, alphas: tuple[float, ...], margin: float, most: int
) -> Tensor:
    """The definition, word by word; `images` and `texts` may be longer than the batch `ids[0]`."""
    count, own, all_ids = ids
    total = 0 * (images.sum() + texts.sum())
    for i in range(count):
        pair = -torch.dot(images[i], texts[i])
        near: dict[str, list[tuple[float, int]]] = {"text": [], "image": []}
        for j in range(len(all_ids)):
            if own[i] == all_ids[j]:
                continue
            for kind, distance in (
                ("text", -torch.dot(images[i], texts[j])),
                ("image", -torch.dot(images[j], texts[i])),
            ):
                if margin + pair - distance > 0:
                    near[kind].append((float(distance), j))
        for _, j in sorted(near["text"])[:most]:
            total = total + alphas[0] * F.relu(margin + pair + torch.dot(images[i], texts[j]))
            total = total + alphas[1] * F.relu(margin + pair + torch.dot(texts[i], texts[j]))
        for _, j in sorted(near["image"])[:most]:
            total = total + alphas[2] * F.relu(margin + pair + torch.dot(images[j], texts[i]))
            total = total + alphas[3] * F.relu(margin + pair + torch.dot(images[i], images[j]))
    return total / (most * count)


def definition(given: Pairs, loss: BiRank, others: Pairs | None = None) -> Tensor:
    both = given if others is None else Pairs(*map(torch.cat, zip(given, others, strict=True)))
    ids = len(given.ids), given.ids.tolist(), both.ids.tolist()
    return loop(both.images, both.texts, ids, loss.alphas, loss.margin, loss.negatives)


def gradients(value: Tensor, *of: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(value, of))


@pytest.mark.parametrize("alphas", [PUBLISHED, TWO, (0.0, 1.0, 0.0, 1.0)])
@pytest.mark.parametrize(
    ("seed", "count", "siblings", "negatives", "margin"),
    [
        (0, 24, 1, 5, 0.1), (1, 30, 5, 50, 0.1), (2, 25, 3, 4, 0.6), (3, 7, 7, 3, 0.2),
        (4, 2, 1, 9, 1.0),
    ],
)  # fmt: skip
def test_value_and_gradient_are_those_of_the_definition(
    alphas: Any, seed: int, count: int, siblings: int, negatives: int, margin: float
) -> None:
    given = pairs(seed, count, siblings=siblings)
    loss = BiRank(alphas, margin, negatives)
    images, texts = (one.clone().requires_grad_() for one in given[:2])
    given = given._replace(images=images, texts=texts)
    found, expected = loss(given), definition(given, loss)
    torch.testing.assert_close(found, expected)
    for one, other in zip(
        gradients(found, images, texts), gradients(expected, images, texts), strict=True
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("seed", range(3))
def test_numerical_gradients(seed: int) -> None:
    torch.manual_seed(seed)
    images, texts = F.normalize(torch.randn(2, 9, 6, dtype=torch.float64), dim=2)
    ids = torch.arange(9) // 2
    loss = BiRank(PUBLISHED, 0.2, 3)
    given = images.requires_grad_(), texts.requires_grad_()
    assert torch.autograd.gradcheck(lambda x, y: loss(Pairs(x, y, ids)), given)


@pytest.mark.parametrize("seed", range(3))
def test_negatives_are_also_sought_among_others(seed: int) -> None:
    given, others = pairs(seed, 12, siblings=2), pairs(seed + 9, 20, siblings=4)
    loss = BiRank(PUBLISHED, 0.3, 6)
    torch.testing.assert_close(loss(given, others), definition(given, loss, others))
    assert loss(given, others) != loss(given)


@pytest.mark.parametrize("seed", range(4))
def test_of_equally_near_ones_the_lower_index_counts(seed: int) -> None:
    """Vectors of few values have many ties, of which the choice shows in terms 2 and 4."""
    chance = np.random.default_rng(seed)
    signs = torch.as_tensor(chance.choice([-0.5, 0.5], size=(2, 20, 4)))
    given = Pairs(signs[0], signs[1], torch.arange(20))
    loss = BiRank((0.0, 1.0, 0.0, 1.0), 0.5, 3)
    torch.testing.assert_close(loss(given), definition(given, loss))


def test_pairs_of_one_image_are_never_negatives() -> None:
    images, texts, _ = pairs(0, 10, near=3.0)
    assert BiRank()(Pairs(images, texts, torch.zeros(10, dtype=torch.long))) == 0
    assert BiRank()(Pairs(images, texts, torch.arange(10))) > 0


def test_the_divisor_stays_where_there_are_fewer_negatives() -> None:
    given = pairs(0, 10, near=3.0)
    few, many = BiRank(margin=2.0, negatives=9), BiRank(margin=2.0, negatives=90)
    torch.testing.assert_close(few(given) * 9, many(given) * 90)


def test_equal_captions_of_two_images_are_negatives() -> None:
    """Exclusion is by image alone, as published."""
    images = torch.eye(2, dtype=torch.float64)
    texts = images[[0, 0]]
    assert BiRank(TWO)(Pairs(images, texts, torch.arange(2))) > 0


def test_scores_are_not_rounded_under_autocast() -> None:
    images, texts, ids = pairs(0, 40, dim=64)
    given = Pairs(images.float(), texts.float(), ids)
    exact = BiRank()(given)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(BiRank()(given), exact)
        half = BiRank()(Pairs(images.bfloat16(), texts.bfloat16(), ids))
    assert half.dtype == torch.float32
    assert math.isclose(half, exact, rel_tol=0.05)
