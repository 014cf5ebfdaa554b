"""The checks of the data; stage validate."""
