"""ZS-PAG: zero-shot machine unlearning with proxy adversarial data.

Invariant: ``import zspag`` is lazy (PEP 562): it loads nothing but the standard library, and torch comes with the first
name that needs it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zspag.config import LabelConfig, ProxyConfig, SubspaceConfig, UnlearnConfig, UpdateConfig
    from zspag.lab import demo
    from zspag.lab.by_name import unlearn_by
    from zspag.lab.metrics import Metrics, evaluate
    from zspag.lab.models import Normalize
    from zspag.outcome import Report
    from zspag.unlearning import Unlearned, zero_shot_unlearn

__version__ = "0.1.0"

__all__ = [
    "LabelConfig",
    "Metrics",
    "Normalize",
    "ProxyConfig",
    "Report",
    "SubspaceConfig",
    "UnlearnConfig",
    "Unlearned",
    "UpdateConfig",
    "__version__",
    "demo",
    "evaluate",
    "unlearn_by",
    "zero_shot_unlearn",
]

_HOME = {
    "LabelConfig": "config",
    "Metrics": "lab.metrics",
    "Normalize": "lab.models",
    "ProxyConfig": "config",
    "Report": "outcome",
    "SubspaceConfig": "config",
    "UnlearnConfig": "config",
    "Unlearned": "unlearning",
    "UpdateConfig": "config",
    "evaluate": "lab.metrics",
    "unlearn_by": "lab.by_name",
    "zero_shot_unlearn": "unlearning",
}


def __getattr__(name: str) -> Any:
    """Import the module that defines ``name`` on first use.

    Raises:
        AttributeError: If the package has no such name.
    """
    if name == "demo":
        return import_module("zspag.lab.demo")
    if name not in _HOME:
        raise AttributeError(f"module 'zspag' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(f"zspag.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
