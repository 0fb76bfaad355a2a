"""A zoo of other people's nets: trained, made to forget with nothing but the defaults, and tabled.

``python -m benchmarks.external train | rows | time | table``; ``results/external/README.md`` is what it writes.
"""
