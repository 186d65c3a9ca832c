"""Ten held-out digits explained by every method: `python -m tour`; see --help."""

from tour import main

main()
