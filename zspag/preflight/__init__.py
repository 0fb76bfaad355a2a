"""Before any work: what a user hands over, turned into tensors and a net, or refused in one sentence.

Invariant: nothing here trains, and nothing that was handed over is changed.
"""
