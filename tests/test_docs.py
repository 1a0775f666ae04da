"""What the documentation says is true: programs run, command lines parse, figures are those of
their script, notebooks have no outputs.

A program that does not run here follows a line ``<!-- not run: WHY -->``. `make docs` builds the
pages and runs the notebooks.
"""

import ast
import importlib.util
import json
import re
import shlex
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from sic_jax.cli import demo, evaluate, export, main, train
from sic_jax.data import pack

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
# Pages of the notebook have commands of the revision that they ran with.
PAGES = [p for p in sorted(DOCS.rglob("*.md")) if not {"notebook", "_build"} & set(p.parts)]
PAGES += [ROOT / "README.md", *sorted((ROOT / "sic_jax" / "bundles").glob("*/README.md"))]
NOTEBOOKS = sorted((DOCS / "examples").glob("*.ipynb"))
# Programs that tests of their own run.
ELSEWHERE = {
    "README.md": "test_readme.py",
    "docs/new_model.md": "test_new_model.py",
    "docs/guide/python.md": "test_python_guide.py",
    "docs/guide/progressive.md": "test_progressive.py",
    "docs/guide/corpus.md": "test_guide_corpus.py",
}
PROGRAM_FILES = ("run.py", "corpus.py")  # Of docs/new_model.md and docs/guide/corpus.md.
OTHER_PACKAGES = ("ray[data]",)


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, language: str) -> list[str]:
    """Blocks of a language, without those that say that they are not run."""
    text = page.read_text()
    text = re.sub(r"^<!-- not run: .+ -->\n```.*?^```\n", "", text, flags=re.DOTALL | re.MULTILINE)
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def command_lines(page: Path) -> list[str]:
    """Lines of the shell blocks; a backslash at the end joins two."""
    lines = "".join(blocks(page, "sh")).replace("\\\n", " ").splitlines()
    return [line for line in lines if line.strip() and not line.startswith("#")]


COMMANDS = [
    pytest.param(line, id=f"{name_of(page)}: {line}")
    for page in PAGES
    for line in command_lines(page)
]


def check_make(arguments: list[str]) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for word in arguments:
        name, is_variable, _ = word.partition("=")
        pattern = rf"^{name} \?=" if is_variable else rf"^{name}:"
        assert re.search(pattern, makefile, re.MULTILINE), word


def check_pip(arguments: list[str]) -> None:
    package = arguments[-1]
    found = re.fullmatch(r"(?:\.|sic_jax)(?:\[([\w,]+)\])?", package)
    if found is None:
        assert package in OTHER_PACKAGES
        return
    pyproject = (ROOT / "pyproject.toml").read_text()
    for extra in (found[1] or "").split(","):
        assert not extra or f"\n{extra} = [" in pyproject, extra


@pytest.mark.parametrize("line", COMMANDS)
def test_command_line_parses(line: str) -> None:
    # Of a pipe the part that is ours.
    words = shlex.split(line.rpartition(" | ")[2] if " | sic " in line else line, comments=True)
    while re.match(r"[A-Z_]+=", words[0]):
        del words[0]
    program, *arguments = words
    if program == "python":
        program, *arguments = arguments
        if program == "-m":
            program, *arguments = arguments
    if program == "sic":
        assert callable(main.parse(arguments).run)
    elif program == "train.py":
        if {"--help", "-h"} & set(arguments):
            with pytest.raises(SystemExit, match="0"):
                train.parse(arguments)
            return
        config, args = train.parse(arguments)
        assert args.preset == arguments[0]
        assert config.steps > 0
    elif program == "eval.py":
        assert evaluate.parse(arguments).images
    elif program == "sic_jax.data.pack":
        assert pack.parse(arguments).splits
    elif program == "sic_jax.cli.export":
        assert export.make_parser().parse_args(arguments)
    elif program == "sic_jax.cli.demo":
        assert demo.make_parser().parse_args(arguments)
    elif program == "make":
        check_make(arguments)
    elif program == "pip":
        check_pip(arguments)
    elif program.endswith(".py"):
        assert program in PROGRAM_FILES or (ROOT / program).is_file()
    else:
        assert program in ("git", "cd", "pytest", "source"), f"no test knows this command: {line}"


THOROUGH = ("docs/guide/change_the_loss.md",)  # It trains.
PROGRAMS = [
    pytest.param(p, id=name_of(p), marks=[pytest.mark.thorough] * (name_of(p) in THOROUGH))
    for p in PAGES
    if blocks(p, "python") and name_of(p) not in ELSEWHERE
]


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("page", PROGRAMS)
def test_programs_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The programs of a page, one after the other, in a folder with what pages speak of."""
    from conftest import write_images

    with Image.open(demo.SAMPLE) as image:
        picture = np.asarray(image.convert("RGB"))[160:224, 320:400]
    Image.fromarray(picture).save(tmp_path / "photo.png")
    write_images(tmp_path / "photos", [picture, picture[:, ::-1]])
    assert main.main(["compress", str(tmp_path / "photo.png")]) == 0
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": page.stem}
    for program in blocks(page, "python"):
        exec(compile(program, name_of(page), "exec"), names)


def test_programs_elsewhere_are_there() -> None:
    for page, test in ELSEWHERE.items():
        assert blocks(ROOT / page, "python")
        assert page.rpartition("/")[2] in (ROOT / "tests" / test).read_text()


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "diff")], ids=name_of)
def test_changes_fit_the_files(page: Path) -> None:
    """A change applies: its lines of context stand in the file, once, and Python reads the result.

    Hunks begin with "@@ " and the class or function that they change.
    """
    for block in blocks(page, "diff"):
        parts = re.split(r"^--- a/\S+\n\+\+\+ b/(\S+)\n", block, flags=re.MULTILINE)
        assert len(parts) >= 3
        for name, change in zip(parts[1::2], parts[2::2], strict=True):
            text = (ROOT / name).read_text()
            for hunk in re.split(r"^@@ ", change, flags=re.MULTILINE)[1:]:
                owner, *lines = hunk.splitlines()
                before = "".join(f"{line[1:]}\n" for line in lines if line[0] in " -")
                after = "".join(f"{line[1:]}\n" for line in lines if line[0] in " +")
                at = text.index(before, text.index(f"\n{owner}"))
                assert text.count(before) == 1
                text = text[:at] + after + text[at + len(before) :]
            ast.parse(text)


def test_figures_are_those_of_their_script(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("figures", DOCS / "figures.py")
    assert spec is not None
    assert spec.loader is not None
    figures = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(figures)
    assert figures.main(["--out", str(tmp_path)]) == 0
    drawn = sorted(p.name for p in tmp_path.iterdir())
    assert drawn == sorted(p.name for p in (DOCS / "figures").iterdir())
    for name in drawn:
        assert texts(tmp_path / name) == texts(DOCS / "figures" / name), "python docs/figures.py"
    concepts = (DOCS / "concepts.md").read_text()
    assert [name for name in drawn if f"(figures/{name})" not in concepts] == []


def texts(path: Path) -> list[str]:
    """Words and numbers of a figure; how they are placed depends on matplotlib's version."""
    root = ElementTree.parse(path).getroot()
    found = ["".join(e.itertext()).strip() for e in root.iter("{http://www.w3.org/2000/svg}text")]
    assert found
    return found


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebooks_hold_no_outputs(path: Path) -> None:
    cells = [c for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"]
    assert cells
    assert all(c["outputs"] == [] and c["execution_count"] is None for c in cells)
    program = "\n".join("".join(c["source"]) for c in cells)
    compile(program, path.name, "exec")
    assert "assert " in program
