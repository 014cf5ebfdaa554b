"""YOURS. How data/ is read where it is neither class folders nor Parquet shards, which src/images/readers.py reads."""
