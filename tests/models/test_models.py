"""Sizes, shapes and contracts of the five models."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cdl_jax.models import MODELS, Classifier, classifier, create_model

PARAMETERS = {
    "lenet5": 61_706,
    "resnet18": 11_181_642,
    "resnet50": 23_528_522,
    "mobilenet_v2": 2_236_682,
    "densenet161": 26_494_090,
}
RUNNING = {
    "lenet5": 0,
    "resnet18": 9_600,
    "resnet50": 53_120,
    "mobilenet_v2": 34_112,
    "densenet161": 219_936,
}


def images(name: str, batch: int = 2) -> jax.ShapeDtypeStruct:
    shape = (batch, 28, 28, 1) if name == "lenet5" else (batch, 32, 32, 3)
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def size(tree) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def test_every_model_has_a_row():
    assert {*PARAMETERS, "mlp"} == set(MODELS)  # an mlp has as many as its features ask for


@pytest.mark.parametrize("name", PARAMETERS)
def test_counts_and_shapes(name):
    init_fn, loss_fn, predict_fn = classifier(create_model(name))
    key = jax.eval_shape(lambda: jax.random.key(0))
    params, model_state = jax.eval_shape(init_fn, key, images(name))
    assert size(params) == PARAMETERS[name]
    assert size(model_state) == RUNNING[name]
    logits = jax.eval_shape(predict_fn, params, model_state, images(name))
    assert (logits.shape, logits.dtype) == ((2, 10), jnp.float32)
    batch = {"image": images(name), "label": jax.ShapeDtypeStruct((2,), jnp.int32)}
    loss, (new_state, metrics) = jax.eval_shape(loss_fn, params, model_state, batch, key)
    assert loss.shape == metrics["accuracy"].shape == ()
    assert jax.tree.map(jnp.shape, new_state) == jax.tree.map(jnp.shape, model_state)


@pytest.mark.parametrize("name", PARAMETERS)
def test_num_classes_moves_only_the_head(name):
    key = jax.eval_shape(lambda: jax.random.key(0))
    counts = [
        size(jax.eval_shape(classifier(create_model(name, n)).init_fn, key, images(name))[0])
        for n in (10, 13)
    ]
    features = {"lenet5": 84, "resnet18": 512, "resnet50": 2048, "mobilenet_v2": 1280}
    assert counts[1] - counts[0] == 3 * (features.get(name, 2208) + 1)


def test_unknown_name_is_refused_in_one_sentence():
    with pytest.raises(ValueError, match=r"'vgg'; it must be one of lenet5, resnet18, resnet50"):
        create_model("vgg")


@pytest.mark.parametrize("name", ["lenet5", "resnet18"])
def test_lowers_for_platforms_that_are_not_here(name):
    """Without a device: the CPU's formulations must not be all there is."""
    init_fn, loss_fn, _ = classifier(create_model(name))
    key = jax.random.key(0)
    params, state = jax.eval_shape(init_fn, key, images(name))
    batch = {"image": images(name), "label": jax.ShapeDtypeStruct((2,), jnp.int32)}
    step = jax.jit(jax.grad(loss_fn, has_aux=True)).trace(params, state, batch, key)
    for platform, convolves in (("cpu", name != "lenet5"), ("cuda", True), ("tpu", True)):
        text = step.lower(lowering_platforms=(platform,)).as_text()
        assert ("stablehlo.convolution" in text) == convolves


def lenet():
    functions = classifier(create_model("lenet5"), normalize=(0.1307, 0.3081))
    params, state = jax.jit(functions.init_fn)(jax.random.key(1), jnp.zeros((1, 28, 28, 1)))
    return Classifier(functions.init_fn, *map(jax.jit, functions[1:])), params, state


def test_uint8_images_are_normalised_inside():
    (_, loss_fn, predict_fn), params, state = lenet()
    raw = np.random.default_rng(0).integers(0, 256, (4, 28, 28, 1)).astype(np.uint8)
    ready = ((raw / 255 - 0.1307) / 0.3081).astype(np.float32)
    expected = predict_fn(params, state, ready)
    np.testing.assert_allclose(predict_fn(params, state, raw), expected, atol=1e-5)
    label, key = np.arange(4), jax.random.key(0)
    losses = [
        loss_fn(params, state, {"image": image, "label": label}, key)[0] for image in (raw, ready)
    ]
    np.testing.assert_allclose(*losses, rtol=1e-5)


def test_uint8_images_without_normalize_are_refused():
    with pytest.raises(ValueError, match="uint8 but normalize is None"):
        classifier(create_model("lenet5")).init_fn(
            jax.random.key(0), jnp.zeros((1, 28, 28, 1), jnp.uint8)
        )


def test_loss_and_accuracy_are_those_of_the_logits():
    (_, loss_fn, predict_fn), params, state = lenet()
    image = jax.random.normal(jax.random.key(2), (16, 28, 28, 1))
    label = np.arange(16) % 10
    loss, (new_state, metrics) = loss_fn(
        params, state, {"image": image, "label": label}, jax.random.key(0)
    )
    logits = np.asarray(predict_fn(params, state, image), np.float64)
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(loss, -np.log(shares[np.arange(16), label]).mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["accuracy"], (logits.argmax(1) == label).mean(), rtol=1e-6)
    assert new_state == state == {}


def test_a_classifier_of_several_fields_takes_all_but_the_label():
    class Sum(nn.Module):
        @nn.compact
        def __call__(self, inputs, train=False):
            assert set(inputs) == {"category", "number"}
            embedded = nn.Embed(5, 2)(inputs["category"])
            return nn.Dense(3)(jnp.concatenate([embedded, inputs["number"]], axis=1))

    init_fn, loss_fn, predict_fn = classifier(Sum(), field=None)
    inputs = {"category": jnp.arange(4), "number": jnp.ones((4, 1))}
    params, state = init_fn(jax.random.key(0), inputs)
    logits = np.asarray(predict_fn(params, state, inputs), np.float64)
    batch = {**inputs, "label": jnp.zeros(4, jnp.int32)}
    loss, _ = loss_fn(params, state, batch, jax.random.key(0))
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(loss, -np.log(shares[:, 0]).mean(), rtol=1e-5)


def test_initialisation_is_torchs():
    _, params, _ = lenet()
    for name, fan_in in (("conv2", 150), ("fc1", 400)):
        for leaf in (params[name]["kernel"], params[name]["bias"]):
            assert 0.8 * fan_in**-0.5 < np.abs(leaf).max() <= fan_in**-0.5
