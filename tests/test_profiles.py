"""A profile is a constant; another data set or architecture takes its recipe from the table."""

from dataclasses import replace
from itertools import product

import pytest

from zspag.profiles import PAPER_DATA, PAPER_NETS, PROFILES, RECIPES, for_pair, trial


@pytest.mark.parametrize(("dataset", "arch"), list(product(PAPER_DATA, PAPER_NETS)))
def test_each_of_the_papers_sixteen_pairs_has_a_recipe(dataset, arch):
    recipe = RECIPES["paper"]["any", arch]
    expected = replace(PROFILES["paper"], dataset=dataset, arch=arch, width=recipe.width, train=recipe.train)
    assert for_pair(PROFILES["paper"], dataset=dataset, arch=arch) == expected


def test_a_profile_and_its_own_pair_are_the_same_profile():
    for profile in PROFILES.values():
        assert for_pair(profile) == for_pair(profile, dataset=profile.dataset, arch=profile.arch) == profile


def test_the_line_of_a_data_set_wins_over_that_of_any():
    cpu = PROFILES["cpu"]
    small, other = (for_pair(cpu, dataset=name, arch="vit") for name in ("mnist", "cifar100"))
    assert (small.width, other.width) == (RECIPES["cpu"]["mnist", "vit"].width, RECIPES["cpu"]["any", "vit"].width)
    assert small.width != other.width


def test_a_net_that_holds_forget_images_out_is_handed_all_of_them():
    cpu = PROFILES["cpu"]
    chosen = for_pair(cpu, arch="allcnn")
    assert (chosen.forget_samples, chosen.unlearn.update.held_out) == (None, RECIPES["cpu"]["any", "allcnn"].held_out)
    assert replace(chosen.unlearn, update=cpu.unlearn.update) == cpu.unlearn
    assert chosen.unlearn.update.held_out > 0
    other = for_pair(cpu, arch="vit")
    assert (other.forget_samples, other.unlearn) == (cpu.forget_samples, cpu.unlearn)


def test_an_external_net_is_trained_as_the_profiles_own_with_what_the_images_bear():
    cpu = PROFILES["cpu"]
    chosen = for_pair(cpu, arch="net.py:build")
    assert chosen == replace(cpu, arch="net.py:build", train=replace(cpu.train, augment="hint"))
    smoke = PROFILES["smoke"]
    assert for_pair(smoke, arch="conv7").train == smoke.train  # which augments nothing


@pytest.mark.parametrize(("dataset", "arch"), [(None, None), ("cifar100", "vit"), ("svhn", "alexnet")])
def test_a_trial_takes_the_way_of_its_pair_with_less_of_everything(dataset, arch):
    whole = for_pair(PROFILES["paper"], dataset=dataset, arch=arch)
    part = for_pair(PROFILES["paper-trial"], dataset=dataset, arch=arch)
    assert part == trial(whole)
    assert (part.name, part.trial, whole.trial) == ("paper-trial", True, False)
    assert (part.dataset, part.arch, part.methods) == (whole.dataset, whole.arch, whole.methods)
    assert part.width < whole.width
    assert (part.share, len(part.classes), len(part.seeds)) == (0.01, 1, 1)
    assert part.share * part.train.epochs < whole.train.epochs / 10


def test_removal_takes_a_few_steps_where_lines_are_tried_and_its_defaults_elsewhere():
    usual = PROFILES["digits"].unlearn.removal
    assert PROFILES["cpu"].unlearn.removal == PROFILES["paper"].unlearn.removal == usual
    tried = [profile for profile in PROFILES.values() if profile.trial]
    assert {profile.name for profile in tried} == {"smoke", "cpu-trial", "paper-trial"}
    for removal in (profile.unlearn.removal for profile in tried):
        assert removal.steps * 10 <= usual.steps
        assert removal.per_class < usual.per_class
        assert 1 < len(removal.shares) < len(usual.shares)  # a curve has two ends
