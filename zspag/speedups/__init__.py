"""The same numbers, sooner: batch norm folded into convolutions, inputs projected instead of gradients, kept memory.

Invariant: nothing here changes a result beyond the rounding of floats, and tests compare each with its slow form.
"""
