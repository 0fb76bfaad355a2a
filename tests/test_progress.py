"""Progress: a listener hears stage, done and total; a bar is drawn where somebody watches; no result changes."""

import io
import sys
import types
import warnings

import pytest
import torch
from external_nets import FORGET, forget_images, mlp, trained

from zspag import zero_shot_unlearn
from zspag.config import ProxyConfig, UnlearnConfig, UpdateConfig
from zspag.process.progress import somebody_watches, step, watched

QUICK = UnlearnConfig(
    proxies=ProxyConfig(steps=4, per_class=4),
    update=UpdateConfig(lr=1.0, layers="all", epochs=2, batch_size=16, min_steps=2, settle=0.0),
    views=24,
)


class Screen(io.StringIO):
    """What a terminal would show."""

    def __init__(self, tty):
        super().__init__()
        self.tty = tty

    def isatty(self):
        return self.tty


def seen_on(monkeypatch, *, tty=True):
    """Put a screen in the place of standard error, from within the test: pytest puts its own there before it."""
    shown = Screen(tty)
    monkeypatch.setattr(sys, "stderr", shown)
    return shown


@pytest.fixture
def kernel(monkeypatch):
    """A notebook without ipywidgets, in which nobody has imported tqdm yet."""
    ipython = types.ModuleType("IPython")
    ipython.get_ipython = lambda: types.SimpleNamespace(kernel=object(), config={"IPKernelApp": {}})
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    for module in ("ipykernel", "ipykernel.zmqshell"):
        monkeypatch.setitem(sys.modules, module, types.ModuleType(module))
    for absent in ("ipywidgets", "IPython.display", "IPython.html.widgets"):
        monkeypatch.setitem(sys.modules, absent, None)
    for module in ("tqdm.auto", "tqdm.autonotebook", "tqdm.notebook"):
        monkeypatch.delitem(sys.modules, module, raising=False)


def unlearned(progress):
    return zero_shot_unlearn(trained(mlp), forget_images(8), FORGET, config=QUICK, progress=progress)


def same_bits(first, second):
    weights, others = first.model.state_dict(), second.model.state_dict()
    return all(torch.equal(weight, others[name]) for name, weight in weights.items())


# ---- Who listens


def test_a_function_hears_stage_done_and_total():
    heard = []
    with watched(lambda *told: heard.append(told)):
        step("first", 0, 3)
        step("first", 3, 3)
        step("second", 5, 4)  # an estimate that was too small is raised
    step("too late", 1, 1)
    assert heard == [("first", 0, 3), ("first", 3, 3), ("second", 5, 5)]


def test_the_listener_goes_after_an_exception_and_an_outer_one_comes_back():
    outer, inner = [], []
    with watched(lambda stage, *_: outer.append(stage)):
        with pytest.raises(RuntimeError), watched(lambda stage, *_: inner.append(stage)):
            step("inside", 0, 1)
            raise RuntimeError
        step("outside", 0, 1)
        with watched(False):
            step("silenced", 0, 1)
    assert (outer, inner) == (["outside"], ["inside"])


def test_an_exception_of_the_listener_reaches_the_caller():
    def interrupt(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        unlearned(interrupt)


@pytest.mark.parametrize("wrong", [1, 0, "yes", []])
def test_anything_else_is_refused_with_its_value(wrong):
    with pytest.raises(ValueError, match=r"progress must be None, True, False or a function .* got"), watched(wrong):
        pass


# ---- The bar


@pytest.mark.parametrize("progress", [None, True])
def test_on_a_terminal_a_bar_names_each_stage_and_goes_away(progress, monkeypatch):
    screen = seen_on(monkeypatch)
    with watched(progress):
        step("attack", 1, 4)
        step("attack", 4, 4)
        step("fitting", 1, 2)
    shown = screen.getvalue()
    assert "attack:" in shown
    assert "/4" in shown
    assert "fitting:" in shown
    assert shown.rsplit("\r", 1)[-1].strip() == ""  # the last thing drawn is an empty line


def test_false_is_silent_on_a_terminal_and_so_is_none_elsewhere(monkeypatch):
    screen = seen_on(monkeypatch)
    with watched(False):
        step("attack", 1, 4)
    assert screen.getvalue() == ""
    nowhere = seen_on(monkeypatch, tty=False)
    with watched(None):
        step("attack", 1, 4)
    assert nowhere.getvalue() == ""
    with watched(True):
        step("attack", 1, 4)
    assert "attack" in nowhere.getvalue()


def test_zspag_progress_decides_where_nothing_else_was_said(monkeypatch):
    for tty, chosen in ((True, "0"), (False, "1")):
        screen = seen_on(monkeypatch, tty=tty)
        monkeypatch.delenv("ZSPAG_PROGRESS", raising=False)
        assert somebody_watches() is tty
        monkeypatch.setenv("ZSPAG_PROGRESS", chosen)
        assert somebody_watches() is not tty
    monkeypatch.setenv("ZSPAG_PROGRESS", "0")
    with watched(None):
        step("attack", 1, 4)
    assert screen.getvalue() == ""
    with watched(True):  # the argument counts more than the environment
        step("attack", 1, 4)
    assert "attack" in screen.getvalue()


def test_without_a_screen_nobody_watches(monkeypatch):
    ipython = types.ModuleType("IPython")  # merely imported: this is no notebook
    ipython.get_ipython = lambda: None
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    seen_on(monkeypatch, tty=False)
    assert not somebody_watches()
    monkeypatch.setattr(sys, "stderr", None)  # as under pythonw
    assert not somebody_watches()
    with watched(None):
        step("attack", 1, 4)


def test_a_notebook_watches_and_without_ipywidgets_there_is_a_bar_and_no_warning(kernel, monkeypatch):
    screen = seen_on(monkeypatch, tty=False)
    assert somebody_watches()
    with warnings.catch_warnings(record=True, action="always") as caught, watched(None):
        step("attack", 1, 4)
    assert not caught
    assert "attack" in screen.getvalue()


def test_tqdm_alone_would_warn_in_such_a_notebook(kernel):
    with pytest.warns(match="IProgress not found"):
        import tqdm.auto  # noqa: F401  (the import warns)


# ---- A whole run


def test_a_run_tells_every_stage_in_order_never_more_done_than_there_is(monkeypatch):
    screen = seen_on(monkeypatch)
    heard = []
    unlearned(lambda *told: heard.append(told))
    stages = list(dict.fromkeys(stage for stage, _, _ in heard))
    assert stages == ["attack", "subspaces", "calibration", "unlearning", "closing rows", "remainder"]
    order = [stages.index(stage) for stage, _, _ in heard]
    assert order == sorted(order)  # no stage comes back
    for stage, done, total in heard:
        assert isinstance(stage, str)
        assert 0 <= done <= total
    for stage in stages[1:]:  # the search for a radius attacks again and again
        counts = [done for told, done, _ in heard if told == stage]
        assert counts == sorted(set(counts))
    assert [told for told in heard if told[0] == "subspaces"][-1] == ("subspaces", 9, 9)
    assert screen.getvalue() == ""  # who listens draws on their own


def test_no_listener_and_no_bar_changes_a_bit(monkeypatch):
    screen = seen_on(monkeypatch)
    silent = unlearned(False)
    assert screen.getvalue() == ""
    drawn = unlearned(None)
    assert "calibration" in screen.getvalue()
    torch.manual_seed(99)
    heard = unlearned(lambda *_: torch.rand(3))  # a listener that draws random numbers
    assert same_bits(silent, drawn)
    assert same_bits(silent, heard)
    original = trained(mlp).state_dict()
    assert not all(torch.equal(weight, original[name]) for name, weight in silent.open_model.state_dict().items())
