"""Command line, Git, DVC, stores, MLflow: what can move no bit of an output. No stage depends on it."""
