"""The laboratory: data sets, training, every method on every class and seed, and what judges them.

Invariant: only here may retain and test data be seen; nothing of the method imports it.
"""
