"""The report of a pull request: compare, judge and write are its commands and meet through files; the rest serves them."""
