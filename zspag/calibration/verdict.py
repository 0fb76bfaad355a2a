"""Whether a run reached its goal, what it did to the retained classes, and what nobody could look at.

Invariant: success is said only of what was checked, class by class; a run that would ruin the model is not handed out.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from zspag.calibration.cross_fitting import Made
from zspag.calibration.trials import answers_changed, at_common_scale, held_out_damage, recognized_of_each
from zspag.config import UnlearnConfig
from zspag.preflight.checks import unsound
from zspag.proxy_statistics import HALVABLE, ProxyStatistics
from zspag.runtime import channels_last, logits_of

TRUSTED = 0.1  # accuracy on held-out forget samples of a class up to which "reached" is said
# CHOICE: measured on 90 runs on digits, of 12 nets: last layers of 4 to 128 inputs, logits of all scales, robust nets,
# nets trained far too long. Where more than 10 points were lost, more than .4 of the barely hit proxies had another
# answer; where less than 4 were, at most .32. Where answers moved by less than .08 nats at a common scale of the
# logits, at most 1.1 points were lost. No drift means ruin: answers can move by 1.1 nats and stay the same.
RUINOUS = 0.4  # share of proxies with another answer from which the model is left as it was
COSTLY = 0.08  # nats at a common scale from which the caller is warned


@dataclass(frozen=True)
class Damage:
    """What a run did to answers on barely hit proxies.

    Attributes:
        ruin: Why nothing of the run may be handed out, "" where it may.
        drift: At a common scale of the logits, in nats; infinite where weights are.
    """

    ruin: str
    drift: float


def damage_of(model: nn.Module, made: Made, statistics: ProxyStatistics, *, forget: Sequence[int]) -> Damage:
    """Compare the run's model with the original; where it is ruined, closed rows have to do all the work."""
    if made.run.diverged or unsound(made.run.model):
        return Damage("every rate made the weights infinite, so the model is a copy of the original", math.inf)
    proxies = channels_last(statistics.proxies.barely)
    before, after = logits_of(model, proxies), logits_of(made.run.model, proxies)
    changed = answers_changed(before, after, forget=forget)
    drift = held_out_damage(*at_common_scale(before, after, forget=forget), forget=forget)
    if changed <= RUINOUS:
        return Damage("", drift)
    return Damage(
        f"what forgets here ruins the retained classes (answers on their proxies moved by {drift:.2g} nats,"
        f" {100 * changed:.0f} % are others), so the model is a copy of the original; that happens where a layer has"
        " hardly more inputs than there are classes. The closed row of `model` keeps the class from being answered, and"
        " costs nothing",
        drift,
    )


def shortfall(
    made: Made, damage: Damage, opened: nn.Module, images: Tensor, labels: Tensor, config: UnlearnConfig
) -> str:
    """Say what the run did not reach, "" if it reached its goal: of the class that is left the most.

    Args:
        made: The run.
        damage: What it did.
        opened: The model that is judged.
        images: The forget images, shape (n, C, H, W).
        labels: Their classes, shape (n,).
        config: Says what is wanted.
    """
    if damage.ruin:
        return damage.ruin
    each = recognized_of_each(logits_of(opened, channels_last(images)).argmax(1) == labels, labels)
    label, left = _worst(each)
    of = "the forget set" if len(each) == 1 else f"the images of class {label}"
    if left > config.update.forget_accuracy:
        longer = f"update.epochs than {config.update.epochs}"
        if config.goal == "remove":
            longer = f"removal.steps than {config.removal.steps}"
        return f"{100 * left:.1f} % of {of} is still recognized; pass more images, or a config with more {longer}"
    judged = {label: counts for label, counts in made.calibration.trial.unseen.items() if each[label][1] >= HALVABLE}
    label, left = _worst(judged)
    if left > TRUSTED:
        of = "held-out forget samples" if len(each) == 1 else f"held-out forget samples of class {label}"
        return (
            f"the forget set is forgotten, but {100 * left:.0f} % of {of} were still recognized; pass more images than"
            f" {each[label][1]}"
        )
    return ""


def _worst(counts: dict[int, tuple[int, int]]) -> tuple[int, float]:
    """Return the class of which the largest share is recognized, and that share; no class is recognized by nobody."""
    shares = {label: some / every for label, (some, every) in counts.items()}
    label = max(shares, key=lambda one: shares[one], default=-1)
    return label, shares.get(label, 0.0)


def cautions(
    made: Made, damage: Damage, counts: dict[int, int], hits: dict[int, float], config: UnlearnConfig
) -> Iterator[str]:
    """Say of a run that is handed out what it may have cost, and what nobody could look at.

    Args:
        made: The run.
        damage: What it did.
        counts: Forget images of each class.
        hits: Share of the attacks that arrived, by retained class.
        config: Options of the call.

    Yields:
        Warnings.
    """
    if few := [label for label, count in counts.items() if count < HALVABLE]:
        some = sum(counts[label] for label in few)
        of = "the class" if len(counts) == 1 else f"class {', '.join(map(str, few))}"
        yield (
            f"none of {some} images was held out: whether unseen images of {of} are forgotten is not known;"
            f" pass {HALVABLE} or more"
        )
    worst = min(hits, key=lambda label: hits[label], default=None)
    if worst is not None and hits[worst] < config.proxies.hit_rate / 2:
        remedy = "; leave proxies.eps at None, which finds a radius"
        if config.proxies.eps is None:
            remedy = "; raise proxies.eps_max" if config.proxies.eps_max < 1 else ", and no radius does better"
        yield (
            f"only {100 * hits[worst]:.0f} % of the attacks arrived in class {worst}: nothing stands in for it, and its"
            f" damage is not seen{remedy}"
        )
    moved, chosen = made.calibration.trial.drift, made.calibration
    if config.goal == "remove":
        if moved is not None and moved > config.removal.damage:
            yield (
                f"removal may cost retained accuracy: held-out proxies moved by {moved:.3g} nats, more than the"
                f" {config.removal.damage:g} that count as little; goal='suppress' mostly costs less"
            )
        return
    if damage.drift > COSTLY:
        yield (
            f"retained classes may have lost accuracy: answers on their proxies moved by {damage.drift:.2g} nats (at a"
            f" common scale of the logits), and by less than {COSTLY:g} where little is lost; closing the row alone"
            " costs nothing"
        )
    if chosen.at_edge and config.update.lr is None:
        yield f"the search for a rate ended at the edge of its range, at {chosen.trial.lr:.3g}"
