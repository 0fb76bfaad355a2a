"""The comparison of removal's parts: each variant is another run, and what it exchanges is put back."""

from dataclasses import replace

import pytest
from laboratory import TINY, changed_names, rooted

from benchmarks import removal as bench
from benchmarks.external import timing
from zspag import removal
from zspag.config import RemovalConfig
from zspag.lab.experiment import Case

FORGET = 3
FAST = RemovalConfig(steps=4, batch_size=8, per_class=4)
PROFILE = replace(
    TINY, classes=(FORGET,), seeds=(0,), unlearn=replace(TINY.unlearn, goal="remove", removal=FAST), forget_samples=30
)
ORACLES = {"retained"}


@pytest.fixture(scope="module")
def made(tmp_path_factory, data_folder):
    """One class of a tiny profile with every variant's weights, and the folder that holds the comparison.

    Yields:
        The folder, what the variants share, and a run per variant.
    """
    with pytest.MonkeyPatch.context() as patch, rooted(tmp_path_factory.mktemp("root"), data_folder) as root:
        patch.setattr(bench, "PROFILE", PROFILE)
        patch.setattr(bench, "STAGES", (-3, -2))
        patch.setattr(bench, "SHARES", (0.5, 1.0))
        bench._prepared.cache_clear()
        case = Case(PROFILE, bench.SEED, FORGET)
        prepared, _ = bench._prepared(case)
        before = dict(vars(removal))
        runs = {name: bench.fitted(variant, prepared, case)[0] for name, variant in bench.VARIANTS.items()}
        assert dict(vars(removal)) == before
        for name in ("defaults", "none"):  # the second call keeps what the first recorded
            assert bench.main(["compare", "--classes", str(FORGET), "--variants", name, "--workers", "1"]) == 0
        yield root, prepared, runs
        bench._prepared.cache_clear()


@pytest.mark.slow
def test_each_variant_is_another_run_of_the_same_weights(made):
    _, prepared, runs = made
    moved = {name: changed_names(prepared.model, run.model) for name, run in runs.items()}
    assert all(moved.values())
    assert moved["last"] == set(prepared.names[-4:]) <= moved["defaults"] == set(prepared.names)
    assert not any(run.diverged for run in runs.values())
    alike = [name for name, run in runs.items() if not changed_names(runs["defaults"].model, run.model)]
    assert alike == ["defaults"] + ["last"] * (len(prepared.names) <= 4)


@pytest.mark.slow
def test_the_page_has_a_line_per_variant_and_none_that_is_better_than_it_is(made):
    root, _, _ = made
    page = (root / "results" / "removal" / "README.md").read_text(encoding="utf-8")
    lines = [
        line for line in page.splitlines() if line.startswith(("| defaults, with fewer steps |", "| no adversary |"))
    ]
    assert len(lines) == 2
    assert all(line.count("|") == lines[0].count("|") for line in lines)
    assert "Nothing is recorded." in page  # of audits
    rows = bench.files.read_json(root / "results" / "removal" / "compare.json")["rows"]
    assert [(row["variant"], row["share"]) for row in rows] == [
        (name, share) for name in ("defaults", "none") for share in (0.5, 1.0)
    ]
    assert all(set(row["closed"]) == set(bench.PROBES) for row in rows)


def test_only_what_loses_little_counts_as_at_most_that_much():
    closed = dict.fromkeys(bench.PROBES, 0.5)
    rows = [
        {"variant": "defaults", "class_name": "cat", "share": share, "lost": lost, "closed": closed}
        for share, lost in ((0.5, 0.1), (0.75, 0.3), (1.0, 0.31))
    ]
    assert "| 0.31: 50 / 50 / 50 / 50 | 75 %, 0.30: 50 / 50 / 50 / 50 |" in bench.compared(rows)
    assert bench.compared(rows[2:]).rstrip().endswith("| none |")
    ruined = rows[2] | {"lost": None, "closed": {}}
    assert bench.compared([ruined]).rstrip().endswith("| ruined | none |")


def test_reasons_compare_each_change_with_the_defaults_of_the_same_class():
    def row(variant, place, closed, share=1.0):
        shares = {"linear": closed, "mlp": closed / 2}
        return {"variant": variant, "class_name": place, "share": share, "lost": 0.25, "closed": shares}

    rows = [row("defaults", "cat", 0.5), row("defaults", "cat", 0.1, share=0.5), row("retained", "cat", 1.2)]
    rows += [row("retained", "horse", 0.9), row("none", "cat", 0.2) | {"lost": None, "closed": {}}]
    assert bench.reasons(rows) == (
        "* With real retained images in place of the proxies a larger share of the linear gap is closed in 1 of 1"
        " classes, and more points are lost in 0 (cat: 0.25 points lost, 120 % (linear) and 60 % (mlp) closed, against"
        " 0.25 points lost, 50 % (linear) and 25 % (mlp) closed)."
    )
    less = [row("defaults", "cat", 0.5), row("none", "cat", 0.2) | {"lost": 0.5}]
    assert "in 0 of 1 classes, and more points are lost in 1 " in bench.reasons(less)


def test_costs_are_met_only_where_every_class_meets_them():
    rows = [{"class_name": name, "seconds": 20.0, "training_seconds": 10.0 * times} for name, times in (("cat", 8),)]
    assert bench.costs(rows) == "cat: 20 s, 1/4.0 of the 80 s of a training. At most 1/3: met; at most 1/10: missed."
    slow = rows[0] | {"class_name": "horse", "seconds": 30.0}
    assert bench.costs([*rows, slow]).endswith("At most 1/3: missed; at most 1/10: missed.")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")  # four steps do not remove a class
def test_a_whole_call_is_timed_beside_a_training(made, tmp_path, data_folder):
    with pytest.MonkeyPatch.context() as patch, rooted(tmp_path, data_folder):
        for name, stand_in in (("PROFILE", PROFILE), ("_CPU", PROFILE), ("CLASSES", (FORGET,))):
            patch.setattr(bench, name, stand_in)
        patch.setattr(timing, "TRAINED_IMAGES", 64)
        assert bench.main(["cost"]) == 0
    (row,) = bench.files.read_json(tmp_path / "results" / "removal" / "cost.json")["rows"]
    assert min(row["seconds"], row["training_seconds"]) > 0
    assert "## What it costs" in (tmp_path / "results" / "removal" / "README.md").read_text(encoding="utf-8")


def test_an_unknown_variant_is_refused_before_any_work(capsys):
    with pytest.raises(SystemExit):
        bench.main(["compare", "--variants", "defaults,other"])
    assert "unknown other; known are defaults, steps-300" in capsys.readouterr().err
