"""The application package. It is not published, so a fork keeps the name and runs `python -m src VERB`."""
