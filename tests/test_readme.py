"""The README's front matter is what a Space is built from."""

import json
import re
from pathlib import Path

import yaml

from train.evaluate import table

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
FRONT = yaml.safe_load(README.split("---\n")[1])


def test_front_matter_starts_this_app_with_this_gradio():
    pinned = re.search(
        r"^gradio\[mcp\]==(\S+)$", (ROOT / "requirements.txt").read_text(), re.MULTILINE
    )
    assert FRONT["sdk"] == "gradio"
    assert FRONT["sdk_version"] == pinned[1]
    assert (ROOT / FRONT["app_file"]).is_file()


def test_front_matter_keeps_the_hubs_limits():
    assert FRONT["python_version"] in {"3.10", "3.11", "3.12", "3.13"}
    assert len(FRONT["short_description"]) <= 60
    assert FRONT["title"]
    assert FRONT["license"] == "mit"
    assert isinstance(FRONT["models"], list)
    assert FRONT["tags"]


def test_every_local_link_leads_somewhere():
    links = re.findall(r"\]\((?!http|#)([^)]+)\)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_every_program_in_the_readme_exists():
    modules = set(re.findall(r"python -m ((?:srgan|train|tests)[\w.]*)", README))
    assert {"srgan", "train.pretrain", "train.adversarial", "train.evaluate"} <= modules
    for module in modules:
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), module


def test_readmes_numbers_are_those_of_the_bundled_weights():
    config = json.loads((ROOT / "weights" / "config.json").read_text(encoding="utf-8"))
    assert table(config["evaluation"]) in README
    assert table(config["evaluation"]) in (ROOT / "weights" / "README.md").read_text(
        encoding="utf-8"
    )
