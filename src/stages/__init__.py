"""The four DVC stages, in order: prepare, validate, train, evaluate. They meet through files; `dvc.yaml` wires them."""
