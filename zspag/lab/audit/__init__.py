"""The audit: forgotten, or only silent? What attackers, probes and training see in each network of a class and seed.

Every measure is made of the references and of methods alike, for a number of this kind means something only beside the
retrained network's, and beside that of one that only hides the class. ``bench`` holds the networks and the images,
``measures`` what is measured, ``running`` spreads classes and seeds over processes. ``zspag.report.audit`` reads the
rows.

Invariant: the laboratory's view; an audit changes no network.
"""

from zspag.lab.audit.bench import METHODS, SUBJECTS
from zspag.lab.audit.record import publish
from zspag.lab.audit.running import audit, audited

__all__ = ["METHODS", "SUBJECTS", "audit", "audited", "publish"]
