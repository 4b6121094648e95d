"""Imports go one way: app.py → server.py → srgan ← train."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
#: Import name -> name on the package index, where they differ.
DISTRIBUTIONS = {"PIL": "pillow", "pillow_heif": "pillow-heif"}


def imports(path: Path) -> set[str]:
    """Top-level names of all that a file imports, inside functions too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            names.add(node.module)
    return {name.partition(".")[0] for name in names}


def imports_of(package: str) -> set[str]:
    files = sorted((ROOT / package).glob("**/*.py"))
    assert files
    return set().union(*map(imports, files))


def required(*files: str) -> set[str]:
    lines = [line for file in files for line in (ROOT / file).read_text().splitlines()]
    return {re.match(r"[\w-]*", line)[0] for line in lines} - {"", "-r"}


@pytest.mark.parametrize(
    "package, forbidden",
    [
        ("srgan", {"app", "train", "gradio", "torchvision", "spaces"}),
        ("train", {"app", "gradio", "spaces"}),
    ],
)
def test_packages_import_only_what_lies_below_them(package, forbidden):
    assert not imports_of(package) & forbidden


def test_the_page_imports_neither_training_nor_torchvision():
    assert not imports(ROOT / "app.py") & {"train", "torchvision"}
    assert not imports(ROOT / "server.py") & {"app", "train", "torch"}


@pytest.mark.parametrize(
    "package, requirements",
    [
        ("srgan", ["requirements.txt"]),
        ("train", ["requirements.txt", "train/requirements.txt"]),
    ],
)
def test_what_is_imported_is_required(package, requirements):
    third_party = imports_of(package) - sys.stdlib_module_names - {"srgan", "train"}
    assert "torch" in third_party
    names = {DISTRIBUTIONS.get(name, name) for name in third_party}
    assert names <= required(*requirements)


def test_importing_the_library_loads_nothing_heavy_beside_torch():
    script = (
        "import sys, srgan\n"
        "print(*{'gradio', 'torchvision', 'train', 'huggingface_hub', 'pillow_heif'} "
        "& set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == []


def test_every_public_name_is_there():
    import srgan

    assert srgan.__all__ == sorted(srgan.__all__, key=lambda name: (name.upper() != name, name))
    assert all(hasattr(srgan, name) for name in srgan.__all__)


@pytest.mark.parametrize("module", ["srgan", "train.loop", "app"])
@pytest.mark.parametrize("given, seen", [(None, "1000"), ("7", "7")])
def test_threads_are_told_not_to_spin_for_long_before_torch_is_loaded(module, given, seen):
    code = f"""
import os, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print(os.environ.get("GOMP_SPINCOUNT"))
            sys.exit()
sys.meta_path.insert(0, Finder())
import {module}
"""
    environment = {k: v for k, v in os.environ.items() if k != "GOMP_SPINCOUNT"}
    if given:
        environment["GOMP_SPINCOUNT"] = given
    result = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.strip() == seen
