"""The process that everything runs in: its memory, torch's state around a call, and bars that show progress.

Invariant: what is changed for a call is given back, and nothing here touches a number.
"""
