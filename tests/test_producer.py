"""The one way of jobs to an artifact: what a start, a second start and a refusal leave behind."""

from pathlib import Path
from typing import Any

import pytest

from imgray.artifacts.folder import Folder
from imgray.artifacts.manifest import Manifest, entry_of, read_manifest
from imgray.engine.producer import produce
from imgray.errors import UserError

SETTINGS = {"size": 64}
NOTE = "_work/first.json"


class Work:
    """Two parts of a job; before a part of `refused` it finds that it cannot be done."""

    def __init__(self, settings: dict[str, Any], refused: int = 0) -> None:
        self.settings, self.refused = settings, refused
        self.done: list[str] = []

    def __call__(self, output: Folder) -> Manifest:
        parts = [NOTE, "part-2"]
        for number, name in enumerate(parts, 1):
            if number == self.refused:
                raise UserError("no such collection")
            if not output.exists(name):
                output.write(name, b"content")
                self.done.append(name)
        files = [entry_of("part-2", b"content")]
        return Manifest(kind="index", config=self.settings, files=files)


@pytest.fixture
def output(tmp_path: Path) -> Folder:
    return Folder(str(tmp_path / "artifact"))


def _produce(output: Folder, work: Work, overwrite: bool = False) -> Manifest:
    return produce(
        output, "index", work.settings, work, sources=[], notes=[NOTE], overwrite=overwrite
    )


def test_an_artifact_is_made_once(output: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    work = Work(SETTINGS)
    made = _produce(output, work)
    assert read_manifest(output, "index") == made
    assert list(output.sizes()) == ["manifest.json", "part-2"]
    assert capsys.readouterr().err == ""
    again = Work(SETTINGS)
    assert _produce(output, again) == made
    assert not again.done
    assert capsys.readouterr().err == f"{output.uri}: already built, nothing to do\n"


def test_a_refusal_before_the_first_part_leaves_nothing(output: Folder) -> None:
    with pytest.raises(UserError, match="no such collection"):
        _produce(output, Work(SETTINGS, refused=1))
    assert not output.sizes()
    _produce(output, Work({"size": 32}))


def test_a_refusal_after_the_first_part_keeps_it(output: Folder) -> None:
    with pytest.raises(UserError, match="no such collection"):
        _produce(output, Work(SETTINGS, refused=2))
    with pytest.raises(UserError, match=r"other settings \(size: 64 there, 32 now\)"):
        _produce(output, Work({"size": 32}))
    work = Work(SETTINGS)
    _produce(output, work)
    assert work.done == ["part-2"]


def test_what_is_published_stays_though_its_notes_cannot_be_removed(
    output: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    remove = Folder.remove

    def failing(self: Folder, name: str) -> None:
        remove(self, name)
        if name == NOTE:
            raise UserError("slow down")

    with monkeypatch.context() as patch:
        patch.setattr(Folder, "remove", failing)
        made = _produce(output, Work(SETTINGS))
    again = Work(SETTINGS)
    assert _produce(output, again) == made == read_manifest(output, "index")
    assert not again.done


def test_overwriting_does_all_anew(output: Folder) -> None:
    _produce(output, Work(SETTINGS))
    work = Work({"size": 32})
    assert _produce(output, work, overwrite=True).config == {"size": 32}
    assert work.done == [NOTE, "part-2"]


@pytest.mark.parametrize("inside", ["", "/images", "/a/b"])
def test_what_is_read_is_not_written_over(output: Folder, inside: str) -> None:
    made = _produce(output, Work(SETTINGS))
    work = Work(SETTINGS)
    with pytest.raises(UserError, match="which is read, lies there"):
        produce(
            output, "index", SETTINGS, work,
            sources=[output.uri + inside], notes=[NOTE], overwrite=True,
        )  # fmt: skip
    assert read_manifest(output, "index") == made
    beside = [output.uri + "-2", str(Path(output.uri).parent)]
    produce(output, "index", SETTINGS, work, sources=beside, notes=[NOTE])
