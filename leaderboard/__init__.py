"""The leaderboard: every method by every metric, with intervals over examples. Run `python -m leaderboard` in a clone.

`board` and `examples` hold what is measured, `cells` measures it, `store` keeps each finished cell, and `report` writes
tables and figures.
"""
