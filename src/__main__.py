"""Every command of this repository: `python -m src VERB`. A verb's module is imported only when it is called.

python -m src --help
"""

import os
import sys

if __name__ == "__main__":  # no file of the repository's root is imported in place of a package: torch.py, onnxruntime.py
    _last = {os.getcwd(), os.path.dirname(os.path.dirname(os.path.abspath(__file__)))}
    sys.path.sort(key=lambda path: os.path.abspath(path) in _last)

from importlib import import_module
from pathlib import Path

from src.system.command_line import run
from src.system.safe_path import refuse_shadows

# (verb, module below src, what it does); in the order in which data flow
VERBS = (
    ("prepare", "images.prepare", "stage 1: decode data/ into arrays, and write the manifest"),
    ("validate", "validation.validate", "stage 2: check the data"),
    ("train", "training.train", "stage 3: train, and export the model"),
    ("evaluate", "evaluation.evaluate", "stage 4: judge the ONNX model on the test split"),
    ("answer", "evaluation.answer", "started by compare and verdict: let an ONNX model answer the test split"),
    ("reproduce", "system.reproduce", "pull the data, run the stages, show the metrics (make reproduce)"),
    ("params", "system.list_params", "print every key of params.yaml with its value and meaning (make params)"),
    ("compare", "judging.compare", "bring main's model beside the one under review (make report)"),
    ("judge", "judging.judge", "judge the model under review by the gates (make report)"),
    ("report", "reporting.write", "write the report of a pull request (make report)"),
    ("verdict", "judging.request", "judge a model as the deployed commit does: a request in, a verdict out"),
    ("lineage", "reporting.trace", "say where a model came from (make lineage)"),
    ("quantize", "judging.quantize", "make an INT8 model, and a table of what it costs and gains (make quantize)"),
    ("update", "system.update", "merge main into this branch, with main's results (make update)"),
    ("upgrade", "system.upgrade", "bring a later version of the template into this repository (make upgrade)"),
    ("record", "system.record", "record the staged files as a version of the template (make record)"),
    ("plan", "github.plan", "report.yml: decide what an event asks for"),
    ("publish", "github.publish", "report.yml: publish the verdict and the report"),
    ("comment", "github.comment", "report.yml, report-comment.yml: post the one comment of a pull request"),
    ("cancelled", "github.cancelled", "report.yml: tell that a run was cancelled"),
    ("recheck", "github.recheck", "report-comment.yml: take back a green that no label explains"),
    ("fork-report", "github.fork_report", "report-comment.yml: write the comment on a fork, of its numbers"),
    ("ci", "github.ci", "ci.yml: choose the jobs that a commit needs, and fail unless each is green"),
    ("attested", "github.attested", "deploy.yml: check the attestation of an image"),
    ("deployed", "github.deployed", "deploy.yml, rollback.yml: tell GitHub what was deployed"),
    ("watchdog", "github.watchdog", "watchdog.yml: tell of jobs that wait for a runner of your own"),
    ("audit", "github.audit", "audit.yml: tell of packages with known vulnerabilities"),
    ("lock-push", "github.lock_push", "lock.yml: commit the locks that were resolved"),
    ("sweep-pull", "github.sweep_pull", "sweep.yml: open a pull request with the params that a sweep found"),
    ("doctor", "github.doctor", "say which settings on GitHub are missing (make doctor)"),
    ("settings", "github.settings", "make the settings on GitHub what .github/settings says (make settings)"),
    ("runner-doctor", "system.runner_doctor", "check a machine that is to be a self-hosted runner (make runner-doctor)"),
    ("storage", "release.storage", "in CI: connect the store of data and models, or push to it"),
    ("verify", "release.verify", "deploy, step 1: verify the reviewed model"),
    ("register", "release.register", "deploy, step 2: register it in MLflow"),
    ("build", "release.build", "deploy, step 3: build the image (make image)"),
    ("deploy", "release.deploy", "deploy, step 4: start it, switch the traffic, watch"),
    ("release", "release.steps", "all steps of a deployment on this machine (make deploy)"),
    ("rollback", "release.rollback", "bring an earlier version back (make rollback)"),
    ("status", "release.status", "say what serves (make status)"),
    ("serve", "serving.serve", "serve the current model without Docker (make serve)"),
    ("batch", "serving.batch", "predict files or a Parquet file"),
    ("suggest", "lab.experiments.suggest", "write a recipe for the data in data/ (make suggest)"),
    ("check-model", "lab.experiments.check_model", "tell whether a network is wired right (make check-model)"),
    ("find-lr", "lab.experiments.find_lr", "suggest a learning rate (make find-lr)"),
    ("sweep", "lab.experiments.sweep", "search better params (make sweep)"),
    ("profile", "lab.experiments.training_profile", "say what the bottleneck of training is (make profile)"),
    ("data-cifar10", "lab.datasets.cifar10", "replace data/ by CIFAR-10 (make data-cifar10)"),
    ("data-digits", "lab.datasets.digits", "write the starter data"),
    ("bench-train", "lab.benchmarks.train_speed", "measure a training step (make bench-train)"),
    ("example-reports", "lab.example_reports", "make the example reports of docs/reports"),
    ("bench-serve", "lab.benchmarks.serve", "measure the service (make bench-serve)"),
)


def main() -> None:
    """Run the verb that the command line names."""
    here = [row for row in VERBS if (Path(__file__).parent / f"{row[1].replace('.', '/')}.py").is_file()]
    verb = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if verb in ("--help", "-h"):
        print("usage: python -m src VERB [ARGUMENTS]; python -m src VERB --help says more\n")
        print("\n".join(f"  {name:14}{told}" for name, _, told in here))
        return
    module = next((module for name, module, _ in here if name == verb), None)
    if module is None:
        print(f"src: there is no verb {verb!r}; expected one of {', '.join(name for name, _, _ in here)}", file=sys.stderr)
        sys.exit(2)
    sys.argv = [f"python -m src {verb}", *sys.argv[2:]]
    run(verb, lambda: _start(verb, module))


def _start(verb: str, module: str) -> None:
    refuse_shadows(Path(__file__).absolute().parent.parent)
    composed = {"train": _train, "report": _report}
    (composed[verb] if verb in composed else import_module(f"src.{module}").main)()


def _train() -> None:
    """Hand to training what lies outside of its stage: the tracker, the registry's champion, facts of the hardware."""
    from src.system import champion, hardware, tracking
    from src.training import callbacks, train

    train.main(callbacks.Callbacks(tracking.start, champion.fetch, hardware.describe))


def _report() -> None:
    """Hand to the report what knows what an example is."""
    from src.images.occlusion import occlusion
    from src.reporting import write

    write.main(occlusion)


if __name__ == "__main__":
    main()
