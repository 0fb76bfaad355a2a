"""A newcomer with an empty HOME types what the README says after the set-up, in a fresh clone."""

import subprocess

import pytest

from tests import fresh_clone


@pytest.fixture
def clone(tmp_path):
    """A clone with the installed packages of this environment, and the code of the clone."""
    clone, environment = fresh_clone.clone_into(tmp_path)
    (clone / ".venv").symlink_to(fresh_clone.ROOT / ".venv")
    return clone, environment | {"PYTHONPATH": str(clone)}


@pytest.mark.slow
@pytest.mark.skipif(not (fresh_clone.ROOT / ".venv").is_dir(), reason="the packages are not in .venv")
def test_what_the_readme_says_works_in_a_fresh_clone(clone):
    folder, environment = clone
    figures = {"figures": [fresh_clone.PYTHON, "-m", "zspag", "reproduce", "--profile", "smoke", "--only", "00"]}
    seconds = fresh_clone.timed(figures | fresh_clone.AND_THEN, folder, environment)
    assert seconds.keys() == {"figures", "six lines", "zspag demo", "a notebook in the browser"}
    assert list((folder / "figures" / "smoke").glob("00_*.png"))
    assert (folder / "zspag-demo.png").is_file()


def test_a_command_that_fails_ends_it(tmp_path):
    with pytest.raises(subprocess.CalledProcessError):
        fresh_clone.timed({"fails": ["false"], "writes": ["touch", "written"]}, tmp_path, {})
    assert not (tmp_path / "written").exists()
