"""``zspag methods``: every method is there, and its numbers are those its code uses."""

from dataclasses import dataclass, replace

from zspag.config import Ladders
from zspag.lab.methods import METHODS, inventory, oracles
from zspag.profiles import PROFILES

LADDERS = Ladders(low=(0.001, 0.01), middle=(0.03, 0.1), high=(0.3, 10.0))
UNUSED = 7
COUNT = 3
SHARE = 0.25
_BOUND = 9


@dataclass(frozen=True)
class Options:
    steps: int = 5
    eps: float = 0.5


CHANGED = Options(steps=6)


def by_default(model):
    return Options(), model


def _deeper(model):
    return [model * SHARE * _BOUND for _ in range(2)]


def _made(kind, missing=None):
    def run(model):
        """Do something.

        At length.
        """
        return [_deeper(model) + COUNT, kind, missing]

    return run


def entries(methods):
    """Cut the listing into one block per method, by name."""
    blocks = {}
    for line in inventory.listing(methods, ladders=LADDERS):
        if not line.startswith(" "):
            name, _, title = line.partition(": ")
            blocks[name] = [title]
        else:
            blocks[name].append(line.strip())
    return blocks


def test_every_method_is_listed_with_title_data_reference_and_rates():
    blocks = entries(METHODS)
    assert list(blocks) == list(METHODS)
    for name, method in METHODS.items():
        title, *lines = blocks[name]
        assert title == method.title
        assert f"reads: {method.reads}" in lines
        assert f"reference: {method.reference}" in lines
        rates = {"low": "0.001, 0.01", "middle": "0.03, 0.1", "high": "0.3, 10"}[method.ladder]
        assert f"ladder: {method.ladder}, {rates}" in lines


def test_numbers_are_those_of_the_code_however_deep_and_no_others():
    assert inventory.constants(_made("hard")) == {"kind": "hard", "COUNT": 3, "SHARE": 0.25}
    assert list(inventory.constants(_made("hard"))) == ["kind", "COUNT", "SHARE"]
    assert inventory.constants(lambda: UNUSED) == {"UNUSED": 7}
    assert inventory.constants(by_default).keys().isdisjoint({"UNUSED", "COUNT"})


def test_fields_of_a_dataclass_are_listed_as_they_are_or_by_default():
    assert inventory.constants(by_default) == {"Options.steps": 5, "Options.eps": 0.5}
    assert inventory.constants(lambda: CHANGED) == {"Options.steps": 6, "Options.eps": 0.5}


def test_a_changed_constant_is_listed_as_changed(monkeypatch):
    assert "fixed: UNSC_ENERGY = 0.97, UNSC_MERGE_ENERGY = 0.97" in entries(METHODS)["unsc"]
    monkeypatch.setattr(oracles, "UNSC_ENERGY", 0.5)
    assert "fixed: UNSC_ENERGY = 0.5, UNSC_MERGE_ENERGY = 0.97" in entries(METHODS)["unsc"]
    assert "fixed: strategy = second_best" in entries(METHODS)["second_best_labels"]
    assert not [line for line in entries(METHODS)["delete"] if line.startswith("fixed")]


def test_the_first_line_of_its_docstring_says_what_a_method_does():
    method = replace(METHODS["delete"], run=_made("soft"))
    assert entries({"own": method})["own"][1] == "Do something."


def test_every_profile_has_the_ladders_that_are_listed():
    for profile in PROFILES.values():
        assert list(inventory.listing(METHODS, ladders=profile.ladders))
