"""The runs behind the paper's figures and tables, by name.

Prapas et al. 2021, section 5: LeNet5 on MNIST; ResNet18, ResNet50, MobileNetV2 and DenseNet161 on
CIFAR-10, initial training on 10,000 samples, the rest as the stream, batch 128, Adam with AMSGrad
at 1e-3. The profile "full" is the paper's; "quick" is a small one of the same shape.
"""

import dataclasses
from typing import Any

from cdl_jax.core.compress import Scope
from cdl_jax.core.rounding import Values

DENSITIES = (1e-2, 1e-3, 1e-4, 1e-5)
# After the optimizer, per tensor: these come nearest to the bytes that the same tensors take when
# they are sparsified before it, at 1e-2, 1e-3 and 1e-4 of LeNet5 (trials of 100 versions).
MATCHED = (4e-1, 1e-1, 2e-2)
SCOPES: tuple[Scope, ...] = ("tensor", "global")
FORMS: tuple[Values, ...] = ("bf16", "f16", "int8", "int4", "int2")
NARROW = ("int8", "int4")  # of these all, where a run takes long
TRIGGERS = (8, 16, 32, 64)
BITS = (1, 2, 4, 8, 16)
MODELS = {"mnist": ("lenet5",), "cifar10": ("resnet18", "mobilenet_v2", "resnet50", "densenet161")}

PROFILES: dict[tuple[str, str], dict[str, Any]] = {
    ("mnist", "full"): {"initial_samples": 10_000, "epochs": 10},
    ("mnist", "quick"): {"initial_samples": 2_000, "epochs": 5, "limit": 8_000},
    ("mnist", "drift"): {"initial_samples": 30_000, "epochs": 5},  # see `drift_cells`
    ("cifar10", "full"): {"initial_samples": 10_000, "epochs": 25},
    ("cifar10", "quick"): {"initial_samples": 2_000, "epochs": 5, "limit": 4_000},
}
QUICK_TRIGGER = 32  # of CIFAR-10's quick profile: a step takes a tenth of a second and more


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run but for its seed.

    Attributes:
      name: of its files.
      settings: of `TrainConfig`, on top of the profile's.
      seeds: how many seeds the full profile runs.
      quick: whether it belongs to the quick profile.
      ships: whether its updates go through the wire; else a version is a whole model.
    """

    name: str
    settings: dict[str, Any]
    seeds: int = 3
    quick: bool = True
    ships: bool = True


def full_retraining() -> Cell:
    """From scratch on all samples so far, each time as many came as the initial training had."""
    return Cell("full", {"strategy": "full"}, ships=False)


def online() -> Cell:
    """New samples only."""
    return Cell("online-128", {"strategy": "online", "trigger": 128}, ships=False)


def proactive(trigger: int, **more: Any) -> Cell:
    """Dense proactive training."""
    settings = {"strategy": "proactive", "trigger": trigger}
    return Cell(f"proactive-{trigger}", settings, ships=False, **more)


def sparse(
    density: float,
    scope: Scope = "tensor",
    values: Values = "float32",
    *,
    compressor: str = "top_k",
    order: str = "after",
    **more: Any,
) -> Cell:
    """Sparse proactive training, trigger 8."""
    settings = {
        "strategy": "sparse", "trigger": 8, "compressor": compressor, "density": density,
        "scope": scope, "values": values, "order": order,
    }  # fmt: skip
    name = f"{compressor}-{density:g}-{scope}-{values}" + ("-before" if order == "before" else "")
    return Cell(name, settings, **more)


def qsgd(bits: int) -> Cell:
    """Quantised updates of every entry."""
    settings = {"strategy": "sparse", "trigger": 8, "compressor": "quantize", "bits": bits}
    return Cell(f"qsgd-{bits}", settings, seeds=1, quick=bits == 4)


def everything_that_changed() -> Cell:
    """Dense proactive training whose updates carry the changed entries alone, for their number."""
    whole = sparse(1.0, order="before", seeds=1)
    return dataclasses.replace(whole, name="proactive-8-changed")


def cells(dataset: str) -> list[Cell]:
    """All runs of a data set, those that most figures need first."""
    small = dataset == "mnist"  # its quick profile has the time for more
    more = 6 if small else 3  # seeds, where differences are small
    dense = [
        proactive(t, quick=t == 8 or (small and t == 32), seeds=more if t == 8 else 3)
        for t in TRIGGERS
    ]
    first = [dense[0], full_retraining(), online(), *_after(small, more), *dense[1:]]
    first += [
        sparse(d, order="before", quick=small and d == 1e-3, seeds=more if small else 1)
        for d in DENSITIES
    ]
    first += [
        sparse(d, compressor="random_k", quick=small and d == 1e-3, seeds=3 if small else 1)
        for d in DENSITIES[:3]
    ]
    least = [sparse(DENSITIES[-1], s, quick=False, seeds=3 if small else 1) for s in SCOPES]
    least += [sparse(DENSITIES[-1], compressor="random_k", quick=False, seeds=1)]
    forms = _forms(small)
    if small:
        matched = [sparse(d, quick=False, seeds=more) for d in MATCHED]
        rest = [everything_that_changed(), *forms[:20], *map(qsgd, BITS), *forms[20:]]
        return [*first, *matched, *least, *rest]
    return [*first, *least, *(f for f in forms if f.quick or f.settings["values"] in NARROW)]


def _after(small: bool, more: int) -> list[Cell]:
    """After the optimizer, values as they are."""
    return [
        sparse(
            d, s, quick=small or d == 1e-4 or (d, s) == (1e-3, "tensor"),
            seeds=more if d > 1e-4 else 3,
        )
        for d in DENSITIES[:3]
        for s in SCOPES
    ]  # fmt: skip


def _forms(small: bool) -> list[Cell]:
    """The forms of values; quick: four orders at 1e-4, on CIFAR-10 three at 1e-3 too."""
    tensor, over_all = SCOPES
    places: tuple[tuple[float, Scope], ...]
    places = ((1e-3, tensor), (1e-4, tensor), (1e-4, over_all), (1e-2, tensor),
              (1e-3, over_all), (1e-2, over_all))  # fmt: skip
    return [
        sparse(
            d, s, v, seeds=1,
            quick=(d, s, v) == (1e-4, "global", "int8")
            or (not small and d == 1e-3 and v in ("bf16", "int8")),
        )
        for d, s in places
        for v in FORMS
    ]  # fmt: skip


def settings(dataset: str, profile: str, model: str, cell: Cell) -> dict[str, Any]:
    """`TrainConfig`'s, but for seed and places."""
    base = {"dataset": dataset, "model": model, **PROFILES[dataset, profile]}
    chosen = {**base, **cell.settings}
    if (dataset, profile) == ("cifar10", "quick") and cell.settings.get("trigger") == 8:
        chosen["trigger"] = QUICK_TRIGGER
    return chosen
