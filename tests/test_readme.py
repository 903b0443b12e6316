"""The README's commands run as printed, one after the other, from the demo on."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from service import start

pytestmark = pytest.mark.timeout(1500)
ROOT = Path(__file__).parents[1]
SERVED = shlex.split(
    "--index out/photographs/index-2"
    " --model digits=out/models/digits materials=out/models/materials edges=out/models/edges"
)
README = (ROOT / "README.md").read_text()
SECTIONS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", README, re.DOTALL | re.MULTILINE))
BLOCK = re.compile(r"```sh\n(.*?)```", re.DOTALL)


def commands(prefix: str, section: str) -> list[str]:
    """A section's command lines that start so, continuation lines joined, comments cut."""
    lines = "".join(BLOCK.findall(SECTIONS[section])).replace("\\\n", " ").splitlines()
    return [line.partition("#")[0].strip() for line in lines if line.startswith(prefix)]


def run(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    words = shlex.split(command)
    assert words[0] == "python"
    return subprocess.run(
        [sys.executable, *words[1:]], cwd=folder, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty folder with the job scripts, in which `make demo` has run its job."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "jobs").symlink_to(ROOT / "jobs")
    done = run("python jobs/demo.py --models --json", folder)
    assert done.returncode == 0, done.stderr
    assert "ray" not in done.stderr.lower(), "Ray speaks on the terminal"
    (folder / "demo.json").write_text(done.stdout)
    return folder


def test_readme_names_two_commands_and_the_jobs() -> None:
    assert commands("make", "Two commands") == ["make demo", "make test"]
    assert commands("make", "Serving") == ["make serve"]
    jobs = [shlex.split(line)[1] for name in SECTIONS for line in commands("python jobs", name)]
    names = ("extract", "index", "search", "evaluate", "train", "evaluate", "predict")
    assert jobs == [f"jobs/{name}.py" for name in names]


def test_make_demo_runs_the_demo() -> None:
    for images, expected in [("", "bin/imgray demo"), ("a b", 'bin/imgray demo --images "a b"')]:
        shown = subprocess.run(
            ["make", "-n", "demo", f"IMAGES={images}"], cwd=ROOT, capture_output=True, text=True
        )
        assert expected in shown.stdout, shown.stderr


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
def test_commands_run_as_printed(workplace: Path) -> None:
    printed = {}
    for command in commands("python", "The jobs"):
        done = run(command, workplace)
        assert done.returncode == 0, f"{command}\n{done.stderr}"
        printed[shlex.split(command)[1]] = done.stdout
    assert "coffee" in printed["jobs/search.py"].splitlines()[2]
    scores = json.loads(printed["jobs/evaluate.py"])
    assert {"map", "precision@10", "recall@1", "ns_score"} <= scores.keys()
    assert Image.open(workplace / "out/coffee.png").format == "PNG"


@pytest.mark.slow
def test_training_commands_run_as_printed(tmp_path: Path) -> None:
    (tmp_path / "jobs").symlink_to(ROOT / "jobs")
    printed = {}
    for command in commands("python", "Training"):
        done = run(command, tmp_path)
        assert done.returncode == 0, f"{command}\n{done.stderr}"
        printed[shlex.split(command)[1]] = done.stdout
    scores = json.loads(printed["jobs/evaluate.py"])
    assert scores["top1_error"] < 0.5
    assert "1,797 images done" in printed["jobs/predict.py"]
    for name in ("confusion.png", "digits.png", "model/curves.png", "model/fusion.png"):
        assert Image.open(tmp_path / "out" / name).width > 400


def test_make_serve_serves_the_demos_index() -> None:
    command = ["make", "--no-print-directory", "-n", "serve", "MODELS=a=b"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    *_, trains, serves = shown.stdout.splitlines()
    assert trains.endswith("bin/imgray demo --models"), shown.stderr
    *_, flags = serves.partition("bin/imgray serve ")
    assert shlex.split(flags) == [*SERVED, "a=b"]


@pytest.mark.slow
def test_the_service_answers_as_printed(workplace: Path) -> None:
    (workplace / "README.md").write_text("no picture")
    views = workplace / "out/photographs/collection/images"
    Image.open(views / "coffee-1.jpg").save(workplace / "out/coffee.png")
    service = start(*(flag.replace("out/", f"{workplace}/out/") for flag in SERVED))
    answers = []
    try:
        for line in commands("curl", "Serving"):
            command = shlex.split(line.replace("http://127.0.0.1:8000", service.url))
            done = subprocess.run(command, cwd=workplace, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            answers.append(json.loads(done.stdout or "null"))
    finally:
        code, error = service.stop()
    assert code == 0, error
    by_bytes, by_id, batch, embedded, _, digit, materials, _, index, models = answers
    assert by_bytes["results"][0]["id"] == by_id["results"][0]["id"] == "coffee-2.jpg"
    assert all(row["id"].startswith("c") for row in by_id["results"])
    assert list(batch["answers"][1]) == ["error"]
    assert embedded["features"].keys() == index["features"].keys()
    assert digit["classes"][0]["name"] == "3"
    assert sum(one["share"] for one in materials["classes"]) == pytest.approx(1, abs=1e-4)
    kinds = [(one["name"], one["kind"]) for one in models["models"]]
    assert kinds == [("digits", "classify"), ("materials", "segment"), ("edges", "edges")]
    assert (
        Image.open(workplace / "out/edges.png").size
        == Image.open(workplace / "out/coffee.png").size
    )
    assert max(Image.open(workplace / "out/small.jpg").size) == 128


@pytest.mark.slow
def test_demo_on_own_images_and_again(workplace: Path) -> None:
    folder = workplace / "mine"
    folder.mkdir()
    views = sorted((workplace / "out/photographs/collection/images").iterdir())
    for path in views[::6]:
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "broken.jpg").write_bytes(b"not a picture")
    done = run("python jobs/demo.py --images mine --json", workplace)
    assert done.returncode == 0, done.stderr
    assert "broken.jpg" in done.stderr
    result = json.loads(done.stdout)
    assert result["images"] == len(views[::6])
    assert "recall@10" in result["table"][0]["scores"]
    before = (workplace / result["index"] / "manifest.json").stat().st_mtime_ns
    assert run("python jobs/demo.py --images mine", workplace).returncode == 0
    assert (workplace / result["index"] / "manifest.json").stat().st_mtime_ns == before
