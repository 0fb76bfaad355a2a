"""Which layers move, and how fast: chosen on the forget set alone, by fitting one half and judging on the other.

Invariant: no test image and no retain data decide anything here.
"""
