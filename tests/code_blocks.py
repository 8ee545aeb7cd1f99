"""The blocks of code in the README, in examples/README.md and in the docstrings of the package."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import attrs

import openai_cancel

ROOT = Path(__file__).parents[1]
PACKAGE = Path(openai_cancel.__file__).parent
PAGES = [ROOT / "README.md", ROOT / "examples" / "README.md"]


@attrs.frozen
class Block:
    """A block of code.

    Attributes:
        source: the file, and for a docstring what it documents.
        kind: the language, which may be empty.
        text: the code.
    """

    source: str
    kind: str
    text: str

    @property
    def is_program(self) -> bool:
        """Whether it runs on its own. Others rely on names that their surroundings explain."""
        return self.kind == "python" and re.search(r"^(from|import) ", self.text, re.MULTILINE) is not None

    def __str__(self) -> str:
        return f"{self.source}: {self.text.splitlines()[0].strip()}"


def texts() -> Iterator[tuple[str, str]]:
    """Yield each page and each docstring, after the name of its source."""
    for page in PAGES:
        yield page.relative_to(ROOT).as_posix(), page.read_text()
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                name = f"{path.relative_to(PACKAGE).as_posix()} {getattr(node, 'name', '')}"
                yield name.rstrip(), ast.get_docstring(node) or ""


def read_blocks() -> list[Block]:
    """Return all blocks, in the order of their sources."""
    found = []
    for source, text in texts():
        fenced = re.findall(r"^```(\w*)\n(.*?)^```$", text + "\n", re.DOTALL | re.MULTILINE)
        assert len(re.findall(r"^\s*(?:```|~~~)", text, re.MULTILINE)) == 2 * len(fenced), source
        found += [Block(source, kind, text) for kind, text in fenced]
    return found


BLOCKS = read_blocks()
