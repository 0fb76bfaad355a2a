"""Costs on paper are those of the arithmetic: counted by hand where that can be done, and measured where it cannot."""

import weakref
from dataclasses import replace

import pytest
import torch
from torch import nn

from benchmarks.stages import machine, on_paper
from benchmarks.stages.step import epoch
from benchmarks.stages.timing import timed
from zspag import proxy_statistics, subspaces
from zspag.config import ProxyConfig, SubspaceConfig
from zspag.proxies import attack
from zspag.proxy_statistics import class_moments
from zspag.runtime import generator_for
from zspag.subspaces import projector, second_moments

HERE = machine.Machine("a machine", 2, {"float32": 1e11, "float64": 5e10}, 1e10)
CPU = torch.device("cpu")


def small():
    return nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(5 * 8 * 8, 4))


def test_operations_and_rows_of_one_image_are_those_counted_by_hand():
    found = on_paper.count(small, side=8)
    conv, linear = 2 * 64 * 27 * 5, 2 * 320 * 4
    assert found.forward == conv + linear
    assert found.input_gradient == conv + linear
    assert found.weight_gradient == conv + 2 * linear  # no gradient in the image
    assert found.layers == (on_paper.Layer(1, 64, 27, 5), on_paper.Layer(1, 1, 320, 4))
    assert found.pixels == 4 * 3 * 64
    assert found.square == 8 * (27**2 + 320**2)


@pytest.mark.parametrize("name", ["resnet18", pytest.param("vit_b_16", marks=pytest.mark.slow)])
def test_real_architectures_are_counted_without_numbers(name):
    side = 224
    found = on_paper.count(on_paper._torchvision(name, 1000), side=side)
    published = {"resnet18": 2 * 1.814e9, "vit_b_16": 2 * 17.56e9}[name]
    assert found.forward == pytest.approx(published, rel=0.02)
    assert max(layer.d for layer in found.layers) == {"resnet18": 4608, "vit_b_16": 3072}[name]


def stages_of(one, **changed):
    return {stage.name: stage for stage in on_paper.stages(one, **{"classes": 10, "forget": 200} | changed)}


def test_costs_grow_with_classes_and_images_as_they_should():
    one = on_paper.count(small, side=8)
    few, many = stages_of(one, classes=21), stages_of(one, classes=201)
    for name in ("attack", "moments"):
        assert many[name].seconds(HERE) == pytest.approx(10 * few[name].seconds(HERE))
    assert many["bases"].seconds(HERE) == few["bases"].seconds(HERE)
    held = [stage["attack"].memory["images of all classes at once"] for stage in (few, many)]
    assert held[1] == pytest.approx(10 * held[0])
    kfac = [on_paper.influence(one, classes=classes, forget=200) for classes in (101, 1001)]
    last = "K-FAC's output factors (K backward passes)"
    assert 80 < kfac[1][last] / kfac[0][last] < 100  # classes times proxies, which grow with the classes


def test_the_page_names_what_breaks_first_and_what_mends_it(monkeypatch):
    monkeypatch.setattr(on_paper, "NETS", (("ResNet-18", "resnet18", 64, 1000),))
    content = {"data": {"machine": vars(HERE), "found": []}, "provenance": {"commit": "a" * 40}}
    lines = list(on_paper.page(content))
    assert lines == list(on_paper.page(content))
    assert "### ResNet-18, 64 pixels, K = 1000" in lines
    (breaks,) = [line for line in lines if line.startswith("Breaks first: ")]
    assert "GiB for images of all classes at once. Mend: attack some classes at a time" in breaks


# ---- Paper against measurement


def resnet(classes=10):
    return on_paper._torchvision("resnet18", classes)()


COUNT = {"attack": 24, "per class": 12, "classes": 2, "fitted": 64}


def measured():
    """Seconds of an attack, of moments and bases, and of an epoch of steps, of ResNet-18 at 32 pixels."""
    torch.manual_seed(0)
    model, draw = resnet().eval(), generator_for("paper")
    x = torch.rand(COUNT["fitted"], 3, 32, 32, generator=draw)
    few = x[: COUNT["attack"]]
    config, targets = ProxyConfig(), torch.zeros(len(few), dtype=torch.long)
    kept = []

    def bases():
        for moments in kept:
            projector(moments, config=SubspaceConfig())

    def moments():
        parts = (second_moments(model, x[start : start + COUNT["per class"]]) for start in (0, COUNT["per class"]))
        kept.append(subspaces.accumulate(parts, classes=COUNT["classes"]).pooled)

    run = {
        "attack": lambda: attack(model, few, targets, eps=0.1, config=config, generator=generator_for("paper")),
        "moments": moments,
        "bases": bases,
        "fit": lambda: epoch(
            model,
            x,
            classes=10,
            names=[n for n, p in model.named_parameters() if p.dim() > 1],
            project=None,
            held_out=0,
        ),
    }
    attack(model, few[:2], targets[:2], eps=0.1, config=config, generator=draw)
    return {name: timed(call) for name, call in run.items()}


def predicted(one, here):
    """The same on paper."""
    attacked, proxies = COUNT["attack"], COUNT["per class"] * COUNT["classes"]
    steps = ProxyConfig().steps
    work = {
        "attack": on_paper.Stage("", attacked * ((steps + 1) * one.forward + steps * one.input_gradient)),
        "moments": on_paper.Stage("", proxies * one.forward, on_paper.products_of(one.layers, images=proxies)),
        "bases": on_paper.Stage("", decompositions=on_paper.decompositions_of(one.layers, images=proxies)),
        "fit": on_paper.Stage("", COUNT["fitted"] * (2 * one.forward + one.weight_gradient)),
    }
    return {name: stage.seconds(here) for name, stage in work.items()}


@pytest.mark.slow
def test_paper_and_measurement_of_a_resnet_18_at_32_pixels_are_within_a_factor_of_two():
    before = machine.measure(CPU, side=1024, copied=2**26, repeats=3)
    seconds = measured()
    after = machine.measure(CPU, side=1024, copied=2**26, repeats=3)
    rates = {kind: (before.products[kind] * after.products[kind]) ** 0.5 for kind in before.products}
    here = replace(before, products=rates)
    paper, larger = (predicted(on_paper.count(resnet, side=side), here) for side in (32, 96))
    assert 0.5 < sum(seconds.values()) / sum(paper.values()) < 2
    assert 0.5 < seconds["attack"] / paper["attack"] < 2
    assert seconds["attack"] / larger["attack"] < 0.5  # nine times the pixels: the estimate of another case is no match


# ---- Memory of the moments


def test_one_class_at_a_time_is_held_beside_the_means(monkeypatch):
    alive, most = [], 0

    def watched(*arguments):
        nonlocal most
        most = max(most, sum(one() is not None for one in alive))
        found = second_moments(*arguments)
        alive.append(weakref.ref(found))
        return found

    monkeypatch.setattr(proxy_statistics, "second_moments", watched)
    monkeypatch.setattr(subspaces, "KEPT_BYTES", 0)
    torch.manual_seed(0)
    model, classes = small(), 9
    labels, halves = torch.arange(classes).repeat_interleave(4), torch.arange(4 * classes) % 2
    x = torch.rand(len(labels), 3, 8, 8)
    moments, *pooled = class_moments(model, x, labels, halves=halves, merge_at=None)
    assert len(alive) == 2 * classes
    assert most <= 3
    for half, found in enumerate(pooled):  # and they are what all classes together give
        kept = [second_moments(model, x[(labels == k) & (halves == half)]) for k in range(classes)]
        expected = subspaces.pooled(kept)
        assert all(torch.equal(found.second[name], expected.second[name]) for name in expected.second)
    whole = subspaces.averaged([second_moments(model, x[labels == k]) for k in range(classes)])
    for name, second in whole.second.items():
        torch.testing.assert_close(moments.averaged.second[name], second, rtol=1e-5, atol=1e-8)
