"""Table trees: how alike two tables are, or two outlines of a page, by the edits between their trees.

TEDS is of PubTabNet (arXiv 1911.10683, section 5), as OCRBench v2 (arXiv 2501.00321) applies it to tables and charts;
its outlines compare headings and lines by their places, not by their words.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from apted import APTED, Config
from lxml import etree, html  # pyright: ignore[reportAttributeAccessIssue]  (compiled)
from rapidfuzz.distance import Levenshtein

FENCE = "`markdown"  # the letters that are taken off both ends of a table in Markdown
CLEANING = (
    (r"<bos>|<eos>|<pad>|<unk>", ""),
    (r"\s##(\S)", r"\1"),
    (r"\\\s", r"\\"),
    (r"\s\*\s\*\s", "**"),
    (r"\{\s", "{"),
    (r"\s\}", "}"),
    (r"\s\}", "}"),
    (r"\\(begin|end)\s", r"\\\1"),
    (r"\\end\{table\}", r"\\end{table}   "),
    (r"[*_]", " "),
)


@dataclass(slots=True, eq=False)
class Node:
    """name: of an element, or a line's words. spans: over columns and rows, and content: character by character, of a
    cell.
    """

    name: str
    spans: tuple[int, int] | None = None
    content: Sequence[str] = ()
    children: list[Node] = field(default_factory=list)

    def size(self) -> int:
        """Nodes, this one too."""
        return 1 + sum(child.size() for child in self.children)

    def named(self, name: str) -> Node | None:
        """The first node of this name, parents before children."""
        return self if self.name == name else next(filter(None, (c.named(name) for c in self.children)), None)


class _Cells(Config):
    valuecls = float

    def rename(self, node1: Node, node2: Node) -> float:
        """A whole edit for another element or span; for a cell's content the share of it that differs."""
        if (node1.name, node1.spans) != (node2.name, node2.spans):
            return 1.0
        return Levenshtein.normalized_distance(node1.content, node2.content)


class _Lines(Config):
    def rename(self, node1: Node, node2: Node) -> int:
        """Any line stands for any other, as long as both have words."""
        return int(not (node1.name.split() and node2.name.split()))


def teds(said: str, truth: str) -> float:
    """1 - edits / nodes of the larger tree, of two whole HTML pages with a table each; 0 where one has none.

    Raises ValueError for spans that are no numbers, and pages without any element.
    """
    try:
        pages = [html.fromstring(text.encode(errors="replace"), parser=_parser()) for text in (said, truth)]
    except etree.ParserError as error:
        raise ValueError(f"teds: {error}; want pages of HTML with a table") from None
    tables = [page.xpath("body/table") for page in pages]
    if not all(tables):
        return 0.0
    one, other = (found[0] for found in tables)
    most = max(len(one.xpath(".//*")), len(other.xpath(".//*")))
    edits = APTED(_tree(one), _tree(other), _Cells()).compute_edit_distance()
    return 1 - edits / most if most else 0.0


def _parser() -> Any:
    return html.HTMLParser(remove_comments=True, encoding="utf-8")


def _tree(element: Any) -> Node:
    if element.tag != "td":
        return Node(element.tag, children=[_tree(child) for child in element])
    spans = int(element.get("colspan", "1")), int(element.get("rowspan", "1"))
    return Node("td", spans, _characters(element)[1:-1])


def _characters(element: Any) -> list[str]:
    """A cell's text, character by character, each tag in it as one."""
    found = [f"<{element.tag}>", *(element.text or "")]
    for child in element:
        found += _characters(child)
    found.append(f"</{element.tag}>")
    return found if element.tag == "td" else [*found, *(element.tail or "")]


def html_table(text: str) -> str | None:
    """The table that an answer writes in HTML, as a whole page; None where there is none."""
    found = re.search(r"<body.*", text.replace("\n", "")) or re.search(r"<table.*", text.replace("\n", ""))
    return wrapped(found[0]) if found else None


def wrapped(table: str) -> str:
    """A table in HTML as a whole page: with the tags around it that it lacks."""
    table = table.replace("\n", "")
    table = table if "<table" in table else f"<table>{table}"
    table = table if "</table>" in table else f"{table}</table>"
    table = table if "<body>" in table else f"<body>{table}</body>"
    return table if "<html>" in table else f"<html>{table}</html>"


def markdown_table(text: str) -> str | None:
    """A table in Markdown as a page of HTML: the first line, and all from the third on; None without any cell."""
    lines = text.strip(FENCE).strip().split("\n")
    rows = [line.strip().split("|")[1:-1] for line in lines[:1] + lines[2:]]
    return _page([[" " if set(cell) == {" "} else cell.strip() for cell in row] for row in rows]) if any(rows) else None


def fields_table(fields: Mapping[Any, Any]) -> str:
    """A chart's fields as a table of two columns; values letter by letter, with blanks between, as the benchmark does.

    What is below a field stands in its cell as Python writes it.
    """
    return _page([[str(name), " ".join(str(value))] for name, value in fields.items()])


def _page(rows: Sequence[Sequence[str]]) -> str:
    """Cells may hold tags of their own, as the benchmark leaves them."""
    lines = ("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<html><body><table>{''.join(lines)}</table></body></html>"


def outline(text: str) -> Node:
    """A page in Markdown as a tree: headings below its root, lines below the first heading of the last one's words."""
    root = Node("ROOT", children=[Node("TITLE")])
    last = ""
    for line in text.split("\n"):
        for pattern, written in CLEANING:
            line = re.sub(pattern, written, line)
        if line.startswith("#"):
            last = line.replace("#", "")
            root.children.append(Node(last))
        else:
            above = root.named(last or "TITLE")
            assert above is not None
            above.children.append(Node(line))
    return root


def outlines_alike(said: str, truth: str) -> float:
    """1 - edits / nodes of the larger outline."""
    one, other = outline(said), outline(truth)
    edits = APTED(one, other, _Lines()).compute_edit_distance()
    return 1 - edits / max(one.size(), other.size())
