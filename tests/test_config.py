import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Literal

import pytest
from pydantic import BaseModel, Field, field_validator

from imgray.cli import parse, run_job
from imgray.config import JobConfig, class_named, validate
from imgray.engine.settings import ExtractConfig
from imgray.errors import TooManyRejected, UserError, cause_of


class Settings(JobConfig):
    """Mow the lawn."""

    runtime: ClassVar[frozenset[str]] = frozenset({"worker_count"})

    lawn: str = Field(description="where to mow")
    worker_count: int | None = Field(default=None, ge=1, description="how many mow, 100% at once")
    height: float = Field(default=3.5, gt=0, description="in cm")
    tools: list[str] = Field(default=["scythe"], description="what with")
    pattern: Literal["rows", "spiral"] = Field(default="rows", description="which way")
    wet: bool = Field(default=False, description="even in the rain")

    @field_validator("lawn")
    @classmethod
    def _not_the_neighbours(cls, value: str) -> str:
        if value == "next-door":
            raise ValueError("not yours")
        return value


class Mown(BaseModel):
    lawn: str

    def __str__(self) -> str:
        return f"mown: {self.lawn}"


def _config(*argv: str) -> Settings:
    return parse(Settings, argv)[0]


def _refused(*argv: str) -> str:
    with pytest.raises(UserError) as error:
        parse(Settings, argv)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_flags_become_typed_settings() -> None:
    config = _config(
        *("--lawn", "a b", "--worker-count", "2", "--height", "4", "--tools", "x", "y"),
        *("--pattern", "spiral", "--wet"),
    )
    assert config.model_dump() == {
        "lawn": "a b",
        "worker_count": 2,
        "height": 4.0,
        "tools": ["x", "y"],
        "pattern": "spiral",
        "wet": True,
    }
    assert _config("--lawn", "x") == Settings(lawn="x")
    assert parse(Settings, ["--lawn", "x", "--json"])[1]
    assert not parse(Settings, ["--lawn", "x"])[1]


def test_identity_leaves_out_what_does_not_change_the_result() -> None:
    few, many = (_config("--lawn", "x", "--worker-count", n) for n in "19")
    assert few.identity() == many.identity()
    assert "worker_count" not in few.identity()
    assert _config("--lawn", "x", "--wet").identity() != few.identity()
    json.dumps(few.identity())


def test_flags_win_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "mow.yaml"
    path.write_text("lawn: back\nworker-count: 3\nheight: 2\nwet: true\ntools: [a, b]\n")
    config = _config("--config", str(path), "--height", "9", "--no-wet")
    assert (config.lawn, config.worker_count, config.height) == ("back", 3, 9.0)
    assert config.tools == ["a", "b"]
    assert not config.wet


def test_faults_are_named_by_their_flag() -> None:
    assert _refused() == "--lawn is required (see --help)"
    fault = _refused("--lawn", "next-door", "--worker-count", "0", "--height", "tall")
    assert fault.startswith("--lawn: not yours; --worker-count: ")
    assert "--height: " in fault
    assert "unknown setting 'colour'" in str(_fault_of({"lawn": "x", "colour": 1}))


def _fault_of(values: dict[str, object]) -> UserError:
    with pytest.raises(UserError) as error:
        validate(Settings, values)
    return error.value


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"a: [", "not YAML"),
        (b"\xff\xfe\x00", "not YAML"),
        (b"- a\n- b\n", "expected `setting: value` lines"),
        (b"lawn: x\nheigth: 2\n", "unknown setting 'heigth'"),
        (b"", "--lawn is required"),
        (b"lawn: !!python/object/apply:os.getcwd []", "not YAML"),
        (b"lawn: [", "not YAML"),
        (b"lawn: 2024-13-45", "not YAML"),
        (b"? [a]\n: b\n", "not YAML|unknown setting"),
        (b"lawn: x\ntools: 3\n", "--tools: "),
    ],
)
def test_a_bad_file_is_refused_in_one_line(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    assert any(part in _refused("--config", str(path)) for part in reason.split("|"))


def test_an_unknown_setting_is_named_with_its_file(tmp_path: Path) -> None:
    path = tmp_path / "mow.yaml"
    path.write_text("lawn: x\nheigth: 2\n")
    assert _refused("--config", str(path)).startswith(f"--config {path}: unknown setting 'heigth'")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    assert "No such file" in _refused("--config", str(tmp_path / "none.yaml"))
    assert "directory" in _refused("--config", str(tmp_path))


@pytest.mark.parametrize(
    "argv", [["--lawns", "x"], ["--law", "x"], ["--pattern", "zigzag"], ["x"], ["--height"]]
)
def test_the_parser_itself_refuses_with_code_2(
    argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as error:
        parse(Settings, argv)
    assert error.value.code == 2
    assert "usage" in capsys.readouterr().err


@pytest.mark.parametrize("model", [Settings, ExtractConfig])
def test_help_names_every_setting(
    model: type[JobConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as error:
        parse(model, ["--help"])
    assert error.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for name, field in model.model_fields.items():
        assert f"--{name.replace('_', '-').rstrip('-')}" in text
        assert field.description
        assert field.description.split()[-1] in text


def _run(work: object, capsys: pytest.CaptureFixture[str], *flags: str) -> tuple[int, str, str]:
    code = run_job(Settings, work, ["--lawn", "x", *flags])  # type: ignore[arg-type]
    out, err = capsys.readouterr()
    return code, out, err


def _raising(error: BaseException):
    def work(_: Settings) -> Mown:
        raise error

    return work


def test_a_job_prints_its_result(capsys: pytest.CaptureFixture[str]) -> None:
    def work(config: Settings) -> Mown:
        return Mown(lawn=config.lawn)

    assert _run(work, capsys) == (0, "mown: x\n", "")
    code, out, err = _run(work, capsys, "--json")
    assert (code, json.loads(out), err) == (0, {"lawn": "x"}, "")


def test_a_result_may_name_the_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    class Withered(Mown):
        exit_code: ClassVar[int] = 2

    assert _run(lambda config: Withered(lawn=config.lawn), capsys) == (2, "mown: x\n", "")


def test_what_the_work_prints_is_no_result(capsys: pytest.CaptureFixture[str]) -> None:
    def work(config: Settings) -> Mown:
        print("noise")
        return Mown(lawn=config.lawn)

    assert _run(work, capsys, "--json") == (0, '{"lawn": "x"}\n', "noise\n")


def test_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(_raising(UserError("dull blade")), capsys) == (2, "", "error: dull blade\n")
    assert _run(_raising(TooManyRejected("3 of 4")), capsys) == (3, "", "error: 3 of 4\n")
    code, out, err = _run(_raising(KeyboardInterrupt()), capsys)
    assert (code, out) == (130, "")
    assert "interrupted" in err
    assert run_job(Settings, _raising(UserError("")), []) == 2
    with pytest.raises(ZeroDivisionError):
        _run(_raising(ZeroDivisionError()), capsys)


def test_the_cause_is_found_however_deeply_it_is_wrapped() -> None:
    class Wrapper(Exception):
        cause: BaseException | None = None

    inner = UserError("inner")
    wrapped = Wrapper()
    wrapped.cause = inner
    assert cause_of(inner) is inner
    assert cause_of(wrapped) is inner
    outer = ValueError()
    outer.__cause__ = wrapped
    assert cause_of(outer) is inner
    circle = ValueError()
    circle.__cause__ = circle
    assert cause_of(circle) is None


@pytest.fixture
def stranger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file that appears as soon as any code of the package `stranger` runs."""
    mark = tmp_path / "ran"
    (tmp_path / "stranger").mkdir()
    (tmp_path / "stranger/__init__.py").touch()
    (tmp_path / "stranger/tasks.py").write_text(
        f"open({str(mark)!r}, 'w')\nclass Good(dict): pass\nclass Bad: pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield mark
    for name in ("stranger", "stranger.tasks"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("trusted", [None, "", ",", "strange, stranger.task", "stranger.tasks.x"])
def test_no_code_of_a_module_runs_that_is_not_trusted(
    stranger: Path, trusted: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if trusted is None:
        monkeypatch.delenv("IMGRAY_TRUSTED_MODULES", raising=False)
    else:
        monkeypatch.setenv("IMGRAY_TRUSTED_MODULES", trusted)
    way_out = r"stranger\.tasks:Good.* not trusted.* set IMGRAY_TRUSTED_MODULES=.*\bstranger in"
    with pytest.raises(UserError, match=way_out):
        class_named("stranger.tasks:Good", dict, "task")
    assert not stranger.exists()
    assert not sys.modules.keys() & {"stranger", "stranger.tasks"}


@pytest.mark.parametrize("trusted", ["stranger", "stranger.tasks", "other, stranger"])
def test_a_trusted_module_is_imported_and_its_type_checked(
    stranger: Path, trusted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMGRAY_TRUSTED_MODULES", trusted)
    assert class_named("stranger.tasks:Good", dict, "task").__name__ == "Good"
    with pytest.raises(UserError, match=r"task 'stranger\.tasks:Bad': not a task"):
        class_named("stranger.tasks:Bad", dict, "task")


@pytest.mark.parametrize("name", ["", ":", "imgray.errors", "imgray.errors:", ":X", ".errors:X"])
def test_what_names_no_class_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=r"expected package\.module:Class"):
        class_named(name, Exception, "task")


def test_a_package_whose_name_begins_with_ours_is_not_ours() -> None:
    with pytest.raises(UserError, match="module imgray_evil is not trusted"):
        class_named("imgray_evil:X", dict, "task")
    assert class_named("imgray.errors:UserError", Exception, "error") is UserError


def test_a_class_that_a_module_of_ours_has_only_imported_is_not_ours() -> None:
    """`torch.nn` has classes that read files or fill memory, with arguments of an artifact."""
    with pytest.raises(UserError, match=r"BaseModel': module pydantic\.main is not trusted"):
        class_named("imgray.config:BaseModel", BaseModel, "network")


@pytest.mark.parametrize("text", ["[" * 5000, "a: " + "{b: " * 3000])
def test_settings_nested_without_end_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "deep.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=r"deep.yaml: (nested too deeply|not YAML)"):
        parse(Settings, ["--config", str(path)])


def test_a_class_that_is_only_a_base_is_none_of_its_kind() -> None:
    from imgray.training.task import Task

    with pytest.raises(UserError, match="not a task"):
        class_named("imgray.training.task:Task", Task, "task")
