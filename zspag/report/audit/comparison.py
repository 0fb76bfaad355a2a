"""How a number of a method compares with the retrained network's, beside what two retrained networks differ by.

Invariant: nothing here sees a model; only numbers of the same class and seed are compared.
"""

import itertools
from dataclasses import dataclass
from statistics import fmean

import pandas as pd

from zspag.report.tables import over_classes


@dataclass(frozen=True)
class Comparison:
    """How a number of a method compares with the retrained network's, class by class and seed by seed.

    Attributes:
        mean: Of the method, over classes.
        retrained: Of the retrained networks.
        difference: Mean of the former minus the latter, same class and seed.
        half: Half-width of the 95 % interval of ``difference`` over classes; 0 with a single class.
        distance: Mean absolute difference of the two.
        floor: Mean absolute difference of two retrained networks of different seeds; None with one seed.
        excess: ``distance`` minus ``floor``, or None.
        excess_half: Half-width of its 95 % interval over classes.
    """

    mean: float
    retrained: float
    difference: float
    half: float
    distance: float
    floor: float | None
    excess: float | None
    excess_half: float

    @property
    def within(self) -> bool | None:
        """Whether the method could be another retrained network; None where nobody knows what those differ by.

        It could not in two cases: it lies further away than they do (the whole interval of ``excess`` is above 0), or
        always to the same side (the interval of ``difference`` excludes 0, and it is larger than ``floor``).
        """
        if self.excess is None or self.floor is None:
            return None
        scattered = self.excess - self.excess_half > 0
        shifted = abs(self.difference) > max(self.half, self.floor)
        return not (scattered or shifted)


def compared(rows: pd.DataFrame, column: str, *, method: str) -> Comparison:
    """Compare a number of a method with that of the retrained networks.

    Args:
        rows: One row per method, class and seed; a case in which the method was ruined has none and is left out.
        column: The number.
        method: Name of the method.

    Raises:
        ValueError: If the retrained network has no number where the method has one.
    """
    wide = rows.pivot(index=["forget", "seed"], columns="method", values=column)[[method, "retrained"]]
    wide = wide.dropna(subset=[method])
    if wide["retrained"].isna().any():
        raise ValueError(f"{column} of {method} cannot be compared: the retrained network lacks some class and seed")
    gaps = (wide[method] - wide["retrained"]).rename("value").reset_index().assign(method="difference")
    distances = gaps.assign(method="distance", value=gaps["value"].abs())
    numbers = over_classes(pd.concat([gaps, distances]), "value")
    means = wide.groupby("forget").mean().mean()
    floor, excess, excess_half = None, None, 0.0
    if (wide.groupby("forget").size() > 1).all():
        pairs = (
            wide["retrained"]
            .groupby("forget")
            .agg(lambda values: fmean(abs(first - second) for first, second in itertools.combinations(values, 2)))
        )
        floor = float(pairs.mean())
        beyond = distances.groupby("forget")["value"].mean() - pairs
        over = over_classes(beyond.rename("value").reset_index().assign(method="excess"), "value")["excess"]
        excess, excess_half = over["mean"], over["half"]
    return Comparison(
        mean=float(means[method]),
        retrained=float(means["retrained"]),
        difference=numbers["difference"]["mean"],
        half=numbers["difference"]["half"],
        distance=numbers["distance"]["mean"],
        floor=floor,
        excess=excess,
        excess_half=excess_half,
    )
