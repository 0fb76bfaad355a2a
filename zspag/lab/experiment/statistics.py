"""The proxy statistics of a class and seed: proxies and the moments of their inputs, made once and kept as a file.

Invariant: what comes back from a file is bit for bit what was made.
"""

from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor

from zspag.config import to_dict
from zspag.lab import cache
from zspag.lab.experiment.cases import Case, data_of, forget_set, guard_of, made_now, trained, training_key
from zspag.proxies import ProxySet
from zspag.proxy_statistics import ProxyStatistics, prepare
from zspag.runtime import generator_for, pick_device
from zspag.subspaces import ClassMoments, Moments, second_moments
from zspag.views import Views


def statistics_of(case: Case) -> ProxyStatistics:
    """Return proxies and their input moments for a case, from the cache or computed (and kept)."""
    profile, config = case.profile, case.profile.unlearn
    key = training_key(profile, case.seed, None) | {
        "forget": case.forget,
        "forget_samples": profile.forget_samples,
        "proxies": to_dict(config.proxies),
        "views": config.views,
        "merge_at": config.subspace.merge_at,
        "code": cache.code_of(profile, __name__),
    }

    def make() -> tuple[dict[str, Tensor], dict[str, Any]]:
        images, _ = forget_set(case, guard_of(case))
        made = prepare(
            trained(profile, case.seed),
            images,
            forget=(case.forget,),
            num_classes=data_of(profile).num_classes,
            config=config,
            generator=generator_for(case.seed, "material"),  # names the stream: another word, other numbers
        )
        return pack(made)

    path = cache.tensors_path(profile, "statistics", key)
    return unpack(*cache.kept_tensors(path, make, made=partial(made_now, profile, seed=case.seed, config=key)))


def statistics_with_classes(case: Case) -> ProxyStatistics:
    """Return the statistics with the moments of every single class, made again where they were too large to keep."""
    statistics = statistics_of(case)
    if statistics.moments.per_class is not None:
        return statistics
    model = trained(case.profile, case.seed)
    retained = sorted(statistics.proxies.hits)
    per_class = tuple(second_moments(model, statistics.proxies.of_class(label)) for label in retained)
    return replace(statistics, moments=replace(statistics.moments, per_class=per_class))


def pack(statistics: ProxyStatistics) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return statistics as named tensors on the CPU and facts of what JSON holds; ``unpack`` is the inverse."""
    proxies, moments, views = statistics.proxies, statistics.moments, statistics.views
    tensors = {"images": proxies.images, "labels": proxies.labels, "sources": proxies.sources, "barely": proxies.barely}
    tensors |= {f"views/{name}": getattr(views, name) for name in ("images", "sources", "answers")}
    tensors |= {"half_of": statistics.half_of}
    means = [("pooled", moments.pooled), ("averaged", moments.averaged)]
    means += [(f"half{index}", half) for index, half in enumerate(statistics.halves)]
    voted = [] if moments.votes is None else [("votes", moments.votes[1])]
    for place, part in [*means, *voted, *enumerate(moments.per_class or ())]:
        tensors |= {f"moment/{place}/{name}": second for name, second in part.second.items()}
        tensors |= {f"factor/{place}/{name}": rows for name, rows in part.factors.items()}
    facts = {
        "hits": list(proxies.hits.items()),
        "eps": proxies.eps,
        "kinds": list(views.kinds),
        "weights": list(statistics.names),
        "per_class": moments.per_class is not None,
        "merge_at": None if moments.votes is None else moments.votes[0],
        "rows_per_sample": moments.pooled.rows_per_sample,
        "unprojectable": statistics.frozen,
        "seconds": statistics.seconds,
    }
    return {name: tensor.cpu() for name, tensor in tensors.items()}, {"statistics": facts}


def unpack(tensors: dict[str, Tensor], record: dict[str, Any]) -> ProxyStatistics:
    """Return the statistics that were packed, on the device of this process."""
    facts, device = record["statistics"], pick_device()
    tensors = {name: tensor.to(device) for name, tensor in tensors.items()}
    hits = {int(label): share for label, share in facts["hits"]}
    images, labels, sources = tensors["images"], tensors["labels"], tensors["sources"]
    proxies = ProxySet(images, labels, sources, hits, facts["eps"], tensors["barely"])
    sources_of_views, answers = tensors["views/sources"].cpu(), tensors["views/answers"].cpu()
    views = Views(tensors["views/images"], sources_of_views, answers, tuple(facts["kinds"]))

    def part(place: object) -> Moments:
        second = {name: tensors[f"moment/{place}/{name}"] for name in facts["weights"]}
        factors = {name: tensors[key] for name in second if (key := f"factor/{place}/{name}") in tensors}
        return Moments(second, facts["rows_per_sample"], facts["unprojectable"], factors)

    classes = len(hits)
    per_class = tuple(map(part, range(classes))) if facts["per_class"] else None
    votes = None if facts["merge_at"] is None else (facts["merge_at"], part("votes"))
    means = ClassMoments(part("pooled"), part("averaged"), classes, per_class, votes)
    halves = (part("half0"), part("half1"))
    return ProxyStatistics(views, proxies, means, tensors["half_of"].cpu(), halves, facts["seconds"])
