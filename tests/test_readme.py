"""The commands and examples of README.md and docs/ run as printed, after one run of the demo."""

import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from pages import CURL, MAKE, README, RUN, SERVE, SERVED, TEXTS, WORDS, blocks, commands, run
from PIL import Image
from running import ROOT
from service import Service

pytestmark = pytest.mark.timeout(1500)


@pytest.fixture(scope="module")
def workplace(demo: tuple[Path, str, str]) -> Path:
    """The folder in which the demo has run."""
    folder, output, error = demo
    assert "ray" not in error.lower(), "Ray speaks on the terminal"
    (folder / "demo.json").write_text(output)
    return folder


def said(printed: dict[str, str], start: str) -> str:
    """What the first command that starts so has printed."""
    return next(text for line, text in printed.items() if line.startswith(start))


# --- what the pages hold ----------------------------------------------------------------------


def test_readme_is_read_in_two_minutes() -> None:
    assert len(TEXTS[README].splitlines()) < 120


def test_readme_names_two_commands_and_then_eight() -> None:
    assert MAKE == ["make demo", "make test", "make serve"]
    assert tuple(re.findall(r"^\| \[`imgray (\w+)`", TEXTS[README], re.MULTILINE)) == WORDS


def test_every_command_is_run_by_a_test_and_stands_once() -> None:
    printed = [line for line in commands("") if line]
    assert sorted(printed) == sorted([*MAKE, *CURL, *RUN, SERVE])
    assert len(set(printed)) == len(printed)
    assert {line.split()[1] for line in printed if line.startswith("imgray")} >= {*WORDS} - {"demo"}


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_resolve(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", TEXTS[page]):
        if not link.startswith("https://"):
            file, _, heading = link.partition("#")
            target = page.parent / file if file else page
            assert target.exists(), link
            assert not heading or heading in headings(target), link


def headings(page: Path) -> list[str]:
    """The headings of a page as GitHub names them in links."""
    found = re.findall(r"^#+ (.*)", page.read_text(), re.MULTILINE)
    return [re.sub(r"[^\w -]", "", text.lower()).replace(" ", "-") for text in found]


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_are_named_exist(page: Path) -> None:
    for name in re.findall(
        r"`((?:imgray|jobs|tests|cluster|notebooks|docs)/[^`\s]*)`", TEXTS[page]
    ):
        assert (ROOT / name).exists(), name


def test_architecture_names_every_room() -> None:
    (page,) = (text for path, text in TEXTS.items() if path.name == "architecture.md")
    inside = [path for path in (ROOT / "imgray").iterdir() if not path.name.startswith("__")]
    rooms = [f"{path.name}/" if path.is_dir() else path.name for path in inside]
    assert [room for room in rooms if f"`{room}`" not in page] == []


# --- the commands -----------------------------------------------------------------------------


def test_make_demo_runs_the_demo() -> None:
    for images, expected in [("", "imgray demo"), ("a b", 'imgray demo --images "a b"')]:
        shown = subprocess.run(
            ["make", "-n", "demo", f"IMAGES={images}"], cwd=ROOT, capture_output=True, text=True
        )
        assert expected in shown.stdout, shown.stderr


def test_make_serve_serves_the_demos_index() -> None:
    command = ["make", "--no-print-directory", "-n", "serve", "MODELS=a=b"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    *_, trains, serves = shown.stdout.splitlines()
    assert trains.endswith("imgray demo --models --translator"), shown.stderr
    *_, flags = serves.partition("imgray serve ")
    assert shlex.split(flags) == [*SERVED, "a=b"]


@pytest.mark.slow
def test_demo_prints_its_table_and_draws_its_sheets(workplace: Path) -> None:
    result = json.loads((workplace / "demo.json").read_text())
    scores = {line["name"]: line["scores"] for line in result["table"]}
    assert len(scores) == 6
    for values in scores.values():
        assert 0.6 < values["mAP"] < 1
        assert 0.6 < values["recall@1"] <= 1
    singles = [v["mAP"] for name, v in scores.items() if name.startswith("DeepIndex")]
    assert scores["multi-DeepIndex, both"]["mAP"] > max(singles)
    for path in result["contact_sheets"]:
        assert Image.open(workplace / path).width > 1000


@pytest.mark.slow
def test_the_demos_models_have_learnt(workplace: Path) -> None:
    models = json.loads((workplace / "demo.json").read_text())["models"]
    found = {
        name: json.loads((workplace / folder / "manifest.json").read_text())["about"]["metrics"]
        for name, folder in models.items()
    }
    assert found["digits"]["top1_error"] < 0.2
    assert found["materials"]["miou"] > 0.5
    assert found["edges"]["loss"] < 0.6


@pytest.mark.slow
def test_index_answers_as_printed(workplace: Path, printed: dict[str, str]) -> None:
    assert "232 images done, 0 rejected, 232 listed" in said(printed, "imgray extract")
    assert "coffee" in said(printed, "imgray search --index out/index").splitlines()[2]
    scores = json.loads(said(printed, "imgray evaluate index"))
    assert {"map", "precision@10", "recall@1", "ns_score"} <= scores.keys()
    assert Image.open(workplace / "out/coffee.png").format == "PNG"


@pytest.mark.slow
def test_model_is_trained_as_printed(workplace: Path, printed: dict[str, str]) -> None:
    assert "cfn-digits" in said(printed, "imgray train --list")
    assert json.loads(said(printed, "imgray evaluate model"))["top1_error"] < 0.5
    assert "1,797 images done" in said(printed, "imgray predict")
    for name in ("confusion.png", "digits.png", "model/curves.png", "model/fusion.png"):
        assert Image.open(workplace / "out" / name).width > 400


@pytest.mark.slow
@pytest.mark.parametrize("example", blocks("python"))
def test_examples_run_as_printed(workplace: Path, example: str) -> None:
    run(shlex.join(["python", "-c", example]), workplace)


@pytest.mark.slow
def test_the_service_answers_as_printed(workplace: Path, page_service: Service) -> None:
    (workplace / "README.md").write_text("no picture")
    views = workplace / "out/photographs/collection/images"
    Image.open(views / "coffee-1.jpg").save(workplace / "out/coffee.png")
    answers = []
    try:
        for line in CURL:
            command = shlex.split(line.replace("http://127.0.0.1:8000", page_service.url))
            done = subprocess.run(command, cwd=workplace, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            answers.append(json.loads(done.stdout or "null"))
    finally:
        code, error = page_service.stop()
    assert code == 0, error
    by_bytes, by_id, batch, embedded, _, named, mapped, digit, *others = answers
    materials, _, _, index, models = others
    assert by_bytes["results"][0]["id"] == by_id["results"][0]["id"] == "coffee-2.jpg"
    assert all(row["id"].startswith("c") for row in by_id["results"])
    assert list(batch["answers"][1]) == ["error"]
    assert embedded["features"].keys() == index["features"].keys()
    assert digit["classes"][0]["name"] == "3"
    assert named["outputs"]["labels"] == digit["classes"]
    known = {one["name"] for one in mapped["outputs"]["classes"]}
    assert {one["name"] for one in mapped["outputs"]["mask"]["labels"]} == known
    assert sum(one["share"] for one in materials["classes"]) == pytest.approx(1, abs=1e-4)
    kinds = [(one["name"], one["kind"]) for one in models["models"]]
    assert kinds == [
        ("digits", "classify"), ("materials", "segment"), ("edges", "edges"), ("tint", "translate")
    ]  # fmt: skip
    for name in ("edges.png", "tinted.jpg"):
        painted = Image.open(workplace / "out" / name)
        assert painted.size == Image.open(workplace / "out/coffee.png").size
    assert max(Image.open(workplace / "out/small.jpg").size) == 128


@pytest.mark.slow
def test_demo_on_own_images_and_again(workplace: Path, ray_cluster: None) -> None:
    folder = workplace / "mine"
    folder.mkdir()
    views = sorted((workplace / "out/photographs/collection/images").iterdir())
    for path in views[::6]:
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "broken.jpg").write_bytes(b"not a picture")
    output, error = run("imgray demo --images mine --json", workplace)
    assert "broken.jpg" in error
    result = json.loads(output)
    assert result["images"] == len(views[::6])
    assert "recall@10" in result["table"][0]["scores"]
    before = (workplace / result["index"] / "manifest.json").stat().st_mtime_ns
    run("imgray demo --images mine", workplace)
    assert (workplace / result["index"] / "manifest.json").stat().st_mtime_ns == before
