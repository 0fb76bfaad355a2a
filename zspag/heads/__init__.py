"""The last layer of a classifier: where it is, how a row of it is closed, and what the features before it still tell.

Invariant: a net without a linear head is named and left as it is.
"""
