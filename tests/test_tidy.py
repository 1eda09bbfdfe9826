"""Rules of style that a machine can see. After TigerBeetle's tidy.zig: a rule is a test, or it
rots.
"""

import ast
import gc
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "tritonsched"
FILE_LINES_MAX = 400
POLICY_LINES_MAX = 250  # a rule is read over a coffee
FUNCTION_LINES_MAX = 50
SLEEPS = {("asyncio", "sleep"), ("time", "sleep")}
# Built with the repository's own import name; a file here runs inside Triton, not inside the
# package.
RUNS_ELSEWHERE = {
    "tritonsched/__main__.py",
    "tritonsched/backend/emulated_gpu/model.py",
    "tritonsched/backend/launch.py",
    "tritonsched/backend/proof_repository/tritonsched_echo/1/model.py",
}


def tracked(pattern: str) -> list[Path]:
    """Files of the repository that git knows or would take; generated ones are not ours to
    judge.
    """
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", pattern]
    output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / line for line in output.splitlines() if (ROOT / line).is_file()]


SOURCES = [path for path in tracked("*.py") if not path.name.endswith("_pb2.py")]  # generated


@pytest.fixture(autouse=True, scope="module")
def no_garbage_of_others() -> None:
    """A task of an earlier test whose error nobody took is logged when it is collected; if that is
    in the middle of `ast.parse`, the traceback's own use of it breaks ours (CPython gh-106905).
    """
    gc.collect()


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node


def faults_of_length(text: str, tree: ast.AST) -> Iterator[str]:
    if text.count("\n") > FILE_LINES_MAX:
        yield f"longer than {FILE_LINES_MAX} lines"
    for function in functions(tree):
        length = (function.end_lineno or function.lineno) - function.lineno + 1
        if length > FUNCTION_LINES_MAX:
            yield f"{function.name}: {length} lines, over {FUNCTION_LINES_MAX}"


def faults_of_calls(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Name(id="print")):
                yield f"line {node.lineno}: print"
            case ast.Attribute(value=ast.Name(id=module), attr=name) if (module, name) in SLEEPS:
                yield f"line {node.lineno}: {module}.{name}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_source_file_keeps_the_house_rules(path: Path) -> None:
    """Length of files and functions, a module docstring, no print, no sleep, no loose ends."""
    text = path.read_text()
    tree = ast.parse(text)
    faults = [*faults_of_length(text, tree)]
    if path.parent == PACKAGE / "core" / "policies" and text.count("\n") > POLICY_LINES_MAX:
        faults.append(f"longer than {POLICY_LINES_MAX} lines")
    if "model_repository" not in path.parts and str(path.relative_to(ROOT)) not in RUNS_ELSEWHERE:
        faults += faults_of_calls(tree)
    if text.strip() and ast.get_docstring(tree) is None:
        faults.append("no module docstring")
    loose = [word for word in ("TO" + "DO", "FIX" + "ME", "XX" + "X") if word in text]
    assert not faults + loose


def test_no_tracked_file_is_larger_than_ten_megabytes() -> None:
    """The history stays small enough to clone in a minute."""
    large = [str(p) for p in tracked("*") if p.stat().st_size > 10 * 1024 * 1024]
    assert not large


def test_no_module_has_the_name_of_a_standard_one() -> None:
    """`import x` never means two things."""
    names = {path.stem for path in PACKAGE.rglob("*.py")} - {"__init__", "__main__"}
    clashes = names & set(sys.stdlib_module_names)
    assert clashes <= {"profile"}, clashes


def test_every_module_is_imported_by_something() -> None:
    """Dead files are seen: each module of the package is named in another module or test."""
    texts = {path: path.read_text() for path in SOURCES}
    orphans = []
    for path in PACKAGE.rglob("*.py"):
        name = str(path.relative_to(ROOT))
        if path.name == "__init__.py" or name in RUNS_ELSEWHERE:
            continue
        module = name.removesuffix(".py").replace("/", ".")
        parent, _, leaf = module.rpartition(".")
        users = (text for other, text in texts.items() if other != path and "import" in text)
        if not any(module in text or f"from {parent} import {leaf}" in text for text in users):
            orphans.append(name)
    assert not orphans


def test_no_absolute_home_path_stands_in_the_tree() -> None:
    """The project speaks of itself alone: no path of anybody's machine."""
    for path in SOURCES:
        text = path.read_text()
        for place in ("/ho" + "me/", "/ro" + "ot/", "/wo" + "rk/"):
            assert place not in text, f"{path}: {place}"
