"""Words that generated documents, speech and screens are made of: short lists, and names made up without end."""

from __future__ import annotations

from random import Random

FIRST = """Anna Ben Clara David Ella Felix Grace Henry Ida Jack Kate Leo Mia Noah Olga Paul Rosa Sam Tina Victor
Wendy Adam Bella Carl Dora Emil Fiona Greg Hanna Ivan Julia Kevin Laura Mark Nina Oscar Petra Ralf Sara Tom""".split()
LAST = """Adler Baker Carter Dunn Evans Fisher Gray Hill Irwin Jones Keller Lopez Miller Nolan Owens Porter Quinn
Reed Stone Turner Usher Vance Weber Young Ziegler Brown Clark Davis Frank Green Hughes King Lane Moore Price""".split()
GOODS = """Coffee Tea Bread Butter Cheese Milk Apples Pears Rice Pasta Soup Salad Pizza Cake Cookies Juice Water
Lemon Honey Eggs Ham Fish Beans Corn Nuts Grapes Plums Onions Carrots Pepper Salt Sugar Flour Yogurt Cream
Olives Melon Candles Soap Paper Pens Batteries Bulbs Gloves Socks Towels Brush Glue Tape Rope Nails Screws Paint
Lamp Cable Mouse Stapler""".split()
SERVICES = """Design Hosting Support Training Repair Cleaning Delivery Printing Consulting Testing Editing
Painting Rental Storage Travel Catering Planning Wiring Plumbing Packing Mapping Tuning Survey Audit Drafting
Moving""".split()
CITIES = """Berlin Oslo Lyon Porto Turin Ghent Basel Graz Malmo Cork York Leeds Delft Bonn Riga Turku Split
Varna Lodz Brno Nice Bergen Aarhus Utrecht Seville Bath Dublin Vienna Prague Zurich""".split()
STREETS = """Oak Maple Cedar Main Park Lake Hill River Mill Church School Station Garden Market Bridge Forest
Castle North South West East Queen King Rose""".split()
MONTHS = "January February March April May June July August September October November December".split()
TOPICS = """meeting lesson concert dinner party flight match visit course lecture interview workshop picnic exam
rehearsal trip""".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
NOUNS = """house garden window table river bridge train ticket letter engine market forest winter summer morning
evening doctor teacher farmer driver station kitchen mirror bottle basket camera piano guitar pencil jacket
button candle mountain island valley village castle harbour paper number colour story picture window finger
shoulder feather""".split()
VERBS = "finds opens sees wants takes brings keeps sells needs paints cleans moves likes holds counts shows".split()
ADJECTIVES = """small large old new quiet bright heavy light green yellow white black warm cold early late clean
empty full round long short strong simple""".split()
KEYS = """Name Phone City Street Country Room Floor Code Order Ticket Seat Gate Class Grade Size Weight Height
Length Width Color Model Serial Version Batch Invoice Account Member Policy Table Date Time Price Age Team Score
Level Route Platform Status Doctor Branch Driver Plate Email Customer Agent Zone Shelf Box Lot Unit""".split()
ONSETS = "b c d f g h j k l m n p r s t v w z br cl dr fl gr kl pl st tr sh th".split()
VOWELS = "a e i o u a e i o u ai ea oo".split()
CODAS = ["", "", "", "n", "r", "l", "s", "t", "m", "nd", "rt", "x", "ck"]


def invented(rng: Random, syllables: int | None = None) -> str:
    """A word nobody has read before: it can be read, not guessed."""
    count = syllables or rng.choice((1, 2, 2, 2, 3))
    word = "".join(rng.choice(ONSETS) + rng.choice(VOWELS) + rng.choice(CODAS) for _ in range(count))
    return word.capitalize()


def person(rng: Random) -> str:
    """First and last name; one in three last names is made up."""
    return f"{rng.choice(FIRST)} {rng.choice(LAST) if rng.random() < 0.67 else invented(rng, 2)}"


def code(rng: Random) -> str:
    """Letters and digits such as `QX-4821`."""
    letters = "".join(rng.choice("ABCDEFGHJKLMNPQRSTUVWXYZ") for _ in range(rng.choice((0, 1, 2, 2, 3))))
    digits = "".join(rng.choice("0123456789") for _ in range(rng.randint(3, 6)))
    return letters + (rng.choice(("-", "", " ")) if letters else "") + digits


def date(rng: Random) -> str:
    """A date in one of four ways of writing."""
    day, month, year = rng.randint(1, 28), rng.randint(1, 12), rng.randint(2015, 2029)
    return rng.choice(
        (
            f"{year}-{month:02}-{day:02}",
            f"{day:02}/{month:02}/{year}",
            f"{day} {MONTHS[month - 1][:3]} {year}",
            f"{day:02}.{month:02}.{year}",
        )
    )


def clock(rng: Random) -> str:
    """A time of day."""
    return f"{rng.randint(6, 22)}:{rng.randint(0, 59):02}"


def sentence(rng: Random) -> str:
    """A short plain sentence of the lists' words."""
    subject = rng.choice(
        (f"The {rng.choice(ADJECTIVES)} {rng.choice(NOUNS)}", f"The {rng.choice(NOUNS)}", rng.choice(FIRST))
    )
    target = rng.choice((f"a {rng.choice(ADJECTIVES)} {rng.choice(NOUNS)}", f"the {rng.choice(NOUNS)}"))
    return f"{subject} {rng.choice(VERBS)} {target}."
