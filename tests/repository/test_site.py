"""Pages of the documentation site: every public name is there, and every quoted message is one of the code's.

`make docs` builds the site, with its warnings as errors.
"""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

import lgf_kernels
from lgf_kernels import distributed

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
QUOTED = re.findall(r"^### `(.+)`$", (DOCS / "faq.md").read_text(), re.MULTILINE)


@cache
def texts() -> list[str]:
    """Return all strings of the library and the trainer, with "…" where a value is put in."""
    found = []
    for file in [*(ROOT / "lgf_kernels").rglob("*.py"), *(ROOT / "python" / "lgf_trainer").rglob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(p.value if isinstance(p, ast.Constant) else "…" for p in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


@pytest.mark.parametrize("quoted", QUOTED)
def test_a_quoted_message_is_one_of_the_code(quoted):
    assert any(quoted.strip(" …") in text for text in texts())


def test_there_are_quoted_messages():
    assert len(QUOTED) >= 8


def test_every_public_name_has_its_place():
    page = (DOCS / "api.md").read_text()
    shown = re.findall(r"^\.\. auto\w+:: (\w+)$", page, re.MULTILINE)
    public = {*lgf_kernels.__all__, *distributed.__all__} - {"__version__"}
    assert len(shown) == len(set(shown)) and public <= set(shown)


def test_every_page_is_in_the_index():
    index = (DOCS / "index.md").read_text()
    blocks = re.findall(r"```{toctree}(.*?)```", index, re.DOTALL)
    listed = {re.sub(r".*<(.+)>", r"\1", line) for block in blocks for line in block.splitlines()}
    assert {page.stem for page in DOCS.glob("*.md")} - {"index"} <= listed


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.stem)
def test_a_page_has_one_title(page):
    """Each title is an entry of the site's menu."""
    without_code = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    assert len(re.findall(r"^# ", without_code, re.MULTILINE)) == 1
