"""Judge a model beside the deployed one, by this commit's code and the gates of its params.yaml. Runs no torch.

Where the deployed model is the template's example, the gates are those of the request's params: the first of a fork's own.

    python -m src verdict request.json out/judged

The request names files of the commit under judgement, by absolute paths or below the working directory, which is that
commit's tree; fields that are not listed here are ignored:

format       1
arrays, manifest, model, validation, data, params   what the pipeline made, and what it was made of
run          run.json
deployed     the commit whose model is compared with; null where there is none to compare with
why          with null: why that is so; empty: nothing was ever deployed
quantize     true: make an INT8 model and judge it too

Writes into the folder: verdict.json (the verdict with the same format number), metrics.json, evaluation/predictions.parquet,
main/ (the deployed model's side, as src.judging.compare writes it), judged.json, quantized/.
"""

import argparse
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from src.core.command import UserError
from src.core.files import read_json, write_json
from src.core.yaml_files import read_yaml
from src.judging import lineage
from src.system.judged import Comparison, JudgedFile

FORMAT = 1
_PARAMS = Path(__file__).parents[2] / "params.yaml"  # of the commit that this code is of
_NOBODY = "0" * 40  # a commit that no repository has
_FIELDS = ("arrays", "manifest", "model", "validation", "data", "params", "run", "deployed", "why", "quantize")


def judge(path: Path, out: Path) -> None:
    """Answer the request.

    Raises:
        UserError: the request has another format, or a part of the judge cannot use a file that it names.
    """
    request = read_json(path, made_by="evaluate", keys=("format",))
    if request["format"] != FORMAT or any(name not in request for name in _FIELDS):
        raise UserError(f"{path} has the format {request['format']}, and this judge reads format {FORMAT}")
    out.mkdir(parents=True, exist_ok=True)
    # the ONNX model answers: the network may be one that this commit's src/model.py does not know
    read = [request[name] for name in ("arrays", "manifest", "model")]
    _run("answer", [*read, str(out / "metrics.json"), str(out / "evaluation"), "--baseline"])
    verdict = _verdict(request, out)
    if verdict.stopped_by == {"latency"}:  # a busy machine is no fault of the model
        print("only the latency gate does not pass: measuring once more")
        verdict = _verdict(request, out)
    if request["quantize"]:
        try:
            _run("quantize", [request["arrays"], request["model"], str(out / "quantized")])
        except UserError as error:  # the float model is judged all the same
            verdict = replace(verdict, why_no_int8=str(error))
    write_json(out / "verdict.json", replace(verdict, format=FORMAT).to_json())


def _verdict(request: Mapping[str, Any], out: Path) -> JudgedFile:
    main = str(out / "main")
    pulled = [word for name in ("arrays", "manifest", "model", "data") for word in (f"--{name}", request[name])]
    _run("compare", [request["deployed"] or _NOBODY, main, *pulled], _with_its_split(request, out))
    facts = _settle(out / "main" / "facts.json", request)
    made = [main, request["run"], str(out / "verdict.json"), str(out / "judged.json")]
    made += ["--metrics", str(out / "metrics.json"), "--evaluation", str(out / "evaluation")]
    made += ["--manifest", request["manifest"], "--validation", request["validation"]]
    # where only the template's example was ever deployed, so are its gates the template's
    _run("judge", made, Path(request["params"]) if facts.example else _PARAMS)
    return JudgedFile.read(out / "verdict.json", made_by="evaluate")


def _with_its_split(request: Mapping[str, Any], out: Path) -> Path:
    """Write this commit's parameters with the other's section prepare, by which test images may be prepared again."""
    yaml = YAML()
    content = yaml.load(_PARAMS.read_text())
    content["prepare"] = read_yaml(Path(request["params"]))["prepare"]
    with (out / "params.yaml").open("w") as file:
        yaml.dump(content, file)
    return out / "params.yaml"


def _settle(path: Path, request: Mapping[str, Any]) -> Comparison:
    """Clear what the review has settled: the rules here are the deployed ones, the inputs the reviewed ones.

    So are the models of the pull request: since the deployed commit there may have been more, of others. Returns the facts.
    """
    facts = Comparison.read(path, made_by="evaluate")
    reviewed = lineage.read(Path("manifest.json"))
    if reviewed and reviewed.looks and reviewed.looks.pull_request is not None:
        facts = replace(facts, looks=replace(facts.looks, pull_request=reviewed.looks.pull_request))
    if request["deployed"] is None:
        facts = replace(facts, never=not request["why"], why=request["why"] or "nothing was ever deployed")
    facts = replace(facts, judging_changed=[], moved_inputs=[], ref="main")
    write_json(path, facts.to_json())
    return facts


def _run(verb: str, arguments: list[str], params: Path = _PARAMS) -> None:
    """Run a command of this commit; a module of the working directory is not taken for one (-P)."""
    command = [sys.executable, "-P", "-m", "src", verb, *arguments, "--params", str(params)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or ["no reason given"]
        raise UserError(f"{verb}: {lines[-1][:300]}")


def main() -> None:
    """Parse the command line and judge."""
    parser = argparse.ArgumentParser(description="Judge a model beside the deployed one by the rules of this commit.")
    parser.add_argument("request", type=Path, help="what is judged: a JSON file")
    parser.add_argument("out", type=Path, help="folder to write")
    args = parser.parse_args()
    judge(args.request, args.out)
