"""Every method under one signature: it forgets, it leaves the model alone, and it differs only in what it claims."""

import copy
import inspect
from dataclasses import replace
from functools import cache

import pytest
import torch
from laboratory import FORGET, LADDER, TINY, caught_losses, changed_names, problem, small
from marks import slow_but
from reference import assert_same_state, state_of

import zspag.lab.data
from zspag.config import LabelConfig, UnlearnConfig
from zspag.lab import experiment
from zspag.lab.experiment import Case, RetainDataRead, run_method
from zspag.lab.methods import FAMILIES, METHODS, Method, Problem, labels, listing, oracles, projected, targets
from zspag.profiles import PROFILES, Ladders
from zspag.runtime import channels_last, generator_for, logits_of, seed_of
from zspag.subspaces import combine

RATES = {
    "jit": (0.0001, 0.0004, 0.0005),  # about here, by processor, JiT runs away from its own moving target, and diverges
    # With 1 these diverge, and what .03 does differs from processor to processor.
    "distilled": (0.03, 0.2),
    "unsc": (0.03, 0.2),
    "scrub": (0.03, 0.06),
    "remove": (TINY.unlearn.removal.lr,),  # its one rate is an option of its own
}
CALIBRATED = ("zs_pag", "process_labels", "influence_labels", "second_best_labels", "random_labels")
ORACLES = ("oracle_subspace", "fine_tune", "unsc", "scrub", "fisher_forgetting", "selective_dampening")
KEEPS = ("fine_tune",)  # nothing tells it to forget, and on digits it does not; see test_baselines_oracles.py
UNPROJECTED = ("unprojected", "rehearsal")
HEAD = ("head_only", "head_sampling")
PROJECTED = {*projected.METHODS, *labels.METHODS} - {"unprojected"}  # all others move all, but "mu_mis" and "unsc"

# Variants of "zs_pag" run its own code with other labels; see test_baselines_projected.py.
EVERY = [pytest.param(name, marks=pytest.mark.slow) if name in CALIBRATED[1:] else name for name in METHODS]
USUAL = {next(iter(family.METHODS)) for family in FAMILIES}  # the others of a family repeat when it is slow, too


def go(name, *, ladder=None, strategy=None, update=None, **changes):
    """Run a method of the table over a ladder, as the grid does; ``changes`` are fields of the small problem."""
    config = small().config
    config = replace(config, labels=LabelConfig(strategy=strategy) if strategy else config.labels)
    options = {"ladder": ladder or RATES.get(name, LADDER)} | (update or {})
    config = replace(config, update=replace(config.update, **options))
    return METHODS[name].run(problem(oracle=METHODS[name].oracle, **changes), config)


def losses(monkeypatch, name, **options):
    """Return the losses that a method hands to the loop at two rates, without running it."""
    return [loss for loss, _ in caught_losses(monkeypatch, lambda: go(name, ladder=(0.1, 0.2), **options))]


def own_subspace():
    return combine(small().statistics.moments, config=small().config.subspace)


def free_weights():
    """Weights with directions left to move in: the first layer's nine inputs are all protected here."""
    return {name for name, free in own_subspace().free_dimension().items() if free > 0}


@cache
def outside_of_retain_data():
    """The same for the subspace of UNSC."""
    merged = oracles.merged_retain_subspace(small().model, small().retain_images, small().retain_labels)
    return {name for name, free in merged.free_dimension().items() if free > 0}


def weights(run):
    return run.model.state_dict()


def assert_same_weights(first, second):
    for name, tensor in weights(first).items():
        assert torch.equal(tensor, weights(second)[name]), name


def differ(first, second):
    return bool(changed_names(first.model, second.model))


def at(ladder, lr):
    """The run of a ladder at a rate; calibrated methods bring the rate that they chose beside those of the ladder."""
    (run,) = (run for run in ladder.runs if run.lr == lr)
    return run


def used_model():
    """The net in the hands of an owner who would notice any change of it."""
    model = copy.deepcopy(small().model).train()
    model[2].eval()  # somebody's frozen norm
    for index, parameter in enumerate(model.parameters()):
        parameter.grad = torch.full_like(parameter, index)
        parameter.requires_grad_(index % 2 == 0)
    return model


@cache
def ran(name):
    """Run a method once for all tests below, on ``used_model``; return the runs, and the model before and after."""
    model = used_model()
    before = state_of(model)
    ladder = go(name, model=model, update={"layers": "all"})
    return ladder, before, state_of(model)


# The table


def test_every_method_has_the_one_signature_and_its_own_title():
    for entry in METHODS.values():
        found = inspect.signature(entry.run).parameters.values()
        assert [(part.name, part.annotation) for part in found] == [("problem", Problem), ("config", UnlearnConfig)]
        plain = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.empty)
        assert all((part.kind, part.default) == plain for part in found)
    assert len({entry.title for entry in METHODS.values()}) == len(METHODS)


def test_only_the_oracles_say_that_they_read_retain_data():
    assert {name for name, entry in METHODS.items() if entry.oracle} == set(ORACLES)
    assert {name for name, entry in METHODS.items() if "RETAIN" in entry.reads.upper()} == set(ORACLES)


@pytest.mark.parametrize("name", ORACLES)
def test_an_oracle_needs_retain_data_and_a_forget_only_problem_holds_none(name):
    with pytest.raises(ValueError, match="only an oracle is handed any"):
        METHODS[name].run(problem(), small().config)
    images, labels = problem(oracle=True).oracle_data
    assert images is small().retain_images
    assert labels is small().retain_labels


def test_seed_of_a_problem_is_one_draw_however_often_it_is_asked_for():
    given, drawn = problem(), generator_for(0, "method")
    assert given.seed == given.seed == seed_of(drawn)
    assert seed_of(given.generator) == seed_of(drawn)
    assert problem(generator=generator_for(1, "method")).seed != given.seed
    assert problem(forget_labels=torch.tensor([7, 2, 7])).forget_classes == (2, 7)


def test_listing_shows_title_first_sentence_data_reference_and_rates_of_every_method():
    ladders = Ladders(low=(0.001, 0.01), middle=(0.03, 0.1), high=(0.3, 10.0))
    rates = {"low": "0.001, 0.01", "middle": "0.03, 0.1", "high": "0.3, 10"}
    blocks = "\n".join(listing(METHODS, ladders=ladders)).replace("\n  ", "\t").split("\n")
    for block, (name, entry) in zip(blocks, METHODS.items(), strict=True):
        title, sentence, *rest = block.split("\t")
        assert title == f"{name}: {entry.title}"
        assert sentence == entry.run.__doc__.splitlines()[0].strip()
        assert rest[:2] == [f"reads: {entry.reads}", f"reference: {entry.reference}"]
        assert rest[2] == f"ladder: {entry.ladder}, {rates[entry.ladder]}"
        assert (len(rest) == 4) == bool(entry.fixed)
    for profile in PROFILES.values():
        assert list(listing(METHODS, ladders=profile.ladders))


def test_listing_shows_every_number_of_a_family_as_it_is(monkeypatch):
    for family in FAMILIES:
        named = {number for entry in family.METHODS.values() for number in entry.fixed}
        defined = {key for key, value in vars(family).items() if key.isupper() and isinstance(value, int | float)}
        assert named == {key for key in defined if not key.startswith("_")}
    one = {"unsc": METHODS["unsc"]}
    assert "  fixed: UNSC_ENERGY = 0.97, UNSC_MERGE_ENERGY = 0.97" in listing(one, ladders=TINY.ladders)
    monkeypatch.setattr(oracles, "UNSC_ENERGY", 0.5)
    assert "  fixed: UNSC_ENERGY = 0.5, UNSC_MERGE_ENERGY = 0.97" in listing(one, ladders=TINY.ladders)


# What every method must do


@pytest.mark.parametrize("name", EVERY)
def test_every_method_but_fine_tuning_forgets_at_some_rate_and_leaves_the_model_alone(name):
    case, (ladder, before, after) = small(), ran(name)
    assert_same_state(before, after)
    images, labels = case.images, case.labels
    start = (logits_of(case.model, images).argmax(1) == labels).double().mean().item()
    sound = [run.history[-1].forget_accuracy for run in ladder.runs if not run.diverged]
    assert start > 0.9
    assert (min(sound) > start - 0.1) if name in KEEPS else (min(sound) < start - 0.5)
    assert {run.lr for run in ladder.runs} - ({ladder.kept.lr} if name in CALIBRATED else set()) <= {
        *RATES.get(name, LADDER)
    }
    if name in CALIBRATED:  # these fit the views, and are judged on them
        images, labels = channels_last(case.statistics.views.images), labels[case.statistics.views.sources]
    answers = logits_of(ladder.runs[-1].model, images).argmax(1)
    assert (answers == labels).double().mean().item() == ladder.runs[-1].history[-1].forget_accuracy


@pytest.mark.parametrize("name", slow_but(USUAL, METHODS))
def test_every_method_repeats_bit_for_bit_whatever_the_other_rates_but_not_with_another_generator(name):
    rates, ladder, options = RATES.get(name, LADDER), ran(name)[0], {"update": {"layers": "all"}}
    first, last = rates[0], rates[-1]
    again = go(name, ladder=(0.1 * last, last), **options)
    assert_same_weights(at(ladder, last), at(again, last))
    assert differ(at(ladder, first), at(ladder, last)) == (len(rates) > 1)
    other = go(name, ladder=(first,), generator=generator_for(1, "other"), **options)
    assert differ(at(ladder, first), at(other, first)) == (name != "selective_dampening")  # which draws nothing here


@pytest.mark.parametrize("name", EVERY)
def test_norm_statistics_stay_and_only_the_claimed_weights_move(name):
    case, run = small(), ran(name)[0].runs[-1]
    parameters = {key for key, _ in case.model.named_parameters()}
    projectable, head = set(case.statistics.names), list(case.model.named_modules())[-1][0]
    claimed = {
        # Of a net of ReLUs, the gradient in the pixels does not depend on biases.
        "mu_mis": {key for key in parameters if not key.endswith("bias")},
        "unsc": outside_of_retain_data(),
        "remove": projectable - {f"{head}.weight"},
        **dict.fromkeys(HEAD, {f"{head}.weight", f"{head}.bias"}),
        **dict.fromkeys(UNPROJECTED, projectable),
        **dict.fromkeys(PROJECTED, free_weights()),
    }.get(name, parameters)
    assert changed_names(case.model, run.model) == claimed  # and so no buffer
    assert len(claimed) > 1
    assert free_weights() < projectable < parameters  # norm affine parameters and the head's bias are frozen


# Zero-shot, held by the guard


@pytest.fixture
def case(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.getbasetemp() / "guarded"  # one cache of the digits for all tests here
    monkeypatch.setenv("ZSPAG_ROOT", str(folder))
    monkeypatch.setenv("ZSPAG_DATA", str(folder / "data"))
    unlearn = replace(TINY.unlearn, update=replace(TINY.unlearn.update, epochs=1))
    return Case(replace(TINY, ladders=Ladders((1.0,), (1.0,), (1.0,)), unlearn=unlearn, forget_samples=60), 0, FORGET)


def guarded(case, name):
    return run_method(case, name, model=small().model, statistics=small().statistics)


@pytest.mark.parametrize("name", EVERY)
def test_only_an_oracle_reads_retain_data_and_every_sample_is_counted(case, name):
    ladder, guard = guarded(case, name)
    assert at(ladder, RATES["remove"][0] if name == "remove" else 1.0) in ladder.runs
    assert guard.retain_samples_read == (len(small().retain_labels) if name in ORACLES else 0)
    assert len(small().retain_labels) > 1000


@pytest.mark.parametrize(
    ("read", "count"),
    [
        (lambda _: zspag.lab.data.load("digits"), "1797"),
        (lambda case: experiment.guard_of(case).retain_train(2), "18"),
        (lambda case: experiment.guard_of(case).retain_test(), "32[0-9]"),
    ],
    ids=["data set", "two a class", "test set"],
)
def test_a_method_that_reads_more_than_its_forget_set_is_caught(case, monkeypatch, read, count):
    def cheat(problem, config):
        read(case)
        return targets.delete(problem, config)

    monkeypatch.setitem(METHODS, "cheat", Method("a cheat", cheat, "forget set, it says", "nobody", "low"))
    with pytest.raises(RetainDataRead, match=rf"cheat read {count} samples beyond its forget set"):
        guarded(case, "cheat")
