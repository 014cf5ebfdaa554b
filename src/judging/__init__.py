"""The judge: files in, a verdict out. At a merge the deployed commit's copy of it judges, whole."""
