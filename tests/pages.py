"""The commands and examples of README.md and docs/, and how they run as printed.

As a program it runs, in the working folder, all commands but those of `make` and of a service, and
prints in JSON what each of them prints.
"""

import contextlib
import io
import json
import re
import shlex
from pathlib import Path

from imgray.__main__ import COMMANDS
from imgray.cli import run_command
from imgray.engine.cluster import cluster

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
LATER = ("matching", "synthesis", "tables")
"""Their commands go on from those of training."""
DOCS = sorted(ROOT.glob("docs/*.md"), key=lambda page: (page.stem in LATER, page.name))
PAGES = [README, *DOCS]
OTHERS = [ROOT / "CONTRIBUTING.md", ROOT / "cluster/README.md"]
TEXTS = {page: page.read_text() for page in PAGES + OTHERS}
WORDS = ("extract", "index", "search", "evaluate", "train", "predict", "serve", "demo")


def blocks(language: str) -> list[str]:
    """The code in one language on all pages, page by page."""
    pattern = re.compile(rf"^```{language}\n(.*?)^```$", re.DOTALL | re.MULTILINE)
    return [code for page in PAGES for code in pattern.findall(TEXTS[page])]


def commands(*starts: str) -> list[str]:
    """The command lines on all pages that start so: continued ones joined, comments cut."""
    lines = "".join(blocks("sh")).replace("\\\n", " ").splitlines()
    cut = [" ".join(re.split(r"(?:^|\s)#", line)[0].split()) for line in lines]
    return [line for line in cut if line.startswith(starts)]


MAKE, CURL = commands("make "), commands("curl ")
(SERVE,) = commands("imgray serve ")
SERVED = shlex.split(SERVE)[2:]
RUN = [line for line in commands("imgray ", "python ") if line != SERVE]


def run(command: str, folder: Path) -> tuple[str, str]:
    """Run `imgray` or `python -c` in a folder, on the Ray that this process has joined.

    They must end with 0. Returns what they print, and what stands on standard error.
    """
    program, *words = shlex.split(command)
    output, error, code = io.StringIO(), io.StringIO(), None
    with (
        contextlib.chdir(folder),
        contextlib.redirect_stdout(output),
        contextlib.redirect_stderr(error),
    ):
        if program == "python":
            exec(words[1], {"__name__": "__main__"})
        else:
            try:
                code = run_command(COMMANDS, words)
            except SystemExit as end:
                code = end.code
    assert not code, f"{command}\n{error.getvalue()}"
    return output.getvalue(), error.getvalue()


def served(folder: Path) -> list[str]:
    """The flags of the service, of what lies in a folder.

    The demo's translator, three minutes of training, is here the one of the page about it.
    """
    flags = (flag.replace("out/models/tint", "out/tint") for flag in SERVED)
    return [flag.replace("out/", f"{folder}/out/") for flag in flags]


if __name__ == "__main__":
    with cluster():
        found = {line: run(line, Path.cwd())[0] for line in RUN}
    print(json.dumps(found))
