"""Data sets that a command brings into data/, in the Hugging Face image layout."""
