"""Documents: receipts, invoices, forms, tables, letters and lists, drawn with all their variety, and asked about.

A document is rows of cells first; the page's size and type follow from them. Answers are spelled as on the page.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from random import Random
from typing import Literal

from omni.train.data import words
from omni.train.data.example import Example, Picture, Turn
from omni.train.data.page import COLOURS, FINE, PATCH, Ink, Page, Print

Kind = Literal["left", "center", "pair", "table", "rule", "gap"]


@dataclass(frozen=True, slots=True)
class Row:
    """One line: its cells, how they are laid out, and whether it is bold."""

    kind: Kind
    cells: tuple[str, ...] = ()
    bold: bool = False


@dataclass(slots=True)
class Document:
    """Rows and what can be asked. asked: (question, answer, the line that shows it)."""

    rows: list[Row] = field(default_factory=list)
    asked: list[tuple[str, str, str]] = field(default_factory=list)

    def add(self, kind: Kind, *cells: str, bold: bool = False) -> str:
        """Append a row; returns its text."""
        self.rows.append(Row(kind, cells, bold))
        return " ".join(cells)

    def ask(self, question: str, answer: str, line: str) -> None:
        """Append a question."""
        self.asked.append((question, answer, line))

    @property
    def text(self) -> str:
        """The whole page, line by line."""
        return "\n".join(" ".join(row.cells) for row in self.rows if row.cells)


def _one(rng: Random, *forms: str) -> str:
    return rng.choice(forms)


def money(rng: Random, low: float = 0.5, high: float = 99.0) -> int:
    """An amount in cents."""
    return rng.randint(int(low * 100), int(high * 100))


def spelled(cents: int, sign: str = "") -> str:
    """Cents as printed: `12.50`, with a currency sign before or a code behind."""
    value = f"{cents // 100}.{cents % 100:02}"
    return f"{value} {sign}" if len(sign) > 1 else sign + value


def receipt(rng: Random) -> Document:
    """A shop's receipt: items with amounts, sums, time and number."""
    page, sign = Document(), rng.choice(("", "", "$", "€", "£"))
    shop = rng.choice(
        (f"{words.invented(rng)} {_one(rng, 'Cafe', 'Market', 'Store', 'Shop', 'Deli')}", words.invented(rng, 2))
    )
    shop = shop.upper() if rng.random() < 0.4 else shop
    line = page.add("center", shop, bold=rng.random() < 0.5)
    page.ask(_one(rng, "Which shop is it?", "What is the shop called?", "What is the name of the shop?"), shop, line)
    if rng.random() < 0.5:
        street = f"{rng.randint(1, 99)} {rng.choice(words.STREETS)} Street"
        page.ask(_one(rng, "What is the address?", "Where is the shop?"), street, page.add("center", street))
    if rng.random() < 0.8:
        name, day = _one(rng, "Date", "Date:"), words.date(rng)
        page.ask(_one(rng, "What is the date?", "When was it bought?"), day, page.add("pair", name, day))
    if rng.random() < 0.4:
        name, number = _one(rng, "Receipt", "No.", "Ticket"), str(rng.randint(100, 99999))
        page.ask(
            _one(rng, "What is the receipt number?", "Which number has the receipt?"),
            number,
            page.add("pair", name, number),
        )
    if rng.random() < 0.5:
        page.add("rule")
    amounts: dict[str, int] = {}
    for item in rng.sample(words.GOODS, rng.randint(2, 6)):
        count, each = (rng.randint(2, 9) if rng.random() < 0.3 else 1), money(rng, 0.5, 30.0)
        name = f"{count} {item}" if count > 1 else item
        amounts[item] = count * each
        printed = spelled(count * each, sign)
        line = page.add("pair", name, printed)
        page.ask(
            _one(rng, f"How much is the {item}?", f"What does {item} cost?", f"What is the price of {item}?"),
            printed,
            line,
        )
        if count > 1:
            page.ask(f"How many {item} were bought?", str(count), line)
    if rng.random() < 0.5:
        page.add("rule")
    total = sum(amounts.values())
    if rng.random() < 0.5:
        tax = total * rng.choice((5, 7, 8, 10, 19, 20)) // 100
        page.ask(
            _one(rng, "What is the subtotal?"), spelled(total, sign), page.add("pair", "Subtotal", spelled(total, sign))
        )
        name = _one(rng, "Tax", "VAT")
        page.ask(
            f"How much is the {'tax' if name == 'Tax' else 'VAT'}?",
            spelled(tax, sign),
            page.add("pair", name, spelled(tax, sign)),
        )
        total += tax
    name = _one(rng, "Total", "TOTAL", "Total:", "Amount due")
    line = page.add("pair", name, spelled(total, sign), bold=rng.random() < 0.6)
    for _ in range(2):
        page.ask(
            _one(rng, "What is the total?", "How much is the total?", "How much was paid in all?"),
            spelled(total, sign),
            line,
        )
    if rng.random() < 0.4:
        given = (total // 500 + rng.randint(1, 4)) * 500
        page.ask("How much cash was given?", spelled(given, sign), page.add("pair", "Cash", spelled(given, sign)))
        line = page.add("pair", "Change", spelled(given - total, sign))
        page.ask(_one(rng, "How much is the change?", "What is the change?"), spelled(given - total, sign), line)
    if rng.random() < 0.4:
        page.add("center", _one(rng, "Thank you!", "Thanks for your visit", "See you again"))
    return page


def invoice(rng: Random) -> Document:
    """An invoice: number, dates, customer, a table of services, the sum."""
    page, sign = Document(), rng.choice(("", "$", "€", "£", "EUR", "USD"))
    firm = f"{words.invented(rng)} {_one(rng, 'Ltd', 'GmbH', 'Inc', 'Works', 'Studio')}"
    page.ask(_one(rng, "Who sent the invoice?", "Which company sent it?"), firm, page.add("left", firm, bold=True))
    if rng.random() < 0.5:
        city = rng.choice(words.CITIES)
        page.ask(
            _one(rng, "In which city is the company?"),
            city,
            page.add("left", f"{rng.randint(1, 99)} {rng.choice(words.STREETS)} Road", city),
        )
    if rng.random() < 0.5:
        page.add("center", "INVOICE", bold=True)
    number, name = words.code(rng), _one(rng, "Invoice No", "Invoice", "Invoice No.", "Number")
    page.ask(
        _one(rng, "What is the invoice number?", "Which number has the invoice?"),
        number,
        page.add("pair", name, number),
    )
    day = words.date(rng)
    page.ask(_one(rng, "What is the date?", "What is the invoice date?"), day, page.add("pair", "Date", day))
    if rng.random() < 0.5:
        due = words.date(rng)
        page.ask(
            _one(rng, "What is the due date?", "When is it due?"),
            due,
            page.add("pair", _one(rng, "Due", "Due date"), due),
        )
    customer = words.person(rng)
    page.ask(
        _one(rng, "Who is the customer?", "Who is billed?"),
        customer,
        page.add("pair", _one(rng, "Customer", "Bill to"), customer),
    )
    page.add("gap")
    head = ("Item", "Qty", "Price", "Amount")
    page.add("table", *head, bold=rng.random() < 0.5)
    total = 0
    for item in rng.sample(words.SERVICES, rng.randint(1, 5)):
        count, each = rng.randint(1, 9), money(rng, 5.0, 99.0)
        total += count * each
        line = page.add("table", item, str(count), spelled(each), spelled(count * each))
        page.ask(_one(rng, f"What is the amount of {item}?", f"How much is {item}?"), spelled(count * each), line)
        page.ask(_one(rng, f"What is the quantity of {item}?", f"What is the qty of {item}?"), str(count), line)
        page.ask(f"What is the price of {item}?", spelled(each), line)
    if rng.random() < 0.5:
        page.add("rule")
    line = page.add("pair", _one(rng, "Total", "Total due", "TOTAL"), spelled(total, sign), bold=rng.random() < 0.6)
    for _ in range(2):
        page.ask(
            _one(rng, "What is the total?", "How much is the total?", "How much has to be paid?"),
            spelled(total, sign),
            line,
        )
    return page


def _value(rng: Random) -> str:
    return rng.choice(
        (
            words.code,
            words.date,
            words.person,
            words.clock,
            lambda r: str(r.randint(1, 9999)),
            lambda r: r.choice(words.CITIES),
            words.invented,
        )
    )(rng)


def form(rng: Random) -> Document:
    """Keys with values, of any meaning."""
    page = Document()
    if rng.random() < 0.6:
        title = rng.choice(("Registration", "Application", "Record", "Entry form", "Details", "Card", "Report"))
        page.ask(
            _one(rng, "What is the title?", "What is the heading?"),
            title,
            page.add(rng.choice(("left", "center")), title, bold=True),
        )
    colon = ":" if rng.random() < 0.7 else ""
    kind: Kind = rng.choice(("pair", "table", "left"))
    for key in rng.sample(words.KEYS, rng.randint(2, 10)):
        value = _value(rng)
        line = page.add(kind, key + (":" if kind == "left" else colon), value)
        page.ask(
            _one(
                rng, f"What is the {key.lower()}?", f"What is the {key}?", f"Which {key.lower()} is given?", f"{key}?"
            ),
            value,
            line,
        )
    return page


def table(rng: Random) -> Document:
    """Rows and columns of numbers or words."""
    page = Document()
    columns = rng.sample(words.KEYS + words.MONTHS[:6], rng.randint(2, 3))
    heads = [name[:3] if name in words.MONTHS else name for name in columns]
    names = rng.sample(rng.choice((words.GOODS, words.CITIES, words.FIRST, words.SERVICES)), rng.randint(2, 7))
    kinds: list[Callable[[], str]] = [
        rng.choice((lambda: str(rng.randint(1, 999)), lambda: spelled(money(rng)), lambda: rng.choice(words.NOUNS)))
        for _ in heads
    ]
    if rng.random() < 0.4:
        page.add("center", rng.choice(("Overview", "Summary", "Results", "Stock", "Plan", "Figures")), bold=True)
    page.add("table", rng.choice(("Name", "Item", "-", "Row")), *heads, bold=rng.random() < 0.5)
    for name in names:
        values = [kind() for kind in kinds]
        line = page.add("table", name, *values)
        for head, value in zip(heads, values, strict=True):
            page.ask(
                _one(rng, f"What is the {head} of {name}?", f"What is {head} for {name}?", f"{name}, {head}?"),
                value,
                line,
            )
    return page


def letter(rng: Random) -> Document:
    """A short letter: who writes to whom, about what, when and where."""
    page = Document()
    city, day = rng.choice(words.CITIES), words.date(rng)
    page.ask(
        _one(rng, "What is the date of the letter?", "When was it written?"), day, page.add("left", f"{city}, {day}")
    )
    page.add("gap")
    to, sender = rng.choice(words.FIRST), words.person(rng)
    page.ask(
        _one(rng, "Who is the letter to?", "Who gets the letter?"),
        to,
        page.add("left", f"{_one(rng, 'Dear', 'Hello')} {to},"),
    )
    topic, when, hour = rng.choice(words.TOPICS), rng.choice(words.DAYS), words.clock(rng)
    line = page.add("left", f"the {topic} is on {when}")
    page.ask(_one(rng, f"When is the {topic}?", f"On which day is the {topic}?"), when, line)
    room = f"{rng.choice(('room', 'hall', 'gate', 'floor'))} {rng.randint(1, 400)}"
    line = page.add("left", f"at {hour} in {room}.")
    page.ask(_one(rng, f"At what time is the {topic}?", f"What time is the {topic}?"), hour, line)
    page.ask(f"Where is the {topic}?", room, line)
    for _ in range(rng.randint(0, 4)):
        page.add("left", words.sentence(rng))
    if rng.random() < 0.5:
        thing = rng.choice(words.NOUNS)
        page.ask("What should be brought?", thing, page.add("left", f"Please bring the {thing}."))
    page.add("gap")
    page.add("left", rng.choice(("Best wishes", "Kind regards", "Yours", "Many thanks")))
    page.ask(_one(rng, "Who wrote the letter?", "Who signed the letter?"), sender, page.add("left", sender))
    return page


def lines(rng: Random) -> Document:
    """Plain lines of all kinds, for reading alone."""
    page = Document()
    for _ in range(rng.randint(1, 8)):
        made = (
            words.sentence,
            words.code,
            words.person,
            _value,
            lambda r: " ".join(words.invented(r) for _ in range(r.randint(1, 3))),
            _symbols,
        )
        page.add("left", rng.choice(made)(rng))
    return page


def line(rng: Random) -> Document:
    """One short line that cannot be guessed."""
    page = Document()
    made = (words.code, words.person, words.invented, words.date, _symbols)
    page.add("left", rng.choice(made)(rng))
    return page


def block(rng: Random) -> Document:
    """Lines full of text from edge to edge: the most to read on the least paper."""
    page, length = Document(), rng.randint(8, 26)
    made = (words.sentence, words.code, words.person, _value, words.invented, _symbols, lambda r: spelled(money(r)))
    text = " ".join(rng.choice(made)(rng) for _ in range(4 * length))
    for _ in range(rng.randint(3, 10)):
        start = rng.randrange(len(text) - length)
        page.add("left", text[start : start + length].strip() or "-", bold=rng.random() < 0.2)
    return page


def _symbols(rng: Random) -> str:
    """Characters at random, in groups."""
    alphabet = "".join(map(chr, range(33, 127)))
    return " ".join("".join(rng.choice(alphabet) for _ in range(rng.randint(1, 6))) for _ in range(rng.randint(1, 4)))


KINDS: tuple[Callable[[Random], Document], ...] = (receipt, invoice, form, table, letter, lines)
WEIGHTS = (3, 3, 3, 3, 2, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Style:
    """Type and paper. face, bold: font files."""

    face: str
    bold: str
    size: int
    leading: float
    ink: Ink
    paper: Ink
    margin: int


def style(rng: Random, faces: tuple[tuple[str, str], ...], how: Print = FINE) -> Style:
    """A way to print: a (regular, bold) pair of fonts, size in px, colours."""
    face, bold = rng.choice(faces)
    shade = rng.randint(228, 255)
    paper = (shade, shade - rng.randint(0, 8), shade - rng.randint(0, 18)) if rng.random() < 0.5 else (255, 255, 255)
    dark = rng.randint(0, 60) if rng.random() < 0.8 else rng.randint(60, 110)
    ink = (
        (dark, dark, dark + rng.randint(0, 60))
        if rng.random() < 0.9
        else COLOURS[rng.choice(("blue", "red", "green", "purple"))]
    )
    if rng.random() < 0.04:
        ink, paper = paper, ink
    return Style(
        face=face,
        bold=bold,
        size=rng.randint(how.smallest, how.largest),
        leading=rng.uniform(1.2, 1.6),
        ink=ink,
        paper=paper,
        margin=rng.randint(4, 16),
    )


def render(document: Document, how: Style, rng: Random, patches: int = 640) -> Page:
    """Draw it on the smallest page that holds it, of at most `patches` patches; type shrinks until it fits."""
    size = how.size
    while True:
        page = _layout(document, how, size, rng, patches)
        if page is not None:
            return page
        size = min(size - 1, int(size * 0.93))
        if size < 9:
            raise ValueError(f"documents.render: {len(document.rows)} rows do not fit {patches} patches; allow more")


def _layout(document: Document, how: Style, size: int, rng: Random, patches: int) -> Page | None:
    ruler = Page(32, 32)
    gap = size * 0.9
    widths: list[float] = []  # of the columns of all tables
    need = 64.0
    for row in document.rows:
        face = how.bold if row.bold else how.face
        own = [ruler.width_of(cell, face, size) for cell in row.cells]
        if row.kind == "table":
            widths = [max(pair) for pair in zip_longest(own, widths, fillvalue=0.0)]
        need = max(need, sum(own) + gap * (len(own) - 1))
    need = max(need, sum(widths) + gap * (len(widths) - 1)) + 2 * how.margin
    step = size * how.leading
    tall = sum(step * {"gap": 0.5, "rule": 0.4}.get(row.kind, 1.0) for row in document.rows) + 2 * how.margin
    width, height = (max(64, 32 * -(-int(side) // 32)) for side in (need, tall))
    if width * height > patches * PATCH**2:
        return None
    room = patches * PATCH**2
    if rng.random() < 0.3 and (width + 32) * height <= room:
        width += 32
    if rng.random() < 0.3 and width * (height + 32) <= room:
        height += 32
    page = Page(width, height, how.paper)
    left = how.margin + rng.uniform(0, max(0.0, width - need)) * rng.choice((0, 0, 1))
    y = how.margin + rng.uniform(0, max(0.0, height - tall)) + step / 2
    right = width - how.margin
    for row in document.rows:
        face = how.bold if row.bold else how.face
        own = [ruler.width_of(cell, face, size) for cell in row.cells]
        match row.kind:
            case "gap":
                y += step * 0.5
                continue
            case "rule":
                at = y - step * 0.3
                page.draw.line((left, at, right, at), how.ink)
                y += step * 0.4
                continue
            case "center":
                page.text((width - own[0]) / 2, y, row.cells[0], face, size, how.ink)
            case "left":
                page.text(left, y, " ".join(row.cells), face, size, how.ink)
            case "pair":
                page.text(left, y, row.cells[0], face, size, how.ink)
                page.text(right - own[1], y, row.cells[1], face, size, how.ink)
            case "table":
                spare = (right - left - sum(widths)) / max(1, len(widths) - 1) if len(widths) > 1 else 0.0
                x = left
                for column, cell in enumerate(row.cells):
                    last = column == len(widths) - 1
                    page.text(x + (widths[column] - own[column] if last else 0), y, cell, face, size, how.ink)
                    x += widths[column] + spare
        y += step
    return page


def document(
    rng: Random,
    faces: tuple[tuple[str, str], ...],
    *,
    wear: float = 1.0,
    patches: int | None = None,
    kinds: tuple[Callable[[Random], Document], ...] = KINDS,
    drawn: bool = True,
    how: Print = FINE,
) -> tuple[Document, Picture]:
    """Make one up and draw it, on so many patches or as many as `how` says.

    Without wear where its pixels are of no use (not `drawn`).
    """
    weights = [WEIGHTS[KINDS.index(kind)] if kind in KINDS else 1 for kind in kinds]
    while True:
        made = rng.choices(kinds, weights)[0](rng)
        try:
            page = render(made, style(rng, faces, how), rng, patches or how.patches)
        except ValueError:
            continue
        page.wear(rng, wear * rng.random(), drawn)
        return made, page.picture(rng, drawn)


def questions(
    rng: Random,
    faces: tuple[tuple[str, str], ...],
    *,
    turns: int = 4,
    wear: float = 1.0,
    patches: int | None = None,
    kinds: tuple[Callable[[Random], Document], ...] = KINDS,
    thinking: float = 0.25,
    drawn: bool = True,
    how: Print = FINE,
) -> Example:
    """A page and questions about it; in a share `thinking` of them the line that shows the answer is quoted first."""
    while True:
        made, picture = document(rng, faces, wear=wear, patches=patches, kinds=kinds, drawn=drawn, how=how)
        if made.asked:
            break
    asked = rng.sample(made.asked, min(turns, len(made.asked)))
    thinks = rng.random() < thinking
    picture = replace(picture, label=rng.choice(("", "Page 1:\n")))
    return Example(
        skill="document",
        media=(picture,),
        turns=tuple(Turn(question=q, answer=a, thinking=line if thinks else "") for q, a, line in asked),
    )


def pages(
    rng: Random,
    faces: tuple[tuple[str, str], ...],
    *,
    turns: int = 4,
    wear: float = 1.0,
    patches: int | None = None,
    drawn: bool = True,
    how: Print = FINE,
) -> Example:
    """Two or three pages of different kinds, and questions about what stands on one of them."""
    made: list[tuple[Document, Picture]] = []
    room = (patches or how.patches) // 2
    for kind in rng.sample(KINDS[:5], rng.choice((2, 2, 3))):
        made.append(document(rng, faces, wear=wear, patches=room, kinds=(kind,), drawn=drawn, how=how))
    asked: list[tuple[str, str]] = []
    every = [q for doc, _ in made for q in {question for question, _, _ in doc.asked}]
    for number, (doc, _) in enumerate(made):
        for question, answer, _ in doc.asked:
            told = f"On page {number + 1}: {question}"
            asked.append((question if every.count(question) == 1 and rng.random() < 0.5 else told, answer))
    chosen = rng.sample(asked, min(turns, len(asked)))
    return Example(
        skill="pages",
        media=tuple(replace(picture, label=f"Page {i + 1}:\n") for i, (_, picture) in enumerate(made)),
        turns=tuple(Turn(question=q, answer=a) for q, a in chosen),
    )


READ = ("Read the page.", "Transcribe the page.", "Write down all the text.", "What does the page say?")


def transcription(
    rng: Random,
    faces: tuple[tuple[str, str], ...],
    *,
    wear: float = 1.0,
    patches: int | None = None,
    kinds: tuple[Callable[[Random], Document], ...] = KINDS,
    drawn: bool = True,
    how: Print = FINE,
) -> Example:
    """A page and its whole text."""
    made, picture = document(rng, faces, wear=wear, patches=patches, kinds=kinds, drawn=drawn, how=how)
    return Example(skill="transcription", media=(picture,), turns=(Turn(question=rng.choice(READ), answer=made.text),))
