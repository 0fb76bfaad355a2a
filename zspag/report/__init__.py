"""From files to pages: provenance, tables, claims, figures, and the notebooks' execution.

Invariant: imports neither torch nor the laboratory; what it says comes out of files.
"""
