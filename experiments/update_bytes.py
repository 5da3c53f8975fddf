"""Bytes of real updates: every model, density, scope and form of values.

Each model takes some dense steps on CIFAR-10 from random weights (LeNet5: MNIST), then for each
form a few sparse ones in the paper's settings (batch 128, trigger 8, Adam with AMSGrad at 1e-3);
the last updates are encoded. Expected, against the dense float32 model with its statistics: four
orders of magnitude at 1e-4 on ResNet50 and DenseNet161 with global scope and values of 8 bits or
fewer, three at 1e-3 on models of over a million parameters.

The gradients come from one program, the sparse step from another that is given them: so a form
costs one small compilation. Rows that the file holds already are not measured again; each says
when and on what it was measured, and what the file says holds for the rows that do not.

    python -m experiments.update_bytes          about an hour on 2 CPU cores
"""

import dataclasses
import json
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

import cdl_jax
from cdl_jax.core.compress import Scope
from cdl_jax.core.rounding import Values
from cdl_jax.data import ImageData, load
from cdl_jax.models import classifier, create_model
from cdl_jax.wire.keys import SigningKey
from experiments.cells import FORMS, MODELS, SCOPES
from experiments.origin import origin
from experiments.runs import conditions, save, stamp

FILE = "update_bytes.json"
PAST, TRIGGER, BATCH, MEASURED = 10_000, 8, 128, 4
NAMES = tuple(name for names in MODELS.values() for name in names)


@dataclasses.dataclass(frozen=True)
class Options:
    """Settings of the measurement."""

    models: tuple[str, ...] = NAMES
    """Models."""
    densities: tuple[float, ...] = (1e-4, 1e-3, 1e-2)
    """Shares of entries sent."""
    values: tuple[Values, ...] = ("float32", *FORMS)
    """Forms of values."""
    dense_steps: int = 40
    """Dense steps before the sparse ones."""
    steps: int = 8
    """Sparse steps; the last 4 updates are encoded."""
    results: str = "experiments/results"
    """Folder of the result."""


def main(options: Options) -> int:
    """Measures what is missing, writes update_bytes.json after every row."""
    path = pathlib.Path(options.results) / FILE
    found = json.loads(path.read_text()) if path.exists() else _new(options)
    rows = found["rows"]
    for name in options.models:
        wanted: list[tuple[float, Scope, Values]] = [
            (d, s, v) for d in options.densities for s in SCOPES for v in options.values
            if not any(_key(r) == (name, d, s, v) for r in rows)
        ]  # fmt: skip
        source = Gradients(name, options.dense_steps) if wanted else None
        for density, scope, values in wanted:
            assert source is not None
            tx = cdl_jax.sparsify_top_k(density, scope=scope, values=values)
            rows.append({
                "model": name, "density": density, "scope": scope, "values": values,
                **source.measure(tx, options.steps), "dense_steps": options.dense_steps,
                "data": origin(source.data.name), **stamp(),
            })  # fmt: skip
            save(options.results, FILE, {**found, "rows": sorted(rows, key=_order)})
            jax.clear_caches()
    return 0


class Gradients:
    """A model a few dense steps into its training, and its optimizer's updates from there."""

    def __init__(self, name: str, dense_steps: int):
        self.data: ImageData = load("mnist" if name == "lenet5" else "cifar10")
        model = classifier(create_model(name, self.data.classes), (self.data.mean, self.data.std))
        init = jax.jit(model.init_fn)
        params, model_state = init(jax.random.key(0), jnp.asarray(self.data.images[:1]))
        tx, key = optax.amsgrad(1e-3), jax.random.key(1)

        @jax.jit
        def updates(params: Any, model_state: Any, opt_state: Any, batch: Any) -> Any:
            grads, (model_state, _) = jax.grad(model.loss_fn, has_aux=True)(
                params, model_state, batch, key
            )
            moves, opt_state = tx.update(grads, opt_state, params)
            return moves, model_state, opt_state

        self.updates: Callable[..., Any] = updates.lower(
            params, model_state, tx.init(params), self.data.batch(np.arange(BATCH))
        ).compile()  # it outlives the caches that are cleared between rows
        self.start = params, model_state, tx.init(params)
        self.rng, self.key = np.random.default_rng(0), SigningKey.generate()
        for _ in range(dense_steps):
            batch = self.data.batch(self.rng.integers(0, PAST, BATCH))
            moves, model_state, opt_state = self.updates(*self.start, batch)
            self.start = optax.apply_updates(self.start[0], moves), model_state, opt_state

    def measure(self, tx: optax.GradientTransformation, steps: int) -> dict[str, Any]:
        """Mean bytes of the last updates of a short stream."""
        params, model_state, opt_state = self.start
        state = cdl_jax.init_state(params, tx, model_state=model_state)
        step, sizes, update = cdl_jax.make_step(_given, tx), [], None
        for turn in range(steps):
            stop = PAST + TRIGGER * (turn + 1)
            old = self.rng.integers(0, PAST, BATCH - TRIGGER)
            index = np.concatenate([old, np.arange(stop - TRIGGER, stop)])
            given = self.updates(state.params, state.model_state, opt_state, self.data.batch(index))
            moves, model_state, opt_state = given
            state, info = step(state, None, {"updates": moves, "model_state": model_state})
            update = jax.device_get(info.update)
            sizes.append(len(cdl_jax.encode_update(update, key=self.key)))
        assert update is not None
        dense = sum(x.nbytes for x in jax.tree.leaves(cdl_jax.deployed(state)))
        size = sum(sizes[-MEASURED:]) / MEASURED
        return {
            "entries": int(update.counts.sum()),
            "bytes": round(size, 1),
            "dense_bytes": dense,
            "times_less": round(dense / size, 1),
        }


def _given(params: Any, model_state: Any, batch: Any, key: Any) -> Any:
    """A loss whose gradient is the update that was computed already."""
    del model_state, key
    parts = jax.tree.map(lambda p, u: jnp.sum(p * u), params, batch["updates"])
    return sum(jax.tree.leaves(parts)), (batch["model_state"], {})


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["model"], row["density"], row["scope"], row["values"]


def _new(options: Options) -> dict[str, Any]:
    about = (
        f"Real updates after {options.dense_steps} dense steps from random weights (seed 0), means "
        f"of {MEASURED}; headers, digest, signature and BatchNorm statistics included."
    )
    return {"about": about, **conditions("python -m experiments.update_bytes"), "rows": []}


def _order(row: dict[str, Any]) -> tuple[Any, ...]:
    forms = ("float32", *FORMS)
    return (
        NAMES.index(row["model"]), -row["density"], row["scope"] != "tensor",
        forms.index(row["values"]),
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))
