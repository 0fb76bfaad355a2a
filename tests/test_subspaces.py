"""A projected update moves nothing inside the protected span, and does move what lies outside."""

import itertools
import math
import weakref
from dataclasses import replace

import pytest
import reference
import torch
from torch import nn

from zspag import subspaces
from zspag.activations import as_blocks
from zspag.config import SubspaceConfig
from zspag.subspaces import (
    MomentAccumulator,
    Moments,
    Projector,
    accumulate,
    averaged,
    by_energy,
    by_rank,
    combine,
    energy_rank,
    hard_projector,
    leading_eigenvectors,
    merged,
    pooled,
    principal_angles,
    projector,
    random_like,
    second_moments,
    soft_projector,
)

D, D_OUT = 7, 5


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def randn(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def orthonormal(d, k):
    return torch.linalg.qr(randn(d, k)).Q


def moments_of(*blocks):
    """Moments of one weight "w" from matrices (d, d)."""
    return Moments({"w": torch.stack(blocks)}, {"w": 1.0}, {})


def spread(d=D, decay=0.5):
    """A second moment with full rank and a decaying spectrum."""
    basis = orthonormal(d, d)
    return basis @ torch.diag(decay ** torch.arange(d, dtype=torch.float64)) @ basis.T


def dense(project, name, d):
    """The matrix that a projector multiplies with, read off from unit gradients, (blocks, d, d)."""
    blocks = len(project.factors[name][1])
    return project(name, torch.eye(d, dtype=torch.float64).repeat(blocks, 1)).reshape(blocks, d, d)


# ---- T1: an update in the complement leaves the whole network unchanged on the span, and only there


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect", groups=2)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x):
        return x + torch.relu(self.norm(self.conv(x)))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(12, 12), nn.Linear(12, 12, bias=False), nn.Linear(12, 3)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.head(torch.tanh(self.second(torch.tanh(self.first(x.flatten(1))))))


class Cross(nn.Module):
    """Attention from two of an image's channels to all three, keys and values of widths of their own."""

    def __init__(self, **options):
        super().__init__()
        self.query = nn.Linear(36, 4)
        self.attention = nn.MultiheadAttention(4, 2, kdim=36, vdim=30, **options)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        channels = x.flatten(2)  # (n, 3, 36)
        query, key, value = self.query(channels[:, :2]), channels, channels[..., :30]
        if not self.attention.batch_first:
            query, key, value = (part.transpose(0, 1) for part in (query, key, value))
        answer = self.attention(query, key, value)[0]
        return self.head(answer if self.attention.batch_first else answer.transpose(0, 1)).mean(1)


def sequence(*layers):
    return lambda: nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(3))


NETS = {
    "stride": (sequence(nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(inplace=True)), (3, 6, 6)),
    "padding": (sequence(nn.Conv2d(3, 4, (3, 2), padding=(2, 1)), nn.Tanh()), (3, 6, 6)),
    "same": (sequence(nn.Conv2d(3, 4, 3, padding="same", padding_mode="circular"), nn.MaxPool2d(2)), (3, 6, 6)),
    "dilation": (sequence(nn.Conv2d(3, 4, 2, dilation=(2, 3)), nn.GELU()), (3, 6, 6)),
    "groups": (sequence(nn.Conv2d(4, 6, 3, groups=2, bias=False), nn.ReLU()), (4, 5, 6)),
    "residual": (sequence(Residual(), Residual()), (4, 5, 6)),
    "conv1d": (sequence(nn.Conv1d(4, 6, 3, stride=2, groups=2), nn.ReLU()), (4, 9)),
    "conv3d": (sequence(nn.Conv3d(2, 3, 2), nn.ReLU()), (2, 3, 4, 3)),
    "linear with leading dimensions": (sequence(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 5)), (3, 5, 6)),
    "self-attention": (lambda: reference.Attending(classes=3), (3, 4, 6)),
    "cross-attention": (lambda: Cross(batch_first=True), (3, 6, 6)),
    "cross-attention, batch second": (Cross, (3, 6, 6)),
    "tied": (Tied, (3, 2, 2)),
}


@pytest.mark.parametrize("case", NETS)
def test_a_projected_update_moves_outputs_only_outside_the_span(case):
    make, shape = NETS[case]
    net = make().double().eval()
    inside, outside = torch.rand(2, *shape, dtype=torch.float64), torch.rand(9, *shape, dtype=torch.float64)
    net(inside)  # sizes of lazy layers
    before = net(inside), net(outside)
    moments = second_moments(net, inside)
    project = hard_projector(by_energy(moments, energy=1.0))
    assert moments.unprojectable == {}

    steps = {
        name: project(name, randn(*weight.shape)) for name, weight in net.named_parameters() if name in moments.second
    }
    assert max(step.abs().max() for step in steps.values()) > 0.1  # some room is left to move in
    with torch.no_grad():
        for name, weight in net.named_parameters():
            if name in steps:
                weight += steps[name]

    torch.testing.assert_close(net(inside), before[0], rtol=0, atol=1e-9)
    assert (net(outside) - before[1]).abs().max() > 1e-3


@pytest.mark.parametrize("moving", ["weights", "biases"])
@pytest.mark.parametrize("case", ["groups", "self-attention", "tied"])
def test_the_same_update_without_projection_or_of_biases_moves_the_span(case, moving):
    make, shape = NETS[case]
    net = make().double().eval()
    inside = torch.rand(2, *shape, dtype=torch.float64)
    before = net(inside)
    with torch.no_grad():
        for parameter in net.parameters():
            if (parameter.dim() > 1) == (moving == "weights"):
                parameter += randn(*parameter.shape)
    assert (net(inside) - before).abs().max() > 1e-3


# ---- Moments


def test_moments_are_the_sum_of_outer_products_over_all_patches():
    net = nn.Sequential(nn.Conv2d(4, 6, (3, 2), stride=2, padding=1, groups=2)).double()
    images = torch.rand(3, 4, 5, 7, dtype=torch.float64)
    moments = second_moments(net, images)
    rows = reference.convolution_rows(
        images, (3, 2), stride=(2, 2), padding=[(1, 1), (1, 1)], dilation=(1, 1), groups=2
    )
    expected = torch.stack([reference.second_moment(block) for block in rows])
    torch.testing.assert_close(moments.second["0.weight"], expected)
    assert moments.rows_per_sample == {"0.weight": rows.shape[1] / 3}


def test_streaming_equals_one_batch_and_the_order_is_irrelevant(monkeypatch):
    net = reference.Attending().double()
    images = torch.rand(7, 3, 4, 6, dtype=torch.float64)
    whole = second_moments(net, images)
    monkeypatch.setattr("zspag.runtime.CHUNK", 3)
    for streamed in (second_moments(net, images), second_moments(net, images[torch.randperm(7)])):
        assert streamed.rows_per_sample == whole.rows_per_sample
        for name, second in whole.second.items():
            torch.testing.assert_close(streamed.second[name], second)
    other = second_moments(net, images[:6])
    assert not torch.allclose(other.second["head.weight"], whole.second["head.weight"])


def test_the_state_of_the_accumulator_does_not_grow_with_the_samples():
    accumulator = MomentAccumulator()

    def size():
        rows = [part for parts in accumulator.few.values() for part in parts]
        return sum(held.numel() * held.element_size() for held in (*accumulator.sums.values(), *rows))

    accumulator.add("w", torch.randn(2, 3, D))
    assert size() == 2 * 3 * D * 8  # few rows are kept as they are, and no matrix is made
    for _ in range(50):
        accumulator.add("w", torch.randn(2, 100, D))
        assert size() == 2 * D * D * 8
    assert accumulator.moments(samples=5003, unprojectable={}).rows_per_sample == {"w": 1}
    assert size() == 0  # it starts anew


def test_float32_rows_are_added_up_in_float64():
    accumulator = MomentAccumulator()
    for value in (4096.0, 1.0):
        accumulator.add("w", torch.full((1, 1, 1), value))
    found = accumulator.moments(samples=2, unprojectable={}).second["w"]
    assert 2 * found.item() == 4096.0**2 + 1  # float32 would lose the 1


@pytest.mark.parametrize("count", [300, 30_000])
def test_products_of_float32_rows_cost_some_1e_7_of_the_largest_entry_whatever_the_number_of_rows(count):
    rows = 1 + torch.randn(1, count, 40, generator=torch.Generator().manual_seed(0))  # a mean is the hard case

    def error(given):
        accumulator = MomentAccumulator()
        accumulator.add("w", given)
        found = accumulator.moments(samples=1, unprojectable={}).second["w"]
        assert found.dtype == torch.float64
        exact = (rows.double().transpose(1, 2) @ rows.double()) / count
        return float((found - exact).abs().max() / exact.abs().max())

    assert error(rows.double()) < 1e-12 < error(rows) < 5e-7  # each in its own precision
    with torch.autocast("cpu", torch.bfloat16):
        assert error(rows) < 5e-7  # which nobody lowers
    assert 1e-5 < error(rows.bfloat16()) < 1e-2  # rounded rows: the error of half precision is of another size


def test_one_product_takes_a_bounded_piece_of_the_rows_and_moments_do_not_depend_on_it(monkeypatch):
    net, images = nn.Sequential(nn.Conv2d(4, 6, 3, groups=2)).double(), randn(3, 4, 6, 5)
    whole, pieces, multiply = second_moments(net, images), [], torch.Tensor.__matmul__
    monkeypatch.setattr(
        torch.Tensor, "__matmul__", lambda left, right: pieces.append(right.shape[1]) or multiply(left, right)
    )
    for limit, rows, most in ((2 * 18 * 7, 10**6, 7), (10**6, 5, 5), (1, 10**6, 1)):
        pieces.clear()
        monkeypatch.setattr(subspaces, "PIECE", limit)
        monkeypatch.setattr(subspaces, "ROWS", rows)
        torch.testing.assert_close(second_moments(net, images).second["0.weight"], whole.second["0.weight"])
        assert max(pieces) == most
        assert sum(pieces) == 3 * 4 * 3


@pytest.mark.parametrize("strip", [1, 2, D - 1, D])
def test_strips_add_up_to_the_whole_product(monkeypatch, strip):
    rows = randn(2, 3 * D + 1, D)
    monkeypatch.setattr(subspaces, "STRIP", strip)
    accumulator = MomentAccumulator()
    accumulator.add("w", rows)
    assert (accumulator.sums["w"][0, D - 1, 0] == 0) == (strip < D)  # what symmetry gives was not computed
    found = accumulator.moments(samples=1, unprojectable={}).second["w"]
    torch.testing.assert_close(found, rows.transpose(1, 2) @ rows / rows.shape[1])
    assert torch.equal(found, found.transpose(1, 2))


# ---- Fewer rows than dimensions


def few(*counts, blocks=2):
    """Moments of one weight whose rows came in several portions."""
    accumulator = MomentAccumulator()
    for count in counts:
        accumulator.add("w", randn(blocks, count, D))
    return accumulator.moments(samples=1, unprojectable={})


def test_rows_are_kept_as_long_as_they_are_fewer_than_the_dimensions():
    moments = few(2, D - 3)
    factor = moments.factors["w"]
    assert factor.shape == (2, D - 1, D)
    torch.testing.assert_close(factor.transpose(1, 2) @ factor, moments.second["w"])
    assert moments.trace("w").tolist() == pytest.approx(moments.second["w"].diagonal(dim1=1, dim2=2).sum(1).tolist())
    assert moments.dimension("w") == D
    assert not few(2, D - 2).factors
    assert not few(D + 3).factors
    assert moments.bytes() == 2 * (D - 1) * D * 8  # the matrix is formed when it is asked for, and not kept
    assert few(D).bytes() == 2 * D * D * 8


@pytest.mark.parametrize("energy", [0.5, 0.9, 1.0])
def test_bases_of_few_rows_are_those_of_the_whole_matrix_without_decomposing_it(monkeypatch, energy):
    moments, sizes, eigh = few(4), [], torch.linalg.eigh
    whole = by_energy(replace(moments, factors={}), energy=energy)
    monkeypatch.setattr(torch.linalg, "eigh", lambda matrix: sizes.append(len(matrix)) or eigh(matrix))
    subspace = by_energy(moments, energy=energy)
    assert sizes == [4, 4]
    assert subspace.ranks == whole.ranks
    for basis, other, rank in zip(subspace.bases["w"], whole.bases["w"], subspace.ranks["w"], strict=True):
        basis, other = basis[:, :rank], other[:, :rank]
        torch.testing.assert_close(basis.T @ basis, torch.eye(rank, dtype=torch.float64))
        torch.testing.assert_close(basis @ basis.T, other @ other.T)


def test_bases_by_rank_of_few_rows_may_ask_for_more_directions_than_there_are_rows():
    moments = few(3)
    for ranks in ((2, 3), (5, 3)):
        subspace, whole = (by_rank(one, ranks={"w": ranks}) for one in (moments, replace(moments, factors={})))
        assert subspace.ranks["w"] == ranks
        for basis, other in zip(subspace.bases["w"], whole.bases["w"], strict=True):
            projected, expected = (moments.second["w"] @ part @ part.T for part in (basis, other))
            torch.testing.assert_close(projected, expected)


def test_means_keep_few_rows_and_drop_many():
    parts = [few(2), few(3)]
    for mean in (pooled(parts), averaged(parts)):
        factor = mean.factors["w"]
        assert factor.shape == (2, 5, D)
        torch.testing.assert_close(factor.transpose(1, 2) @ factor, mean.second["w"])
    assert not pooled([*parts, few(D - 5)]).factors
    assert not pooled([few(2), few(D)]).factors


def test_rows_that_the_model_writes_over_are_kept_as_they_were():
    layer, images = nn.Linear(D, D, bias=False).double(), randn(2, D)
    given = images.clone()

    class Writing(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            y = self.layer(x)
            x.zero_()
            return y

    factor = second_moments(Writing(), given).factors["layer.weight"]
    torch.testing.assert_close(factor[0] * 2**0.5, images)
    assert not given.any()


def test_a_projector_like_the_weights_projects_the_same_in_their_precision():
    project, gradient = hard_projector(by_rank(moments_of(spread()), ranks={"w": (3,)})), torch.randn(D_OUT, D)
    assert (project("w", gradient).double() @ project.factors["w"][1][0]).abs().max() < 1e-6
    alike = project.like({"w": gradient})
    assert alike.factors["w"][1].dtype == torch.float32
    assert torch.equal(alike("w", gradient), project("w", gradient))
    assert alike.like({"w": gradient}).factors["w"][1] is alike.factors["w"][1]


def test_a_weight_that_cannot_be_projected_has_no_moments():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(D, D_OUT)

        def forward(self, x):
            return self.layer(x) + self.layer.weight.sum()

    moments = second_moments(Odd().double(), randn(3, D))
    assert moments.second == {}
    assert list(moments.unprojectable) == ["layer.weight"]


def test_pooled_moments_count_every_class_once_however_large_its_activations_are():
    first, second = spread(), spread()
    expected = (first / first.trace() + second / second.trace()) / 2
    torch.testing.assert_close(pooled([moments_of(first), moments_of(1000 * second)]).second["w"][0], expected)
    torch.testing.assert_close(
        averaged([moments_of(first), moments_of(3 * second)]).second["w"][0], (first + 3 * second) / 2
    )


def several(count=5):
    return [moments_of(spread(), spread(decay=0.7)) for _ in range(count)]


def test_classes_within_the_budget_are_kept_as_they_came(monkeypatch):
    parts = several()
    monkeypatch.setattr(subspaces, "KEPT_BYTES", sum(part.bytes() for part in parts))
    copies = [part.second["w"].clone() for part in parts]
    found = accumulate(iter(parts), classes=len(parts))
    assert list(found) == parts
    assert found[2] is parts[2]
    assert all(torch.equal(part.second["w"], copy) for part, copy in zip(parts, copies, strict=True))
    config = SubspaceConfig(combine="merge", energy=0.9, merge_energy=0.9)
    assert combine(found, config=config).ranks == combine(parts, config=config).ranks


def test_classes_beyond_the_budget_leave_their_means_and_say_so(monkeypatch):
    parts = several()
    monkeypatch.setattr(subspaces, "KEPT_BYTES", sum(part.bytes() for part in parts) - 1)
    found = accumulate(iter(parts), classes=len(parts))
    assert found.per_class is None
    pool, merge = SubspaceConfig(combine="pool", energy=0.8), SubspaceConfig(combine="merge", energy=0.8)
    assert combine(found, config=pool).ranks == combine(parts, config=pool).ranks
    assert projector(found, config=SubspaceConfig(kind="soft")).factors["w"][0] == "times"
    for needs_classes in (list, lambda m: m[0], lambda m: combine(m, config=merge)):
        with pytest.raises(ValueError, match="of 5 single classes were not kept, they take .* GB: combine='pool'"):
            needs_classes(found)


@pytest.mark.parametrize("budget", [0, 10**9])
def test_class_by_class_gives_the_means_of_all_classes_at_once(monkeypatch, budget):
    monkeypatch.setattr(subspaces, "KEPT_BYTES", budget)
    parts = several()
    found = accumulate(iter(parts), classes=len(parts))
    assert len(found) == 5
    for mean, slow in ((pooled(found), pooled(parts)), (averaged(found), averaged(parts))):
        assert torch.equal(mean.second["w"], slow.second["w"])
        assert mean.rows_per_sample == slow.rows_per_sample
    mean = torch.stack([part.second["w"] for part in parts]).mean(0)
    torch.testing.assert_close(averaged(found).second["w"], mean, rtol=1e-15, atol=0)
    assert not torch.equal(pooled(found).second["w"], averaged(found).second["w"])


@pytest.mark.parametrize("budget", [0, 10**9])
def test_classes_cut_as_they_pass_merge_as_if_all_had_been_kept(monkeypatch, budget):
    parts = several()
    monkeypatch.setattr(subspaces, "KEPT_BYTES", budget)
    found = accumulate(iter(parts), classes=len(parts), merge_at=0.9)
    ours, theirs = (merged(m, energy=0.9, merge_energy=0.95) for m in (found, parts))
    assert ours.ranks == theirs.ranks
    assert torch.equal(ours.bases["w"], theirs.bases["w"])
    other = SubspaceConfig(combine="merge", energy=0.5)  # an energy that nobody cut at needs the classes themselves
    if budget:
        assert combine(found, config=other).ranks == combine(parts, config=other).ranks
        assert combine(found, config=other).ranks != ours.ranks
    else:
        with pytest.raises(ValueError, match="combine='merge' must be asked for"):
            combine(found, config=other)


@pytest.mark.parametrize("merge_at", [None, 0.9])
@pytest.mark.parametrize(("budget", "held"), [(0, [0] * 5), (10**9, [1, 2, 3, 4, 5])])
def test_a_class_is_let_go_before_the_next_one_is_made_unless_all_fit(monkeypatch, budget, held, merge_at):
    monkeypatch.setattr(subspaces, "KEPT_BYTES", budget)
    made, alive = [], []

    def stream():
        for _ in range(5):
            yield fresh()
            alive.append(sum(part() is not None for part in made))

    def fresh():
        part = moments_of(spread())
        made.append(weakref.ref(part.second["w"]))
        return part

    found = accumulate(stream(), classes=5, merge_at=merge_at)
    assert alive == held
    assert (found.per_class is not None) == (budget > 0)


@pytest.mark.parametrize(
    "function",
    [pooled, averaged, lambda m: accumulate(m, classes=0), lambda m: merged(m, energy=0.9, merge_energy=0.9)],
)
def test_nothing_to_combine_is_an_error(function):
    with pytest.raises(ValueError, match="no moments to combine: pass at least one retained class"):
        function([])


# ---- Bases


@pytest.mark.parametrize(("energy", "rank"), [(0.5, 1), (0.79, 1), (0.8, 1), (0.81, 2), (0.95, 2), (0.96, 3), (1.0, 3)])
def test_energy_rank_is_the_smallest_rank_that_reaches_the_energy(energy, rank):
    assert energy_rank(torch.tensor([8.0, 1.5, 0.5, 0.0], dtype=torch.float64), energy=energy) == rank


@pytest.mark.parametrize("energy", [0.0, -0.5, 1.5])
def test_energy_rank_names_the_bad_value(energy):
    with pytest.raises(ValueError, match=rf"energy must lie in \(0, 1\], got {energy}"):
        energy_rank(torch.ones(4), energy=energy)
    with pytest.raises(ValueError, match="sums to zero"):
        energy_rank(torch.zeros(4), energy=0.9)


def test_eigenvectors_come_largest_first():
    second = spread()
    values, vectors = leading_eigenvectors(second)
    assert (values[:-1] >= values[1:]).all()
    torch.testing.assert_close(second @ vectors, vectors * values)


@pytest.mark.parametrize("energy", [0.5, 0.9, 0.99, 1.0])
def test_a_basis_by_energy_spans_what_the_reference_spans(energy):
    blocks = spread(), spread(decay=0.2)
    subspace = by_energy(moments_of(*blocks), energy=energy)
    for i, block in enumerate(blocks):
        expected = reference.energy_basis(block, energy=energy)
        basis, rank = subspace.bases["w"][i], subspace.ranks["w"][i]
        assert rank == expected.shape[1]
        torch.testing.assert_close(basis @ basis.T, expected @ expected.T)
        torch.testing.assert_close(basis[:, :rank].T @ basis[:, :rank], torch.eye(rank, dtype=torch.float64))
    assert subspace.free_dimension() == {"w": 2 * D - sum(subspace.ranks["w"])}


def test_a_block_that_only_zeros_enter_has_nothing_to_protect():
    subspace = by_energy(moments_of(spread(), torch.zeros(D, D, dtype=torch.float64)), energy=0.9)
    assert subspace.ranks["w"][0] > subspace.ranks["w"][1] == 0
    gradient = randn(2 * D_OUT, D)
    projected = hard_projector(subspace)("w", gradient)
    assert torch.equal(projected[D_OUT:], gradient[D_OUT:])
    assert not torch.allclose(projected[:D_OUT], gradient[:D_OUT])


def test_bases_by_rank_keep_the_ranks_asked_for_and_the_leading_directions():
    blocks = spread(), spread()
    subspace = by_rank(moments_of(*blocks), ranks={"w": (3, 5)})
    assert subspace.ranks == {"w": (3, 5)}
    for i, (block, rank) in enumerate(zip(blocks, (3, 5), strict=True)):
        expected = torch.linalg.eigh(block).eigenvectors[:, -rank:]
        torch.testing.assert_close(subspace.bases["w"][i] @ subspace.bases["w"][i].T, expected @ expected.T)


def test_random_directions_have_the_same_ranks_and_nothing_else_in_common():
    own = by_rank(moments_of(spread(), spread()), ranks={"w": (3, 5)})
    drawn, again, other = (random_like(own, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert drawn.ranks == own.ranks
    assert drawn.bases["w"].shape == own.bases["w"].shape
    torch.testing.assert_close(
        drawn.bases["w"][0].T @ drawn.bases["w"][0], torch.diag(torch.tensor([1.0, 1, 1, 0, 0]).double())
    )
    assert torch.equal(drawn.bases["w"], again.bases["w"])
    assert not torch.allclose(drawn.bases["w"], other.bases["w"])
    assert principal_angles(drawn.bases["w"][0, :, :3], own.bases["w"][0, :, :3]).max() > 0.1


def test_merged_bases_are_the_leading_directions_of_the_summed_projectors():
    parts = [spread(), spread(), spread(decay=0.1)]
    bases = [reference.energy_basis(part, energy=0.9) for part in parts]
    expected = reference.energy_basis(sum(basis @ basis.T for basis in bases), energy=0.95)
    found = merged([moments_of(part) for part in parts], energy=0.9, merge_energy=0.95)
    torch.testing.assert_close(found.bases["w"][0] @ found.bases["w"][0].T, expected @ expected.T)


def test_the_configuration_chooses_the_kind_of_projector():
    parts = [moments_of(spread()), moments_of(spread(decay=0.1))]
    options = SubspaceConfig(energy=0.8, merge_energy=0.9, damping=0.2)
    expected = {
        ("pool", "hard"): hard_projector(by_energy(pooled(parts), energy=0.8)),
        ("merge", "hard"): hard_projector(merged(parts, energy=0.8, merge_energy=0.9)),
        ("pool", "soft"): soft_projector(pooled(parts), damping=0.2),
    }
    found = []
    for (join, kind), wanted in expected.items():
        config = replace(options, combine=join, kind=kind)
        found.append(dense(projector(parts, config=config), "w", D))
        torch.testing.assert_close(found[-1], dense(wanted, "w", D))
        alone = projector(pooled(parts), config=config)  # moments that were pooled already cannot be merged
        torch.testing.assert_close(dense(alone, "w", D), dense(expected["pool", kind], "w", D))
    for one, other in itertools.combinations(found, 2):
        assert not torch.allclose(one, other, atol=0.01)


def test_a_merge_keeps_the_direction_that_one_class_of_many_owns():
    shared, own = torch.eye(D, dtype=torch.float64)[:2]
    many = [moments_of(torch.outer(shared, shared))] * 9 + [moments_of(torch.outer(own, own))]
    assert merged(many, energy=0.95, merge_energy=0.99).ranks == {"w": (2,)}
    assert merged(many, energy=0.95, merge_energy=0.9).ranks == {"w": (1,)}


# ---- Projectors


@pytest.mark.parametrize("ranks", [(1, 3), (3, 3), (2, 6), (6, 6), (0, 2), (7, 5), (7, 7)])
def test_the_hard_projector_is_the_dense_one_in_both_forms(ranks):
    subspace = by_rank(moments_of(spread(), spread()), ranks={"w": ranks})
    project = hard_projector(subspace)
    assert project.factors["w"][0] == ("remove" if max(ranks) <= D / 2 else "keep")
    expected = torch.stack([reference.complement_projector(basis) for basis in subspace.bases["w"]])
    found = dense(project, "w", D)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(found @ found, found)
    torch.testing.assert_close(found, found.transpose(1, 2))
    gradient = randn(2 * D_OUT, D)
    projected = project("w", gradient.view(2 * D_OUT, D, 1))
    assert projected.shape == (2 * D_OUT, D, 1)
    torch.testing.assert_close(as_blocks(projected, 2), as_blocks(gradient, 2) @ expected)
    with pytest.raises(KeyError, match="other"):
        project("other", gradient)
    crooked = dense(Projector({"w": ("remove", randn(2, D, 3))}), "w", D)  # the control: no orthonormal basis
    assert not torch.allclose(crooked @ crooked, crooked)


@pytest.mark.parametrize("damping", [0.01, 0.5])
def test_the_soft_projector_is_the_dense_inverse_and_minimizes_its_objective(damping):
    second = spread()
    level = damping * second.trace() / D
    found = dense(soft_projector(moments_of(second), damping=damping), "w", D)[0]
    torch.testing.assert_close(found, level * torch.linalg.inv(second + level * torch.eye(D, dtype=torch.float64)))
    torch.testing.assert_close(found, found.T)
    shares = torch.linalg.eigvalsh(found)
    assert 0 < shares.min() < shares.max() < 1  # every direction shrinks, and none is taken away

    gradient = randn(D_OUT, D)
    best = gradient @ found

    def objective(step):
        return ((step - gradient) ** 2).sum() + (step @ second * step).sum() / level

    for _ in range(300):
        other = best + randn(D_OUT, D) * 10 ** (-4 * torch.rand(1).double())
        assert objective(other) > objective(best)


# ---- Angles


def test_principal_angles_are_those_of_the_reference():
    first, second = orthonormal(D, 4), orthonormal(D, 2)
    found = principal_angles(first, second)
    torch.testing.assert_close(found, reference.principal_angles(first, second))
    torch.testing.assert_close(principal_angles(second, first), found)


def test_a_known_angle_comes_back_and_a_tiny_one_is_not_lost_to_rounding():
    e = torch.eye(D, dtype=torch.float64)
    for angle in (1e-12, 0.3, 1.2, math.pi / 2):
        turned = torch.stack([e[0], math.cos(angle) * e[1] + math.sin(angle) * e[2]], 1)
        expected = torch.tensor([0.0, angle], dtype=torch.float64)
        torch.testing.assert_close(principal_angles(e[:, :2], turned), expected, rtol=1e-9, atol=1e-15)
    naive = torch.linalg.svdvals(e[:, :2].T @ torch.stack([e[0], e[1] + 1e-12 * e[2]], 1)).clamp(max=1).acos()
    assert naive.max() != pytest.approx(1e-12, rel=0.1, abs=0)
