"""All benchmarks of this machine, as tables and under experiments/results/bench/.

    python -m experiments.bench              about an hour on 2 CPU cores
    python -m experiments.bench --quick      LeNet5 and n = 1e6 alone, two minutes, to runs/bench
    python -m experiments.bench --only sparse_step --models resnet50

Each benchmark is a process of its own; its JSON lines go to one file, named after the device.
With `--models` the rows of other models stay as they were; each row has its day and its code.
The dense step's PyTorch columns need `pip install 'cdl_jax[torch]'`, else they are left out; the
wire's other codecs need `pip install 'cdl_jax[bench]'`, which `make bench` does.
"""

import argparse
import json
import pathlib
import re
import subprocess
import sys
from typing import Any

import jax

MODELS = ["lenet5", "resnet18", "mobilenet_v2", "resnet50", "densenet161"]
FULL = {
    "selection": [["--n", "1e5", "1e6", "1e7", "1e8", "--finite"]],
    "apply": [[], ["--model", "resnet50"], ["--model", "densenet161"]],
    "wire": [[]],
    "sparse_step": [["--model", model] for model in MODELS],
    "extra": [["--model", model] for model in MODELS],
    "dense_step": [["--model", model] for model in MODELS],
}
QUICK = {
    "selection": [["--n", "1e6"]],
    "apply": [["--n", "1e6", "--k", "1e3"]],
    "wire": [["--models", "lenet5"]],
    "sparse_step": [["--model", "lenet5"]],
    "extra": [["--model", "lenet5", "--reps", "50"]],
    "dense_step": [["--model", "lenet5"]],
}


def main() -> int:
    """Runs the benchmarks one after another; 0 when all ended well."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", nargs="+", choices=list(FULL), default=list(FULL))
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument(
        "--results", help="folder; experiments/results/bench, or runs/bench if quick"
    )
    arguments = parser.parse_args()
    plan = QUICK if arguments.quick else FULL
    usual = "runs/bench" if arguments.quick else "experiments/results/bench"
    folder = pathlib.Path(arguments.results or usual)
    folder.mkdir(parents=True, exist_ok=True)
    for name in arguments.only:
        rows: list[dict[str, Any]] = []
        for words in plan[name]:
            if "--model" not in words or words[-1] in arguments.models:
                rows += lines(name, words)
        path = folder / f"{device()}-{name}.json"
        if any("--model" in words for words in plan[name]):
            rows = merged(path, rows, arguments.models)
        path.write_text(json.dumps(rows, indent=1) + "\n")
        print(f"{name}: {len(rows)} rows in {path}", flush=True)
    return 0


def merged(
    path: pathlib.Path, rows: list[dict[str, Any]], models: list[str]
) -> list[dict[str, Any]]:
    """The rows, and those of the file whose models were not asked for; those of none first."""
    before = json.loads(path.read_text()) if path.exists() else []
    stay = [row for row in before if row.get("model") in set(MODELS) - set(models)]
    order = [None, *MODELS]
    return sorted([*rows, *stay], key=lambda row: order.index(row.get("model")))


def lines(name: str, words: list[str]) -> list[dict[str, Any]]:
    """What one benchmark prints, shown as it comes."""
    command = [sys.executable, "-m", f"experiments.bench.{name}", *words]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.returncode)
    print(done.stdout, end="", flush=True)
    command[0] = "python"
    return [json.loads(line) | {"command": " ".join(command)} for line in done.stdout.splitlines()]


def device() -> str:
    """A file name's part: backend and kind of device."""
    kind = f"{jax.default_backend()}-{jax.devices()[0].device_kind}"
    return re.sub(r"[^a-z0-9]+", "-", kind.lower()).strip("-")


if __name__ == "__main__":
    sys.exit(main())
