"""The kinds of requests: classes together, classes in a row, a part of a class, samples across classes.

Invariant: what is asked for depends on the profile and the seed alone, and every finished request is a file.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from zspag.lab.experiment import Case, Spread, answered, data_of, kept_rows, shown_case, trained
from zspag.lab.scenarios.outcome import Request, compared, drawn, judged, of_classes, unlearned
from zspag.profiles import Profile
from zspag.runtime import generator_for, pool_map

COUNTS = (2, 3, 5)  # classes at once; a trial leaves the largest out
SHARES = (0.01, 0.05)  # of all training samples, drawn across the classes

Rows = list[dict[str, Any]]


def order_of(profile: Profile, seed: int) -> tuple[int, ...]:
    """Return the classes that are forgotten together or in a row, as many as the largest count, by the seed."""
    order = torch.randperm(data_of(profile).num_classes, generator=generator_for(seed, "order"))
    return tuple(order.tolist()[: max(_counts(profile))])


def _counts(profile: Profile) -> Sequence[int]:
    return COUNTS[:-1] if profile.trial else COUNTS


def at_once(profile: Profile, seed: int, *, counts: Sequence[int] | None = None) -> Rows:
    """Forget the first 2, 3 and 5 classes of ``order_of`` together, or as many as ``counts`` says.

    Returns:
        Rows of the original, the retrained model and ZS-PAG per request: see ``compared``.
    """
    order = order_of(profile, seed)
    return [row for count in counts or _counts(profile) for row in together(profile, seed, order[:count])]


def together(profile: Profile, seed: int, classes: Sequence[int]) -> Rows:
    """Forget these classes together; rows as in ``at_once``."""
    request = of_classes(profile, seed, classes)
    name = "together-" + "-".join(map(str, request.classes))
    return _kept(request, name, partial(compared, request, f"{len(classes)} classes"))


def in_a_row(profile: Profile, seed: int, order: Sequence[int], *, disclosed: bool = True) -> Rows:
    """Forget one class after the other, each in the model that the request before it left.

    Args:
        profile: Whose data and whose original.
        seed: Seed of the original.
        order: The classes.
        disclosed: Whether the method knows which classes are forgotten already.

    Returns:
        One row per request, until one is refused: seed, told (``disclosed``), step, label (the class forgotten last),
        the columns of ``judged`` on all classes so far against the original, and those of ``unlearned``.
    """

    def compute() -> Rows:
        model = trained(profile, seed)
        rows: Rows = []
        for step, label in enumerate(order, 1):
            place = {"seed": seed, "told": disclosed, "step": step, "label": label}
            already = tuple(order[: step - 1]) if disclosed else ()
            changed, facts = unlearned(of_classes(profile, seed, (label,)), model, already_forgotten=already)
            if changed is None:
                return [*rows, place | facts]
            model = changed
            rows.append(place | judged(of_classes(profile, seed, order[:step]), model) | facts)
        return rows

    name = f"row-{'told' if disclosed else 'untold'}-" + "-".join(map(str, order))
    return _kept(of_classes(profile, seed, order[:1]), name, compute)


def part_of_class(case: Case, *, share: float = 0.5) -> Rows:
    """Ask for a random part of one class to be forgotten; rows as in ``at_once``."""
    inside = (data_of(case.profile).train.labels == case.forget).nonzero().flatten()
    request = drawn(case, share, of=inside)
    return _kept(request, f"part-{share:g}", partial(compared, request, f"{100 * share:g} % of a class"))


def across_classes(profile: Profile, seed: int, *, shares: Sequence[float] = SHARES) -> Rows:
    """Ask for a random share of all training samples to be forgotten; rows as in ``at_once``."""
    rows, every = [], torch.arange(len(data_of(profile).train))
    for share in shares:
        request = drawn(Case(profile, seed, 0), share, of=every)
        rows += _kept(request, f"across-{share:g}", partial(compared, request, f"{100 * share:g} % of all samples"))
    return rows


def table(profile: Profile, seeds: Sequence[int], *, spread: Spread = pool_map) -> Rows:
    """Return the rows of every kind of request, from files where they are finished.

    Raises:
        RunsFailed: If a job failed; what the others finished is kept.
    """
    do = partial(answered, profile, spread, title="requests", name=lambda job: f"seed {job[1]}, {job[2] or 'original'}")
    do(_original, [(profile, seed, "") for seed in seeds])  # first, or every job would train it
    jobs = [(profile, seed, kind) for seed in seeds for kind in KINDS]
    answers = do(_kind, jobs)
    return [row for job in jobs for row in answers[job]]


KINDS: dict[str, Callable[[Profile, int], Rows]] = {
    "at once": at_once,
    "in a row": lambda profile, seed: in_a_row(profile, seed, order_of(profile, seed)),
    "in a row, untold": lambda profile, seed: in_a_row(profile, seed, order_of(profile, seed), disclosed=False),
    "part of a class": lambda profile, seed: part_of_class(Case(profile, seed, shown_case(profile).forget)),
    "across classes": across_classes,
}


def _original(job: tuple[Profile, int, str]) -> None:
    trained(*job[:2])


def _kind(job: tuple[Profile, int, str]) -> Rows:
    profile, seed, kind = job
    return [{"kind": kind} | row for row in KINDS[kind](profile, seed)]


def _kept(request: Request, name: str, compute: Callable[[], Rows]) -> Rows:
    case = Case(request.profile, request.seed, request.classes[0])
    return kept_rows(case, f"requests-{name}", compute, code=(__name__,))
