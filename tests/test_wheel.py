"""The wheel holds the whole package, the page and the recipes too, and the program `imgray`."""

import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest
from running import ROOT


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    if find_spec("hatchling") is None:
        pytest.skip("no hatchling, which builds the wheel; pip install hatchling")
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel"]
    subprocess.run([*build, "--directory", str(folder)], cwd=ROOT, check=True, timeout=120)
    [path] = folder.glob("*.whl")
    return zipfile.ZipFile(path)


def test_the_wheel_holds_what_the_tree_holds(wheel: zipfile.ZipFile) -> None:
    files = (path for path in Path(ROOT / "imgray").rglob("*") if path.is_file())
    tree = {path.relative_to(ROOT).as_posix() for path in files if path.suffix != ".pyc"}
    found = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert found == tree
    assert {"imgray/serving/page/index.html", "imgray/recipes/cfn-digits.yaml"} <= found


def test_the_wheel_installs_the_program(wheel: zipfile.ZipFile) -> None:
    [name] = (name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    assert "imgray = imgray.__main__:main" in wheel.read(name).decode().splitlines()
