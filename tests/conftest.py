"""What holds for every test: one thread, no window, no options from outside, no random state carried over."""

import os

import pytest

os.environ["MPLBACKEND"] = "Agg"  # before anything imports matplotlib
for option in ("ZSPAG_PROFILE", "ZSPAG_ROOT", "ZSPAG_PROGRESS"):
    os.environ.pop(option, None)


@pytest.fixture(autouse=True, scope="session")
def _no_test_writes_into_the_data_of_the_user(tmp_path_factory):
    """Data sets are cached in a folder of the session, also by the processes that a test starts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZSPAG_DATA", str(tmp_path_factory.mktemp("session-data")))
        yield


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _no_random_state_carried_over():
    """Every test starts from the same state, whatever ran before it (torch may start with any), and gives it back."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.fixture(scope="module")
def data_folder(tmp_path_factory):
    """A folder for data sets and their cache, one for a whole module."""
    return tmp_path_factory.mktemp("data")


@pytest.fixture
def own_data(data_folder, monkeypatch):
    """Data sets are read from, and cached in, the module's own folder."""
    monkeypatch.setenv("ZSPAG_DATA", str(data_folder))
