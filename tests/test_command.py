"""The command `imgray`: its commands, what they load, how they end."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from running import ROOT

from imgray import __version__
from imgray.__main__ import COMMANDS
from imgray.cli import load, run_command
from imgray.config import JobConfig
from imgray.training import catalog

HEAVY = {"ray", "torch", "faiss", "pyarrow", "transformers"}
JOBS = sorted(path.stem for path in ROOT.glob("jobs/*.py"))
OLD = ("classification", "segmentation", "edges")
INDEX = ["--index", "nowhere"]
WITH_INDEX = [
    ["index", "--features", "nowhere", "--output", "out", "--feature", "a"],
    ["search", *INDEX, "--query", "a.jpg"],
    ["evaluate", "index", *INDEX, "--queries", "q", "--truth", "t"],
    ["demo"],
    ["serve", *INDEX],
]


def _imgray(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "imgray", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def _python(code: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run code that ends with the exit code of a command line."""
    command = [sys.executable, "-c", code, *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def _light(*hidden: str) -> str:
    """A program that runs a command line without some modules, and loads none of the heavy ones."""
    return f"""
import sys
sys.modules |= dict.fromkeys({hidden!r})
from imgray.__main__ import COMMANDS
from imgray.cli import run_command
try:
    code = run_command(COMMANDS, sys.argv[1:])
except SystemExit as end:
    code = end.code
loaded = {HEAVY - set(hidden)!r} & set(sys.modules)
assert not loaded, loaded
sys.exit(code)
"""


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_has_settings_and_work(name: str) -> None:
    settings = load(COMMANDS[name].settings)
    assert issubclass(settings, JobConfig)
    assert callable(load(COMMANDS[name].work))
    assert len(settings.__doc__.splitlines()[0]) < 100


def test_help_has_a_line_for_each_command(capsys: pytest.CaptureFixture[str]) -> None:
    for words, code in ((["--help"], 0), (["-h"], 0), ([], 2)):
        with pytest.raises(SystemExit) as end:
            run_command(COMMANDS, words)
        assert end.value.code == code
        text = "".join(capsys.readouterr())
        found = [line.split("  ")[1] for line in text.splitlines() if line.startswith("  ")]
        assert found == list(COMMANDS)


def test_help_of_a_group_has_its_commands(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["evaluate"], ["evaluate", "--help"]):
        with pytest.raises(SystemExit):
            run_command(COMMANDS, words)
        text = "".join(capsys.readouterr())
        assert "evaluate index" in text
        assert "evaluate model" in text
        assert "extract" not in text
        assert "retrieval" not in text


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["extarct", "--images", "x"], "no command 'extarct': did you mean 'extract'?"),
        (["evaluate", "indx"], "no command 'evaluate indx': did you mean 'evaluate index'?"),
        (["evaluate", "--index", "x"], "no command 'evaluate --index': did you mean"),
        (["zebra"], "no command 'zebra': imgray --help lists them"),
        (["--images", "x", "extract"], "no command '--images': imgray --help lists them"),
    ],
)
def test_an_unknown_command_is_one_line(
    words: list[str], hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        run_command(COMMANDS, words)
    assert end.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    [line] = err.splitlines()
    assert line.startswith(f"error: {hint}")


@pytest.mark.parametrize(
    ("word", "name"),
    [("retrieval", "index"), *((word, "model") for word in OLD)],
)
def test_the_old_words_of_evaluate_still_work(
    word: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = []
    for asked in (word, name):
        with pytest.raises(SystemExit) as end:
            run_command(COMMANDS, ["evaluate", asked, "--help"])
        assert end.value.code == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--help"], 0),
        (["--version"], 0),
        (["extract", "--help"], 0),
        (["serve", "--help"], 0),
        (["verify", "--help"], 0),
        (["train", "--list"], 0),
        (["extract", "--imagez", "x"], 2),
        (["extract"], 2),
        (["extarct"], 2),
    ],
)
def test_help_and_wrong_lines_load_little(words: list[str], code: int) -> None:
    done = _python(_light(), *words)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr


def test_version_and_recipes_are_listed() -> None:
    assert _imgray("--version").stdout == f"imgray {__version__}\n"
    assert _imgray("train", "--list").stdout.strip() == catalog.listing()


def test_each_job_is_the_command_of_its_name() -> None:
    assert sorted({name.split()[0] for name in COMMANDS}) == JOBS
    for job in JOBS:
        script = [sys.executable, f"jobs/{job}.py", "--help"]
        done = subprocess.run(script, cwd=ROOT, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(f"usage: imgray {job} ")


@pytest.mark.parametrize("words", WITH_INDEX, ids=lambda words: words[0])
def test_a_missing_faiss_is_one_line_before_anything_starts(words: list[str]) -> None:
    done = _python(_light("faiss"), *words)
    assert done.returncode == 2, done.stderr
    [line] = done.stderr.splitlines()
    assert "pip install 'imgray[cpu]'" in line
    assert "imgray[gpu]" in line


def test_commands_without_an_index_need_no_faiss() -> None:
    names = ("extract", "train", "predict", "evaluate model", "serve")
    modules = ", ".join(COMMANDS[name].work.partition(":")[0] for name in names)
    done = _python(f"import sys; sys.modules['faiss'] = None; import {modules}")
    assert done.returncode == 0, done.stderr
    serve = COMMANDS["serve"]
    assert not serve.faiss(load(serve.settings)(model=["a=b"]))


def test_faiss_itself_is_asked_for_in_words() -> None:
    code = """
import sys
sys.modules["faiss"] = None
from imgray.errors import UserError
from imgray.retrieval.codebook import kmeans
import numpy
try:
    kmeans(numpy.eye(4, dtype=numpy.float32), 2, 0)
except UserError as error:
    sys.exit("imgray[cpu]" not in str(error))
"""
    assert _python(code).returncode == 0


@pytest.mark.parametrize("slow", ["settings", "work"])
def test_an_interrupt_while_modules_load_is_one_line(tmp_path: Path, slow: str) -> None:
    """An import that swallows exceptions, as some do, does not swallow this one."""
    (tmp_path / "fast.py").write_text(
        "from imgray.config import JobConfig\nclass Config(JobConfig):\n    '''Wait.'''\n"
    )
    (tmp_path / "slow.py").write_text(
        "import time\ntry:\n    print('loading', flush=True)\n    time.sleep(60)\n"
        "except BaseException as error:\n    raise ImportError('broken') from error\n"
        "from fast import Config\ndef work(config): ...\n"
    )
    (tmp_path / "run.py").write_text(
        "from imgray.cli import Command, run_command\n"
        f"settings = {'slow' if slow == 'settings' else 'fast'!r} + ':Config'\n"
        "run_command({'wait': Command(settings, 'slow:work')}, ['wait'])\n"
    )
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "run.py")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    stream = process.stdout if slow == "settings" else process.stderr
    assert stream is not None
    assert stream.readline() == "loading\n"
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=120)
    assert (process.returncode, error) == (130, "interrupted: nothing had begun\n")


def test_the_handler_of_interrupts_is_put_back() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit):
        run_command(COMMANDS, ["--version"])
    assert signal.getsignal(signal.SIGINT) is before


def test_a_reader_that_leaves_is_no_error() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "imgray", "train", "--list"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(timeout=120) == 0


def test_a_result_that_cannot_be_written_is_one_line() -> None:
    command = [sys.executable, "-m", "imgray", "--version"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert done.returncode == 2
    assert done.stderr == "error: cannot write the result: No space left on device\n"


def test_a_closed_output_is_no_error() -> None:
    command = f"{sys.executable} -m imgray --version >&-"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "")


def test_what_is_verified_may_stand_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "settings.yaml").write_text(f"artifacts: [{tmp_path}/nothing]")
    command = [sys.executable, "-m", "imgray", "verify", "--config", f"{tmp_path}/settings.yaml"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2
    assert "no artifact here" in done.stdout + done.stderr
