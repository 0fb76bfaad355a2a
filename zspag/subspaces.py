"""Activation subspaces: which input directions of each layer the proxies use, and updates that stay out of them.

For rows ``a`` entering a weight ``W`` (d_out x d), an update ``dW`` leaves every output on ``span(U)`` unchanged
exactly when ``dW U = 0``. ``C = E[a a^T]`` is the second moment of the rows; ``U`` (d x k) holds its leading
eigenvectors.

Layout: everything is keyed by parameter name and carries a leading axis of blocks (groups of a grouped convolution,
query/key/value of packed attention; otherwise one block), as in ``zspag.activations.as_blocks``.

Invariant: a projector is symmetric, and the hard one idempotent, in float64 as in float32.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from zspag.activations import Outputs, as_blocks, watching
from zspag.config import SubspaceConfig
from zspag.runtime import chunks

# A product takes PIECE numbers at once (8 MB of float32: more leave the cache), and at most ROWS rows, so that rounding
# in float32 stays small. It makes STRIP rows of a moment at once, which stay in the cache, on and above the diagonal.
PIECE = 2**21
ROWS = 2**12
STRIP = 256
NEGLIGIBLE = 1e-9  # of a direction, the share that a soft projector need not take away
# Up to this size moments are kept class by class; beyond it only their means are (99 classes of a VGG-16 would take
# 100 GB). It changes no result.
KEPT_BYTES = 2 * 10**9


class _Matrices(Mapping[str, Tensor]):
    """E[a a^T] per weight, in the order of the weights' first use; F^T F is formed when it is asked for."""

    def __init__(self, names: Iterable[str], dense: Mapping[str, Tensor], factors: Mapping[str, Tensor]) -> None:
        self.names, self.dense, self.factors = tuple(names), dense, factors

    def __getitem__(self, name: str) -> Tensor:
        if name in self.dense:
            return self.dense[name]
        rows = self.factors[name]
        return rows.transpose(1, 2) @ rows

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True)
class Moments:
    """Second moments of the rows that enter each weight.

    Attributes:
        second: Per weight, E[a a^T] over all rows, float64, shape (blocks, d, d).
        rows_per_sample: Per weight, rows (patches, tokens, uses) that one sample contributes.
        unprojectable: Weights without usable rows, by name, with the reason; they must stay frozen.
        factors: Weights that fewer rows than dimensions entered: F with F^T F = E[a a^T], float64, shape
            (blocks, R, d), R < d. For a linear layer of 3,136 inputs F takes a tenth of the memory, and bases are cut
            from F F^T (R x R).
    """

    second: Mapping[str, Tensor]
    rows_per_sample: dict[str, float]
    unprojectable: dict[str, str]
    factors: dict[str, Tensor] = field(default_factory=dict)

    def held(self, name: str) -> Tensor:
        """Return F of a weight if there is one, else E[a a^T]."""
        return self.factors[name] if name in self.factors else self.second[name]

    def bytes(self) -> int:
        """Return the memory that the matrices take."""
        return sum(held.numel() * held.element_size() for held in map(self.held, self.second))

    def trace(self, name: str) -> Tensor:
        """Return tr E[a a^T] of each block of a weight, shape (blocks,)."""
        if name in self.factors:
            return self.factors[name].square().sum((1, 2))
        return self.second[name].diagonal(dim1=1, dim2=2).sum(1)

    def dimension(self, name: str) -> int:
        """Return the dimension d of the rows that enter a weight."""
        return self.held(name).shape[-1]


class _Sums:
    """Sums of a a^T per weight; rows are kept as they are while they are fewer than their dimensions."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.few: dict[str, list[Tensor]] = {}

    def add_rows(self, name: str, rows: Tensor) -> None:
        """Keep a copy of rows (blocks, R, d) in float64, or multiply all that are too many to be kept."""
        kept = self.few.pop(name, [])
        if name not in self.sums and sum(part.shape[1] for part in (*kept, rows)) < rows.shape[2]:
            self.few[name] = [*kept, rows.to(torch.float64, copy=True)]  # the model may write over its own rows
            return
        for part in (*kept, rows):
            self.multiply(name, part)

    def multiply(self, name: str, rows: Tensor) -> None:
        """Add a a^T over rows (blocks, R, d)."""
        self.add_matrix(name, rows.transpose(1, 2) @ rows)

    def add_matrix(self, name: str, matrix: Tensor) -> None:
        """Add a matrix (blocks, d, d), which belongs to the sum from then on."""
        if name in self.sums:
            self.sums[name] += matrix
        else:
            self.sums[name] = matrix

    def means(self, counts: Mapping[str, int]) -> tuple[_Matrices, dict[str, Tensor]]:
        """Return ``second`` and ``factors`` of the weights in ``counts``; the sums become the means, without a copy."""
        dense = {name: self.sums[name].div_(count) for name, count in counts.items() if name in self.sums}
        factors = {name: torch.cat(self.few[name], 1) / counts[name] ** 0.5 for name in counts if name in self.few}
        return _Matrices(counts, dense, factors), factors


class MomentAccumulator(_Sums):
    """Adds up a a^T over pieces of rows: products in the rows' precision, sums in float64.

    Memory does not depend on how many rows pass. R rows of width d cost R d^2 multiply-adds in one product; in strips
    of s rows on and above the diagonal they cost R d^2 (1/2 + s / 2d).

    Args:
        precision: The least that a product has.

    Note:
        CHOICE: products in float32, which take half the time of float64 on a CPU and up to 1/64 on a GPU. Their error
        is some 1e-7 of the largest entry, whatever the number of rows; ``make bench`` measures it.
    """

    def __init__(self, precision: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.precision = precision
        self.counts: dict[str, int] = {}

    def add(self, name: str, rows: Tensor, _outputs: Outputs | None = None) -> None:
        """Add rows of shape (blocks, R, d) entering the weight ``name``; outputs are not needed here."""
        self.counts[name] = self.counts.get(name, 0) + rows.shape[1]
        self.add_rows(name, rows)

    def multiply(self, name: str, rows: Tensor) -> None:
        """Add a a^T over rows (blocks, R, d), on and above the diagonal only."""
        blocks, _, d = rows.shape
        if name not in self.sums:
            self.sums[name] = torch.zeros(blocks, d, d, dtype=torch.float64, device=rows.device)
        rows = rows.to(torch.promote_types(rows.dtype, self.precision))
        with torch.autocast(rows.device.type, enabled=False):  # it would multiply in half precision
            for piece in rows.split(max(1, min(ROWS, PIECE // (blocks * d))), dim=1):
                for start in range(0, d, STRIP):
                    strip = piece[:, :, start : start + STRIP].transpose(1, 2)
                    self.sums[name][:, start : start + STRIP, start:] += strip @ piece[:, :, start:]

    def moments(self, *, samples: int, unprojectable: dict[str, str]) -> Moments:
        """Return the means over all rows so far and start anew; ``samples`` is the number of images that passed."""
        counts = {name: count for name, count in self.counts.items() if name not in unprojectable}
        second, factors = self.means(counts)
        for total in second.dense.values():
            for start in range(0, total.shape[-1], STRIP):  # what stands above the diagonal is written below it
                here, after = slice(start, start + STRIP), slice(start + STRIP, None)
                corner = total[:, here, here]
                corner.copy_(corner.triu() + corner.triu(1).transpose(1, 2))
                total[:, after, here] = total[:, here, after].transpose(1, 2)
        self.sums, self.few, self.counts = {}, {}, {}
        rows_per_sample = {name: count / samples for name, count in counts.items()}
        return Moments(second, rows_per_sample, dict(unprojectable), factors)


@torch.no_grad()
def second_moments(model: nn.Module, images: Tensor, *, precision: torch.dtype = torch.float32) -> Moments:
    """Return the second moments of what enters each weight when ``images`` (n, C, H, W) pass through ``model``.

    Args:
        model: Not changed.
        images: Shape (n, C, H, W).
        precision: The least that products have; sums always have float64.
    """
    accumulator = MomentAccumulator(precision)
    with watching(model, accumulator.add) as unprojectable:
        for (x,) in chunks(images):
            model(x)
    return accumulator.moments(samples=len(images), unprojectable=unprojectable)


@dataclass(frozen=True)
class ClassMoments:
    """Moments of several classes and their means; iterates over the classes.

    Attributes:
        pooled: Mean of the trace-normalized moments, from which subspaces are cut.
        averaged: Mean of the moments as they are, whose size per layer the curvature needs.
        classes: Number of classes.
        per_class: The moments of each class, or None where they were too large to keep.
        votes: An energy and the mean over classes of U U^T with bases cut at it, where they were asked for.
    """

    pooled: Moments
    averaged: Moments
    classes: int
    per_class: tuple[Moments, ...] | None
    votes: tuple[float, Moments] | None = None

    def __len__(self) -> int:
        return self.classes

    def __iter__(self) -> Iterator[Moments]:
        return iter(self._kept())

    def __getitem__(self, index: int) -> Moments:
        return self._kept()[index]

    def _kept(self) -> tuple[Moments, ...]:
        if self.per_class is None:
            raise ValueError(
                f"the moments of {self.classes} single classes were not kept, they take"
                f" {self.classes * self.pooled.bytes() / 1e9:.3g} GB: combine='pool' needs their means only, and"
                " combine='merge' must be asked for, with its energy, before they are made"
            )
        return self.per_class


class RunningMean(_Sums):
    """Mean of moments; every part may be forgotten once it is added."""

    first: Moments | None = None
    count = 0

    def add(self, part: Moments, *, by_trace: bool = False, scale: float = 1.0) -> None:
        """Add moments times ``scale``, divided by their trace if asked."""
        self.first = self.first or replace(part, second=dict.fromkeys(part.second, torch.empty(0)), factors={})
        self.count += 1
        for name in self.first.second:
            trace = part.trace(name)
            weight = 1 / trace.clamp_min(torch.finfo(trace.dtype).tiny) if by_trace else torch.full_like(trace, scale)
            weight = weight[:, None, None]
            if name in part.factors:
                self.add_rows(name, part.factors[name] * weight.sqrt())
                continue
            for rows in self.few.pop(name, ()):
                self.multiply(name, rows)
            self.add_matrix(name, part.second[name] * weight)

    def mean(self) -> Moments:
        """Return the mean; to be called once.

        Raises:
            ValueError: If nothing was added.
        """
        if self.first is None:
            raise ValueError("no moments to combine: pass at least one retained class")
        second, factors = self.means(dict.fromkeys(self.first.second, self.count))
        return replace(self.first, second=second, factors=factors)


def accumulate(parts: Iterable[Moments], *, classes: int, merge_at: float | None = None) -> ClassMoments:
    """Take moments class by class, so that no more than one class is held beside the means.

    Args:
        parts: Moments of one class each, best made one at a time by a generator.
        classes: How many there will be; each is kept if all of them fit ``KEPT_BYTES`` together.
        merge_at: Cut every class at this energy as it passes, for ``merged``; None cuts none.

    Raises:
        ValueError: If there are no classes.
    """
    pool, average, ballot = RunningMean(), RunningMean(), RunningMean()
    kept: list[Moments] = []
    for part in parts:
        pool.add(part, by_trace=True)
        average.add(part)
        if merge_at is not None:
            ballot.add(_vote(part, energy=merge_at))
        if classes * part.bytes() <= KEPT_BYTES:
            kept.append(part)
        del part  # or it would stay until the next one is there
    per_class = tuple(kept) if len(kept) == classes else None
    votes = None if merge_at is None else (merge_at, ballot.mean())
    return ClassMoments(pool.mean(), average.mean(), classes, per_class, votes)


def weighted_mean(parts: Sequence[Moments], weights: Sequence[float]) -> Moments:
    """Return the mean of moments by weight: weighted by samples, these are the moments of all samples together."""
    running = RunningMean()
    for part, weight in zip(parts, weights, strict=True):
        running.add(part, scale=weight * len(parts) / sum(weights))
    return running.mean()


def pooled(moments: Iterable[Moments]) -> Moments:
    """Return the mean of the trace-normalized moments: a class counts once however large its activations are."""
    return moments.pooled if isinstance(moments, ClassMoments) else _mean(moments, by_trace=True)


def averaged(moments: Iterable[Moments]) -> Moments:
    """Return the plain mean of the moments, whose size per layer the curvature needs."""
    return moments.averaged if isinstance(moments, ClassMoments) else _mean(moments)


def _mean(moments: Iterable[Moments], *, by_trace: bool = False) -> Moments:
    running = RunningMean()
    for part in moments:
        running.add(part, by_trace=by_trace)
    return running.mean()


@dataclass(frozen=True)
class Subspace:
    """An orthonormal basis of protected input directions per weight and block.

    Attributes:
        bases: Per weight, shape (blocks, d, k_max), float64; blocks of lower rank end in zero columns.
        ranks: Per weight, the rank of each block.
    """

    bases: dict[str, Tensor]
    ranks: dict[str, tuple[int, ...]]

    def free_dimension(self) -> dict[str, int]:
        """Return d - k per weight, summed over its blocks: the directions an update may still use."""
        return {name: basis.shape[0] * basis.shape[1] - sum(self.ranks[name]) for name, basis in self.bases.items()}


def energy_rank(spectrum: Tensor, *, energy: float) -> int:
    """Return the smallest rank whose leading eigenvalues hold ``energy`` of the trace.

    Args:
        spectrum: Eigenvalues, largest first, shape (d,).
        energy: Share of the trace to keep, in (0, 1].

    Raises:
        ValueError: If energy lies outside (0, 1] or the spectrum sums to zero.

    Example:
        >>> energy_rank(torch.tensor([8.0, 2.0]), energy=0.9)
        2
    """
    if not 0 < energy <= 1:
        raise ValueError(f"energy must lie in (0, 1], got {energy}")
    total = spectrum.sum()
    if total <= 0:
        raise ValueError("the spectrum sums to zero: no activation reached this layer")
    kept = (spectrum.clamp_min(0) / total).cumsum(0)
    short = int((kept < energy - 1e-12).sum())  # 1e-12: energy 1 must not chase rounding through zero eigenvalues
    return min(short + 1, len(spectrum))


def leading_eigenvectors(symmetric: Tensor) -> tuple[Tensor, Tensor]:
    """Return eigenvalues (d,) largest first, and eigenvectors as columns (d, d), of a symmetric matrix."""
    values, vectors = torch.linalg.eigh(symmetric)
    return values.flip(-1), vectors.flip(-1)


def by_energy(moments: Moments, *, energy: float) -> Subspace:
    """Keep, per weight and block, the leading eigenvectors that hold ``energy`` of the trace.

    A block that only zeros enter (a dead channel of a depthwise convolution) has nothing to protect: its rank is 0.
    """

    def basis(name: str, block: int, trace: Tensor) -> Tensor:
        if not bool(trace > 0):
            return torch.zeros(moments.dimension(name), 0, dtype=torch.float64, device=trace.device)
        values, leading = _decomposed(moments, name, block)
        return leading(energy_rank(values, energy=energy))

    return _subspace(
        {
            name: [basis(name, block, trace) for block, trace in enumerate(moments.trace(name))]
            for name in moments.second
        }
    )


def _decomposed(moments: Moments, name: str, block: int, *, least: int = 0) -> tuple[Tensor, Callable[[int], Tensor]]:
    """Decompose a block by its rows if they are few, but at least ``least``, and else as it is (d x d).

    Returns:
        Eigenvalues, largest first (of few rows, those that are not 0), and a function from a rank to as many leading
        eigenvectors, which rounding leaves orthonormal.
    """
    factor = moments.factors.get(name)
    if factor is None or factor.shape[1] < least:
        values, vectors = leading_eigenvectors(moments.second[name][block])
        return values, lambda rank: vectors[:, :rank]
    rows = factor[block]
    values, left = leading_eigenvectors(rows @ rows.T)
    return values, lambda rank: torch.linalg.qr(rows.T @ left[:, :rank]).Q


def by_rank(moments: Moments, *, ranks: Mapping[str, Sequence[int]]) -> Subspace:
    """Keep the given number of leading eigenvectors per weight and block: what controls of equal rank need.

    Of more directions than there are rows, the rest comes from the null space.
    """
    return _subspace(
        {
            name: [_decomposed(moments, name, block, least=rank)[1](rank) for block, rank in enumerate(ranks[name])]
            for name in moments.second
        }
    )


def random_like(subspace: Subspace, *, generator: torch.Generator) -> Subspace:
    """Return uniformly random directions with the ranks of ``subspace``, on the CPU generator's stream."""
    drawn = {}
    for name, basis in subspace.bases.items():
        blocks, d, _ = basis.shape
        noise = torch.randn(blocks, d, d, generator=generator, dtype=torch.float64).to(basis.device)
        drawn[name] = [torch.linalg.qr(noise[i]).Q[:, :rank] for i, rank in enumerate(subspace.ranks[name])]
    return _subspace(drawn)


def _subspace(bases: Mapping[str, list[Tensor]]) -> Subspace:
    ranks = {name: tuple(basis.shape[1] for basis in blocks) for name, blocks in bases.items()}
    return Subspace({name: _stack(blocks) for name, blocks in bases.items()}, ranks)


def _stack(columns: list[Tensor]) -> Tensor:
    """Stack bases (d, k_i) as (blocks, d, k_max), zero columns behind the shorter ones (they project nothing)."""
    widest = max(part.shape[1] for part in columns)
    return torch.stack([nn.functional.pad(part, (0, widest - part.shape[1])) for part in columns])


def merged(moments: Iterable[Moments], *, energy: float, merge_energy: float) -> Subspace:
    """Cut each class at ``energy``, then keep the leading eigenvectors of the mean of U U^T.

    Note:
        CHOICE: ``merge_energy`` is a share of the trace of the sum. An absolute cut on its eigenvalues would drop a
        direction that one class of many owns.
    """
    if isinstance(moments, ClassMoments) and moments.votes is not None and moments.votes[0] == energy:
        return by_energy(moments.votes[1], energy=merge_energy)
    return by_energy(_mean(_vote(part, energy=energy) for part in moments), energy=merge_energy)


def _vote(part: Moments, *, energy: float) -> Moments:
    """Return U U^T of one class in the place of its moments."""
    bases = by_energy(part, energy=energy).bases
    return replace(
        part,
        second={name: basis @ basis.transpose(1, 2) for name, basis in bases.items()},
        factors={name: basis.transpose(1, 2) for name, basis in bases.items() if 0 < basis.shape[2] < basis.shape[1]},
    )


def combine(moments: Iterable[Moments] | Moments, *, config: SubspaceConfig) -> Subspace:
    """Return the subspace of all retained classes by ``config.combine``: "merge" or "pool".

    Moments that were pooled already are cut as they are, for their single classes are gone.
    """
    if isinstance(moments, Moments):
        return by_energy(moments, energy=config.energy)
    if config.combine == "merge":
        return merged(moments, energy=config.energy, merge_energy=config.merge_energy)
    return by_energy(pooled(moments), energy=config.energy)


@dataclass(frozen=True)
class Projector:
    """Takes the protected part out of weight gradients: G -> G P with one symmetric P per weight and block.

    Attributes:
        factors: Per weight a pair (form, matrix): "remove" U gives G - (G U) U^T, "keep" V gives (G V) V^T with V the
            complement of U (the cheaper of the two is stored), "times" S gives G S. Matrices (blocks, d, .).
        idempotent: Whether it is a hard one, P P = P.
    """

    factors: dict[str, tuple[str, Tensor]]
    idempotent: bool = False

    def __call__(self, name: str, gradient: Tensor) -> Tensor:
        """Project the gradient of the weight ``name``; same shape as ``gradient``.

        Raises:
            KeyError: If the weight has no rows of its own; such a weight must stay frozen.
        """
        form, matrix = self.factors[name]
        matrix = matrix.to(gradient.dtype)  # no copy where ``like`` has made it already
        stacked = as_blocks(gradient, len(matrix))
        if form == "times":
            return (stacked @ matrix).reshape(gradient.shape)
        inside = (stacked @ matrix) @ matrix.transpose(1, 2)
        return (inside if form == "keep" else stacked - inside).reshape(gradient.shape)

    def energy(self, name: str, rows: Tensor) -> Tensor:
        """Return sum ||P a||^2 over rows (blocks, n, d) that enter the weight ``name``, in float64."""
        form, matrix = self.factors[name]
        inside = rows @ matrix
        if form != "remove":
            return energy_of(inside)
        if self.idempotent:
            return energy_of(rows) - energy_of(inside)
        return energy_of(rows - inside @ matrix.transpose(1, 2))

    def like(self, weights: Mapping[str, Tensor]) -> "Projector":
        """Return the projector with its matrices in the precision and on the device of the weights.

        A loop makes it once. A step that took them from float64 every time would read more numbers than it multiplies.
        """
        alike = {name: (form, matrix.to(weights[name])) for name, (form, matrix) in self.factors.items()}
        return Projector(alike, self.idempotent)


def energy_of(rows: Tensor) -> Tensor:
    """Return the sum of all squares, row by row in the rows' precision and over rows in float64."""
    return rows.square().sum(-1).sum(dtype=torch.float64)


def hard_projector(subspace: Subspace) -> Projector:
    """Return P = I - U U^T per block, kept as U, or as its complement where that is smaller (k > d / 2)."""
    factors = {}
    for name, basis in subspace.bases.items():
        d, ranks = basis.shape[1], subspace.ranks[name]
        if max(ranks) <= d / 2:
            factors[name] = ("remove", basis)
        else:
            whole = [torch.linalg.qr(basis[i, :, :k], mode="complete").Q for i, k in enumerate(ranks)]
            factors[name] = ("keep", _stack([vectors[:, k:] for vectors, k in zip(whole, ranks, strict=True)]))
    return Projector(factors, idempotent=True)


def soft_projector(moments: Moments, *, damping: float) -> Projector:
    """Return P = lambda (C + lambda I)^-1 with lambda = damping * mean eigenvalue of C.

    It is the closed form of argmin_D ||D - G||_F^2 + (1 / lambda) E||D a||^2, and the inverse of the damped input
    factor of K-FAC. A damping near 0 protects every direction the proxies use at all. Written as
    I - U diag(s / (s + lambda)) U^T, with C = U diag(s) U^T, it costs what the rank of C costs; shares below
    ``NEGLIGIBLE`` are left out.
    """
    factors = {}
    for name in moments.second:
        d, traces = moments.dimension(name), moments.trace(name)
        weighted = []
        for block, trace in enumerate(traces):
            values, leading = _decomposed(moments, name, block)
            level = damping * trace.clamp_min(1e-300) / d
            shares = values.clamp_min(0) / (values.clamp_min(0) + level)
            rank = max(1, int((shares > NEGLIGIBLE).sum()))
            weighted.append(leading(rank) * shares[:rank].sqrt())
        stacked = _stack(weighted)
        if stacked.shape[2] <= d / 2:
            factors[name] = ("remove", stacked)
        else:
            identity = torch.eye(d, dtype=stacked.dtype, device=stacked.device)
            factors[name] = ("times", identity - stacked @ stacked.transpose(1, 2))
    return Projector(factors)


def projector(moments: Iterable[Moments] | Moments, *, config: SubspaceConfig) -> Projector:
    """Return the projector of all retained classes, or of pooled moments, by ``config.kind``: "hard" or "soft"."""
    if config.kind == "soft":
        whole = moments if isinstance(moments, Moments) else pooled(moments)
        return soft_projector(whole, damping=config.damping)
    return hard_projector(combine(moments, config=config))


def principal_angles(first: Tensor, second: Tensor) -> Tensor:
    """Return the principal angles between the column spans of two orthonormal bases.

    Args:
        first: Shape (d, k).
        second: Shape (d, l).

    Returns:
        min(k, l) angles in radians, smallest first.

    Note:
        The cosine alone loses small angles to rounding (a cosine of 1 - 1e-16 is an angle of 1e-8), so small angles
        are taken from the sine.
    """
    if first.shape[1] < second.shape[1]:
        first, second = second, first
    cosines = torch.linalg.svdvals(first.T @ second).clamp(max=1)
    sines = torch.linalg.svdvals(second - first @ (first.T @ second)).flip(0).clamp(max=1)
    return torch.where(cosines**2 > 0.5, sines.asin(), cosines.acos())
