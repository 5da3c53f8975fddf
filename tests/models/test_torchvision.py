"""A state_dict goes in whole, or one sentence says which tensor does not."""

import functools

import jax
import numpy as np
import pytest
import safetensors.numpy

from cdl_jax.errors import ConfigError
from cdl_jax.models import MODELS, classifier, create_model
from cdl_jax.models.torchvision import load_torchvision

LEAVES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}


@functools.cache
def shapes(model, classes=10):
    image = np.zeros((2, 28, 28, 1) if model == "lenet5" else (2, 32, 32, 3), np.float32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    return jax.eval_shape(classifier(create_model(model, classes)).init_fn, key, image)


def name_of(path):
    *modules, leaf = (part.key for part in path)
    return ".".join([*modules, LEAVES.get(leaf, leaf)])


def to_torch(name, value):
    """The inverse, written on its own: for fc1 of LeNet5 place by place."""
    if value.ndim == 4:
        return np.einsum("hwio->oihw", value)
    if name == "fc1.weight":
        rows = np.empty((120, 400), value.dtype)
        for c in range(16):
            for y in range(5):
                for x in range(5):
                    rows[:, 25 * c + 5 * y + x] = value[16 * (5 * y + x) + c]
        return rows
    return value.T


def state_dict(trees):
    found = {
        name_of(path): np.ascontiguousarray(to_torch(name_of(path), leaf))
        for tree in trees
        for path, leaf in jax.tree.leaves_with_path(tree)
    }
    counters = [n.replace("running_mean", "num_batches_tracked") for n in found if "_mean" in n]
    return found | {name: np.array(7) for name in counters}


def random(trees):
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), trees)


def saved(path, tensors):
    safetensors.numpy.save_file(tensors, path / "weights.safetensors")
    return path / "weights.safetensors"


@pytest.mark.parametrize("model", sorted(set(MODELS) - {"mlp"}))  # torchvision has none
def test_every_tensor_finds_its_place(tmp_path, model):
    trees = random(shapes(model))
    path = saved(tmp_path, state_dict(trees))
    got = load_torchvision(path, model, *shapes(model))
    jax.tree.map(np.testing.assert_array_equal, got, trees)
    assert {leaf.dtype for leaf in jax.tree.leaves(got)} == {np.dtype(np.float32)}


@pytest.mark.parametrize(("model", "head"), [("lenet5", "fc3"), ("mobilenet_v2", "classifier/1")])
def test_a_head_of_other_classes_stays_as_it_was(tmp_path, model, head):
    theirs, ours = random(shapes(model, 1000)), random(shapes(model, 10))
    params, state = load_torchvision(saved(tmp_path, state_dict(theirs)), model, *ours)
    for tree, mine, its in ((params, ours[0], theirs[0]), (state, ours[1], theirs[1])):
        for path, leaf in jax.tree.leaves_with_path(tree):
            is_head = "/".join(part.key for part in path).startswith(head)
            source = dict(jax.tree.leaves_with_path(mine if is_head else its))
            np.testing.assert_array_equal(leaf, source[path])


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F64"])
def test_other_floats_are_widened(tmp_path, dtype):
    import ml_dtypes

    trees = random(shapes("lenet5"))
    types = {"F16": np.float16, "BF16": ml_dtypes.bfloat16, "F64": np.float64}
    narrow = {k: v.astype(types[dtype]) for k, v in state_dict(trees).items()}
    got = load_torchvision(saved(tmp_path, narrow), "lenet5", *shapes("lenet5"))
    expected = jax.tree.map(lambda x: x.astype(types[dtype]).astype(np.float32), trees)
    jax.tree.map(np.testing.assert_array_equal, got, expected)


def lacking(tensors):
    del tensors["layer1.0.conv1.weight"]


def lacking_more(tensors):
    for part in ("mean", "var"):
        del tensors[f"bn1.running_{part}"]


def lacking_the_head(tensors):
    del tensors["fc.weight"], tensors["fc.bias"]


def unknown(tensors):
    tensors["layer1.0.conv3.weight"] = np.zeros((1, 1, 1, 1), np.float32)


def stray_counter(tensors):
    tensors["fc.num_batches_tracked"] = np.array(1.0)


def misshapen(tensors):
    tensors["conv1.weight"] = np.zeros((64, 3, 3, 3), np.float32)


def half_a_head(tensors):
    tensors["fc.weight"] = np.zeros((1000, 512), np.float32)


def integers(tensors):
    tensors["bn1.weight"] = np.ones(64, np.int32)


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lacking, r"lacks layer1\.0\.conv1\.weight; give resnet18's state_dict"),
        (lacking_more, r"lacks bn1\.running_mean and 1 more tensor;"),
        (lacking_the_head, r"lacks fc\.bias and 1 more tensor;"),
        (unknown, r"has layer1\.0\.conv3\.weight, which resnet18 has not;"),
        (stray_counter, r"has fc\.num_batches_tracked, which resnet18 has not;"),
        (misshapen, r"has conv1\.weight \[64, 3, 3, 3\] in place of \[64, 3, 7, 7\];"),
        (half_a_head, r"has fc\.weight \[1000, 512\] in place of \[10, 512\];"),
        (integers, r"bn1\.weight in .* is I32; give floating weights"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, damage, sentence):
    tensors = state_dict(random(shapes("resnet18")))
    damage(tensors)
    with pytest.raises(ConfigError, match=sentence):
        load_torchvision(saved(tmp_path, tensors), "resnet18", *shapes("resnet18"))


def test_what_is_no_file_of_weights_is_said(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        load_torchvision(tmp_path / "none", "lenet5", {}, {})
    (tmp_path / "text").write_text("no weights")
    with pytest.raises(ConfigError, match="is not a safetensors file"):
        load_torchvision(tmp_path / "text", "lenet5", {}, {})


@pytest.mark.parametrize(
    ("value", "dtype", "said"),
    [(np.nan, "f4", "nan"), (-np.inf, "f2", "-inf"), (1e39, "f8", r"1e\+39")],
)
def test_the_first_tensor_that_is_not_finite_is_named(tmp_path, value, dtype, said):
    tensors = {k: v.astype(dtype) for k, v in state_dict(random(shapes("lenet5"))).items()}
    for name in ("conv2.bias", "fc2.bias"):
        tensors[name][3] = value
    with pytest.raises(ConfigError, match=rf"conv2\.bias in .* holds {said}; give finite weights"):
        load_torchvision(saved(tmp_path, tensors), "lenet5", *shapes("lenet5"))


@pytest.mark.parametrize("model", ["mlp", "own:make"])
def test_a_model_that_torchvision_has_not_is_refused(tmp_path, model):
    path = saved(tmp_path, state_dict(random(shapes("lenet5"))))
    with pytest.raises(ConfigError, match=f"model is '{model}', .*; give one of lenet5, resnet18"):
        load_torchvision(path, model, *shapes("lenet5"))
