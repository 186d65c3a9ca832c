"""The leaderboard: every method by every metric, with intervals over examples. `python -m leaderboard`.

`board` says what is measured, as data; `cells` measures it, and keeps each finished cell; `report` makes the tables and the figures.
"""
