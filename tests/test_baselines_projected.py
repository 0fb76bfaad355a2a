"""ZS-PAG and its ablations: the projection, the label variants, the subspaces at equal rank."""

from dataclasses import replace

import pytest
import torch
from laboratory import FORGET, changed_names, problem, small
from test_baselines import assert_same_weights, differ, free_weights, go, own_subspace, weights

from zspag.calibration import cross_fitting
from zspag.config import UpdateConfig
from zspag.lab.evaluation import captured
from zspag.lab.methods import METHODS, forget_subspace, noise_subspace, retain_subspace
from zspag.runtime import generator_for
from zspag.subspaces import pooled, random_like, second_moments


@pytest.mark.parametrize("layers", ["auto", "body", "head"])
def test_a_calibrated_method_moves_the_layers_that_were_chosen_at_every_rate(layers):
    case, free, names = small(), free_weights(), small().statistics.names
    choices = {"body": free & set(names[:-1]), "head": free & {names[-1]}}
    allowed = [free, *choices.values()] if layers == "auto" else [choices[layers]]
    moved = [changed_names(case.model, run.model) for run in go("zs_pag", update={"layers": layers}).runs]
    assert len(moved) > 1
    assert all(one == moved[0] for one in moved)
    assert moved[0] in allowed
    assert all(choices.values())


@pytest.mark.parametrize("strategy", ["process", "random", "second_best", "influence"])
def test_label_variants_are_zs_pag_with_another_strategy(strategy):
    options = {"ladder": (0.3,), "update": {"layers": "all", "lr": 0.3}}
    variant, own = go(f"{strategy}_labels", **options), go("zs_pag", strategy=strategy, **options)
    assert_same_weights(variant.kept, own.kept)
    assert differ(variant.kept, go("zs_pag", strategy="soft", **options).kept)


def test_curvature_gets_moments_in_their_own_size(monkeypatch):
    """As in ``zero_shot_unlearn``: normalized moments, which subspaces are cut from, would change the damping."""
    real, handed = cross_fitting.pseudo_labeler, []

    def keep(*args, **options):
        handed.append(options["moments"])
        return real(*args, **options)

    monkeypatch.setattr(cross_fitting, "pseudo_labeler", keep)
    go("influence_labels", ladder=(0.03,), update={"lr": 0.03, "layers": "all"})
    parts = small().statistics.moments
    for name, second in handed[0].second.items():
        assert torch.equal(second, sum(part.second[name] for part in parts) / len(list(parts)))  # added in order
        assert not torch.allclose(second, pooled(parts).second[name])


def test_projection_keeps_the_update_out_of_the_subspace_of_the_proxies():
    case, bases = small(), own_subspace().bases
    ours, without = (go(name, ladder=(0.3,)).runs[0] for name in ("zs_pag_fixed", "unprojected"))
    for name in free_weights():
        start, basis = case.model.state_dict()[name], bases[name][0]
        changes = [(weights(run)[name] - start).flatten(1).double() for run in (ours, without)]
        inside = [(change @ basis).norm() for change in changes]
        assert inside[0] < 1e-4 * changes[0].norm()
        assert inside[1] > 0.1 * changes[0].norm()
    assert free_weights()


# Subspaces at equal rank


def test_subspace_controls_have_the_ranks_of_the_proxies_subspace_and_other_directions():
    case, own, count = small(), own_subspace(), len(small().statistics.proxies.labels)
    controls = [
        forget_subspace(case.model, case.images, own=own),
        noise_subspace(case.model, case.images, count=count, own=own, generator=generator_for("control")),
        random_like(own, generator=generator_for("control")),
        retain_subspace(case.model, case.retain_images, case.retain_labels, own=own),
    ]
    for other in controls:
        assert other.ranks == own.ranks
        assert other.free_dimension() == own.free_dimension()
        for name, basis in other.bases.items():
            gram = basis[0].T @ basis[0]
            torch.testing.assert_close(gram, torch.eye(own.ranks[name][0], dtype=torch.float64), atol=1e-8, rtol=0)
            same = torch.allclose(basis @ basis.mT, own.bases[name] @ own.bases[name].mT)
            assert same == (name not in free_weights())  # of full rank there is but one


def test_no_subspace_of_equal_rank_captures_more_retain_data_than_the_oracle():
    case, own = small(), own_subspace()
    parts = [second_moments(case.model, case.retain_images[case.retain_labels == c]) for c in range(10) if c != FORGET]
    oracle = retain_subspace(case.model, case.retain_images, case.retain_labels, own=own)
    random = random_like(own, generator=generator_for(0))
    best, chance, proxies = (captured(subspace, pooled(parts)) for subspace in (oracle, random, own))
    assert all(proxies[name] <= best[name] + 1e-9 for name in best)
    assert all(chance[name] < best[name] - 0.01 for name in free_weights())


def test_subspace_methods_fit_the_same_batches():
    """They differ by the subspace alone, for each draws as much from the generator that batches are seeded from."""
    left = []
    for name in ("forget_subspace", "noise_subspace", "random_subspace", "oracle_subspace"):
        given = problem(oracle=METHODS[name].oracle)
        METHODS[name].run(given, replace(small().config, update=UpdateConfig(lr=0.01, epochs=1, settle=0)))
        left.append((given.seed, int(torch.randint(2**31, (1,), generator=given.generator))))
    assert len(set(left)) == 1
