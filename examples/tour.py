"""Ten held-out digits explained by every method. The same as `python -m jaxplain.tour`; see --help."""

from jaxplain.tour import main

if __name__ == "__main__":
    main()
