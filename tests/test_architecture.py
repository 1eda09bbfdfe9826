"""The import contracts hold, seen by a bare pytest too."""

import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_import_contracts_hold() -> None:
    """Layers, the core's purity and the simulator's independence, as pyproject.toml states them."""
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_all_that_a_compiled_build_names_is_there() -> None:
    """A name without a file would be left out silently."""
    targets = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    hook = targets["targets"]["wheel"]["hooks"]["mypyc"]
    named = hook["include"] + hook["exclude"]
    assert len(named) > 40
    assert not [pattern for pattern in named if not list(ROOT.glob(pattern))]
