"""Sequences of tokens: what every source of sequences and every network for them agree on.

A sequence is a row of whole numbers. Words count from `WORDS`; a target ends with
`END`, and `PAD` fills what is left of its row.
"""

PAD, END, START, WORDS = 0, 1, 2, 3
