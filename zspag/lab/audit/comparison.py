"""How a number of a method stands to the retrained network's, beside what two retrained networks differ by.

Invariant: nothing here sees a model; only numbers of the same class and seed are compared.
"""

import itertools
from dataclasses import dataclass

import pandas as pd

from zspag.report.tables import over_classes


@dataclass(frozen=True)
class Comparison:
    """How a number of a method stands to the retrained network's, class by class and seed by seed.

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

        It could not where it lies further away than they do, the whole interval of ``excess`` above 0, or always to
        the same side, the interval of ``difference`` without 0 and the difference larger than ``floor``.
        """
        if self.excess is None or self.floor is None:
            return None
        scattered = self.excess - self.excess_half > 0
        shifted = abs(self.difference) > max(self.half, self.floor)
        return not (scattered or shifted)


def compared(rows: pd.DataFrame, column: str, *, method: str) -> Comparison:
    """Compare a number of a method with that of the retrained networks.

    Args:
        rows: One row per method, class and seed; where the method has none, for it was ruined, nothing is.
        column: The number.
        method: Name of the method.

    Raises:
        ValueError: If the retrained network has no number where the method has one.
    """
    wide = rows.pivot(index=["forget", "seed"], columns="method", values=column)[[method, "retrained"]]
    wide = wide.dropna(subset=[method])
    if wide["retrained"].isna().any():
        raise ValueError(f"{column} of {method} cannot be compared: the retrained network lacks some class and seed")
    gaps = wide[method] - wide["retrained"]
    floors = {forget: _between_seeds(own.tolist()) for forget, own in wide["retrained"].groupby("forget")}
    distance, difference = gaps.abs().groupby("forget").mean(), _mean_over_classes(gaps.groupby("forget").mean())
    floor = None if None in floors.values() else pd.Series(floors, dtype=float)
    excess = None if floor is None else _mean_over_classes(distance - floor)
    return Comparison(
        mean=float(wide[method].groupby("forget").mean().mean()),
        retrained=float(wide["retrained"].groupby("forget").mean().mean()),
        difference=difference["mean"],
        half=difference["half"],
        distance=float(distance.mean()),
        floor=None if floor is None else float(floor.mean()),
        excess=None if excess is None else excess["mean"],
        excess_half=0.0 if excess is None else excess["half"],
    )


def _between_seeds(values: list[float]) -> float | None:
    pairs = [abs(first - second) for first, second in itertools.combinations(values, 2)]
    return sum(pairs) / len(pairs) if pairs else None


def _mean_over_classes(per_class: "pd.Series[float]") -> dict[str, float]:
    frame = per_class.rename("value").rename_axis("forget").reset_index().assign(method="own")
    return over_classes(frame, "value")["own"]
