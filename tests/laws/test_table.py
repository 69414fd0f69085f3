"""Every method of the index has its row in a table of the laws, and a law that it has none of has a reason."""

from __future__ import annotations

from dataclasses import is_dataclass

import pytest
from laws import distilling, painting, personalising, reading

from sfumato.core.method import Method
from sfumato.distill import Distillation
from sfumato.inversion import Inversion
from sfumato.methods import index

ROWS = [*painting.METHODS, *reading.METHODS, *distilling.METHODS, *personalising.METHODS]
TABLES = {
    **dict.fromkeys(index.PAINTING, painting),
    "perceive": reading,
    "distill": distilling,
    "personalise": personalising,
}


@pytest.mark.parametrize("entry", index.METHODS, ids=[entry.word for entry in index.METHODS])
def test_every_method_of_the_index_is_in_the_table(entry):
    table = TABLES[entry.group]
    rows = [row for row in table.METHODS if row.word.partition(":")[0] == entry.word]
    assert rows, f"{entry.word} has no row in the table of the laws, {table.__name__}.py"
    for row in rows:
        assert len(set(row.families)) == len(row.families)


def test_every_row_is_a_method_of_the_index_and_has_a_name_of_its_own():
    words = [row.word for row in ROWS]
    assert len(set(words)) == len(words)
    assert {word.partition(":")[0] for word in words} == {entry.word for entry in index.METHODS}


@pytest.mark.parametrize("row", painting.METHODS, ids=[row.word for row in painting.METHODS])
def test_a_law_that_does_not_apply_has_a_reason(row):
    assert row.but.keys() <= painting.LAWS.keys()
    assert all(len(reason.split()) > 3 for reason in row.but.values())
    assert "off" in row.but or row.off or row.still


@pytest.mark.parametrize("row", ROWS, ids=[row.word for row in ROWS])
def test_settings_of_a_row_are_of_its_method(models, row):
    """Or of what it is made of, in the same file or one that it is named for."""
    entry = next(e for e in index.METHODS if e.word == row.word.partition(":")[0])
    if isinstance(row, painting.Row):
        ways = [row.settings(models(row.families[0])), *row.off, *row.still]
        kinds = (Method, Inversion)
    else:
        ways, kinds = row.ways, (Distillation,) if isinstance(row, distilling.Row) else (object,)
    assert any(
        isinstance(way, entry.method) if is_dataclass(entry.method) else way is entry.method for way in ways
    ) or (":" in row.word)
    assert all(isinstance(way, kinds) for way in ways)
