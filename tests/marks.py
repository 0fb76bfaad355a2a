"""Which cases of a test `make test` leaves to `make test-slow`."""

import pytest


def slow_but(usual, names):
    """Mark what is not usual as slow: it has to hold as well, and costs a whole call each."""
    return [pytest.param(name, marks=() if name in usual else pytest.mark.slow) for name in names]
