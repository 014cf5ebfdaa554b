"""What runs beside a token that may write: the standard library only, nothing of a pull request."""
