"""A zoo of nets, part of them other people's: trained, made to forget with nothing but the defaults, and tabled.

``python -m benchmarks.external train | rows | time | table``; ``results/external/README.md`` is what it writes.
"""
