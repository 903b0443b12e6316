import csv
import socket
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imgray.data import samples
from imgray.errors import UserError


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the samples reached for the network")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return samples.write_views(tmp_path_factory.mktemp("views"), views=3, seed=1)


def _truth(folder: Path) -> list[dict[str, str]]:
    with open(folder / "truth.csv", newline="") as file:
        return list(csv.DictReader(file))


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "images").iterdir())}


def _few(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    monkeypatch.setattr(samples, "_FILES", {name: samples._FILES[name] for name in names})


def _signature(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB").resize((16, 16)), dtype=float)


def test_photographs_are_distinct_rgb_pictures() -> None:
    found = samples.photographs()
    assert len(found) == 29
    assert list(found) == sorted(found)
    for picture in found.values():
        assert picture.mode == "RGB"
        assert min(picture.size) >= 100
        assert np.asarray(picture).std() > 5
    small = [np.asarray(picture.resize((16, 16)), dtype=float) for picture in found.values()]
    gaps = [np.abs(a - b).mean() for i, a in enumerate(small) for b in small[:i]]
    assert min(gaps) > 2


def test_quarters_of_a_photograph_do_not_overlap() -> None:
    picture = Image.fromarray(np.arange(80, dtype=np.uint8).reshape(10, 8))
    parts = [set(np.asarray(part).ravel().tolist()) for part in samples._quarters(picture)]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 80


def test_truth_lists_each_file_once_with_its_photograph(folder: Path) -> None:
    truth = _truth(folder)
    ids = [row["id"] for row in truth]
    assert list(truth[0]) == ["id", "group"]
    assert len(set(ids)) == len(ids)
    assert set(ids) == set(_contents(folder))
    assert Counter(row["group"] for row in truth) == dict.fromkeys(samples.photographs(), 3)
    assert all(row["id"].rpartition("-")[0] == row["group"] for row in truth)


def test_views_are_small_jpegs_and_differ_within_a_group(folder: Path) -> None:
    for group in samples.photographs():
        views = [folder / "images" / f"{group}-{k}.jpg" for k in range(3)]
        for path in views:
            with Image.open(path) as image:
                assert image.format == "JPEG"
                assert 50 <= min(image.size) <= max(image.size) <= 640
        seen = [_signature(path) for path in views]
        assert min(np.abs(seen[i] - seen[j]).mean() for i, j in ((0, 1), (0, 2), (1, 2))) > 1


def test_view_0_is_the_photograph(folder: Path) -> None:
    for name, picture in samples.photographs().items():
        original = np.asarray(picture.resize((16, 16), reducing_gap=3), dtype=float)
        assert np.abs(original - _signature(folder / "images" / f"{name}-0.jpg")).mean() < 4


@pytest.mark.parametrize("size", [(128, 128), (160, 107), (112, 43), (45, 200)])
def test_a_view_shows_nothing_from_beyond_the_photograph(size: tuple[int, int]) -> None:
    white = Image.new("RGB", size, "white")
    for seed in range(40):
        seen = np.asarray(samples._framed(white, np.random.default_rng(seed)))
        assert seen.min() == 255


@pytest.mark.parametrize(("size", "turn"), [((128, 128), 18), ((112, 43), 7)])
def test_a_view_keeps_40_to_90_percent_and_turns_up_to_25_degrees(
    size: tuple[int, int], turn: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    corners: list[np.ndarray] = []
    solve = samples._homography
    monkeypatch.setattr(samples, "_homography", lambda t, s: corners.append(s) or solve(t, s))
    for seed in range(200):
        samples._framed(Image.new("RGB", size), np.random.default_rng(seed))
    areas, angles = [], []
    for box in corners:
        x, y = box.T
        areas.append(abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2 / (size[0] * size[1]))
        across = box[1] + box[2] - box[0] - box[3]
        angles.append(abs(np.degrees(np.arctan2(across[1], across[0]))))
    assert 0.4 <= min(areas) < 0.5 < 0.7 < max(areas) <= 0.9
    assert turn < max(angles) < 30


def test_documents_are_never_mirrored(monkeypatch: pytest.MonkeyPatch) -> None:
    ramp = np.tile(np.linspace(0, 255, 300), (200, 1)).astype(np.uint8)
    picture = Image.fromarray(ramp).convert("RGB")
    monkeypatch.setattr(samples, "_jpeg", lambda seen, quality: np.asarray(seen, dtype=float))

    def mirrored(name: str) -> set[bool]:
        views = [samples._view(picture, name, k, seed=0).mean((0, 2)) for k in range(1, 13)]
        return {bool(view[:20].mean() > view[-20:].mean()) for view in views}

    assert mirrored("page") == mirrored("text") == {False}
    assert mirrored("china") == {False, True}


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _few(monkeypatch, "coins", "page")
    same = _contents(samples.write_views(tmp_path / "same", views=3, seed=1))
    other = _contents(samples.write_views(tmp_path / "other", views=3, seed=2))
    assert same == {name: _contents(folder)[name] for name in same}
    assert {name for name in same if same[name] == other[name]} == {"coins-0.jpg", "page-0.jpg"}


def test_more_views_keep_the_first_ones(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _few(monkeypatch, "cell")
    more = _contents(samples.write_views(tmp_path, views=4, seed=1))
    assert len(more) == 4
    assert all(more[f"cell-{k}.jpg"] == _contents(folder)[f"cell-{k}.jpg"] for k in range(3))


def test_a_finished_folder_is_reused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise AssertionError("photographs were opened again")

    monkeypatch.setattr(samples, "photographs", refuse)
    files = [path for path in folder.rglob("*") if path.is_file()]
    before = {path: path.stat().st_mtime_ns for path in files}
    assert samples.write_views(folder, views=3, seed=1) == folder
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_an_interrupted_writing_is_completed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _few(monkeypatch, "chelsea", "coins")
    view = samples._view

    def failing(picture: Image.Image, name: str, k: int, seed: int) -> bytes:
        if (name, k) == ("coins", 1):
            raise KeyboardInterrupt
        return view(picture, name, k, seed)

    monkeypatch.setattr(samples, "_view", failing)
    with pytest.raises(KeyboardInterrupt):
        samples.write_views(tmp_path / "a", views=2)
    assert not (tmp_path / "a" / "truth.csv").exists()
    assert set(_contents(tmp_path / "a")) == {"chelsea-0.jpg", "chelsea-1.jpg", "coins-0.jpg"}

    drawn: list[str] = []
    monkeypatch.setattr(samples, "_view", lambda p, n, k, s: drawn.append(n) or view(p, n, k, s))
    samples.write_views(tmp_path / "a", views=2)
    assert drawn == ["coins"]
    samples.write_views(tmp_path / "b", views=2)
    assert _contents(tmp_path / "a") == _contents(tmp_path / "b")
    assert _truth(tmp_path / "a") == _truth(tmp_path / "b")


@pytest.mark.parametrize("changed", [{"views": 4}, {"seed": 2}])
def test_a_folder_of_other_settings_is_refused(folder: Path, changed: dict[str, int]) -> None:
    before = _contents(folder)
    with pytest.raises(UserError, match=r"name another folder"):
        samples.write_views(folder, **{"views": 3, "seed": 1, **changed})
    assert _contents(folder) == before


@pytest.mark.parametrize("wrong", [{"views": 0}, {"seed": -1}])
def test_settings_out_of_range_are_refused(tmp_path: Path, wrong: dict[str, int]) -> None:
    with pytest.raises(UserError, match=r"at least 1 view"):
        samples.write_views(tmp_path / "new", **wrong)
    assert not (tmp_path / "new").exists()


def test_missing_packages_are_named_with_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "find_spec", lambda package: None)
    with pytest.raises(UserError, match=r"skimage/data/astronaut\.png .*imgray\[demo\]"):
        samples.photographs()


def test_a_package_without_its_pictures_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "_FILES", {"x": ("skimage", "data/x.png")})
    with pytest.raises(UserError, match=r"skimage/data/x\.png is not installed.*demo"):
        samples.photographs()


def test_digits_lie_in_a_folder_each(tmp_path: Path) -> None:
    samples.write_digits(tmp_path / "digits")
    files = sorted((tmp_path / "digits").glob("?/*.png"))
    assert len(files) == 1797
    assert Counter(path.parent.name for path in files)["0"] == 178
    names = ("0/0000.png", "1/0001.png")
    zero, one = (np.asarray(Image.open(tmp_path / "digits" / name)) for name in names)
    assert zero.shape == one.shape == (32, 32)
    assert zero[12:20, 12:20].mean() < 50 < one[12:20, 12:20].mean()
