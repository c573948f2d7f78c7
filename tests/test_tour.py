"""The demo runs and says what it measured."""

import re

import pytest

from demos import tour


def test_the_tour_plans_what_it_reads_and_pieces_change_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    tour.main()
    text = " ".join(capsys.readouterr().out.split())
    found = re.search(r"(\d+) tokens planned, (\d+) read", text)
    assert found
    assert found[1] == found[2]
    differ = re.search(r"differ by ([\d.e-]+) at most", text)
    assert differ
    assert float(differ[1]) < 1e-4
