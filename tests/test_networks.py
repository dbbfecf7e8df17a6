"""Networks: shapes, values written out in NumPy, gradients, and what is refused."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from deepclust.networks import (
    CONV_SHAPES,
    ACAIAutoencoder,
    Autoencoder,
    ConvAutoencoder,
    GivenEmbeddings,
    MLPAutoencoder,
    UserNetwork,
    VariationalAutoencoder,
    features,
    features_width,
)
from deepclust.networks.autoencoder import redraw
from deepclust.networks.images import to_images, to_rows

ACTIVATIONS = {
    "linear": lambda h: h,
    "relu": lambda h: np.maximum(h, 0),
    "leaky_relu": lambda h: np.where(h > 0, h, 0.01 * h),
    "sigmoid": lambda h: 1 / (1 + np.exp(-h)),
    "tanh": np.tanh,
}

# Every network, for rows of 60 values: 5 x 4 images of 3 channels where that matters.
NETWORKS = {
    "mlp": lambda: MLPAutoencoder((60, 9, 7, 4)),
    "variational": lambda: VariationalAutoencoder((60, 7, 4)),
    "conv": lambda: ConvAutoencoder(
        (5, 4, 3), 4, layers=((6, 3, 2, 1), (5, 2, 1, 0)), activation="leaky_relu"
    ),
    "user": lambda: UserNetwork(nn.Linear(60, 4), nn.Linear(4, 60), n_features=60),
    "user's images": lambda: UserNetwork(
        nn.Sequential(nn.Conv2d(3, 2, 2), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(24, 4)),
        nn.Sequential(nn.Linear(4, 60), nn.Unflatten(1, (3, 5, 4))),
        image_shape=(5, 4, 3),
    ),
    "user, encoder only": lambda: UserNetwork(nn.Linear(60, 4), n_features=60),
    "acai": lambda: ACAIAutoencoder((5, 4, 3), 4, width=2),
    "given": lambda: GivenEmbeddings(60),
}
LAYERED = ("mlp", "variational", "conv")


def made(name, seed=0):
    torch.manual_seed(seed)
    return NETWORKS[name]()


def rows(n=6, width=60, seed=1):
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed))


def numpy_layers(linears, x, names):
    """x through Linear modules, each followed by the activation of that name."""
    outputs = []
    for linear, name in zip(linears, names, strict=True):
        weight, bias = linear.weight.detach().double().numpy(), linear.bias.detach().numpy()
        x = ACTIVATIONS[name](x @ weight.T + bias)
        outputs.append(x)
    return outputs


# What all of them promise.


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("n", [6, 1, 0])
def test_the_contract(name, n):
    network, x = made(name).eval(), rows(n)
    assert isinstance(network, Autoencoder)
    assert network.n_features == 60
    layers = network.layers(x)
    z = network.encode(x)
    assert z.shape == (n, network.code_width)
    assert torch.equal(layers[-1], z)
    assert all(len(layer) == n for layer in layers)
    if network.has_decoder:
        code, output = network(x)
        assert torch.equal(code, z)
        assert torch.equal(output, network.decode(z))
        assert output.shape == x.shape
    else:
        with pytest.raises(ValueError, match=f"decoder: {type(network).__name__} has none"):
            network(x)


@pytest.mark.parametrize("name", NETWORKS)
def test_parameters_are_the_encoders_and_the_decoders(name):
    network = made(name)
    encoder, decoder = network.encoder_parameters(), network.decoder_parameters()
    assert bool(decoder) == network.has_decoder
    both = [id(parameter) for parameter in (*encoder, *decoder)]
    assert sorted(both) == sorted(id(parameter) for parameter in network.parameters())


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "given"])
def test_gradients_reach_all_parameters(name):
    network, x = made(name), rows()
    if isinstance(network, VariationalAutoencoder):
        z = network.sample(*network.posterior(x))
    else:
        z = network.encode(x)
    (network.decode(z) if network.has_decoder else z).square().sum().backward()
    for parameter_name, parameter in network.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name
        assert parameter.grad.any(), parameter_name


@pytest.mark.parametrize("name", NETWORKS)
def test_codes_depend_on_the_encoders_parameters_alone(name):
    network, x = made(name).eval(), rows()
    before = network.encode(x)
    for parameter in network.decoder_parameters():
        nn.init.constant_(parameter, 7.0)
    assert torch.equal(network.encode(x), before)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_seed_makes_the_weights(name):
    same, again, other = (made(name, seed).state_dict() for seed in (0, 0, 1))
    for key, value in same.items():
        assert torch.equal(value, again[key]), key
        if key.endswith("weight") and value.ndim > 1:
            assert not torch.equal(value, other[key]), key


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_in_float64(name):
    network = made(name).double().eval()
    assert network.encode(rows().double()).dtype == torch.float64
    assert features_width(network) == network.code_width


@pytest.mark.parametrize("name", LAYERED)
def test_layer_by_layer_is_the_whole(name):
    network, x = made(name), rows()
    h, inputs = x, []
    for layer, output in enumerate(network.layers(x)):
        inputs.append(h)
        h = network.encode_layer(layer, h)
        assert torch.equal(h, output)
    for layer in reversed(range(network.n_layers)):
        h = network.decode_layer(layer, h)
        assert h.shape == inputs[layer].shape
    assert torch.equal(h, network.decode(network.encode(x)))


@pytest.mark.parametrize("name", LAYERED)
def test_layers_and_their_gradients_are_not_overwritten(name):
    """Activations work in place: what was handed out must not change, nor the rows."""
    network, x = made(name), rows()
    original = x.clone()
    layers = network.layers(x)
    kept = [layer.clone() for layer in layers]
    network.decode(layers[-1])
    network.layers(x)
    assert torch.equal(x, original)
    assert all(map(torch.equal, layers, kept))


@pytest.mark.parametrize("name", ["mlp", "conv"])
def test_gradients_are_the_central_differences(name):
    network, x = made(name).double(), rows(3).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: network(x), x)


# Fully connected.


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "sigmoid", "tanh"])
@pytest.mark.parametrize(("code", "output"), [("linear", "tanh"), ("sigmoid", "linear")])
def test_mlp_is_its_formula(activation, code, output):
    network = MLPAutoencoder((60, 9, 7, 4), activation=activation, code=code, output=output)
    x = rows()
    down = numpy_layers(network.encoder, x.double().numpy(), [activation, activation, code])
    up = numpy_layers(network.decoder, down[-1], [activation, activation, output])
    for layer, expected in zip(network.layers(x), down, strict=True):
        np.testing.assert_allclose(layer.detach(), expected, atol=1e-5)
    np.testing.assert_allclose(network(x)[1].detach(), up[-1], atol=1e-5)


def test_mlp_keeps_its_names():
    state = MLPAutoencoder((6, 5, 4)).state_dict()
    assert [(key, tuple(value.shape)) for key, value in state.items()] == [
        ("encoder.0.weight", (5, 6)),
        ("encoder.0.bias", (5,)),
        ("encoder.1.weight", (4, 5)),
        ("encoder.1.bias", (4,)),
        ("decoder.0.weight", (5, 4)),
        ("decoder.0.bias", (5,)),
        ("decoder.1.weight", (6, 5)),
        ("decoder.1.bias", (6,)),
    ]
    assert MLPAutoencoder([6, np.int64(5)]).widths == (6, 5)


def test_init_std():
    network = VariationalAutoencoder((300, 200, 100), init_std=0.05)
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        else:
            assert abs(float(parameter.detach().std()) - 0.05) < 2e-3, name


@pytest.mark.parametrize(
    "make",
    [
        lambda: MLPAutoencoder((30, 20, 5), init_std="glorot"),
        lambda: VariationalAutoencoder((30, 20, 5), init_std="glorot"),
        lambda: ConvAutoencoder((16, 16), 5, layers="depict-usps", init_std="glorot"),
        lambda: ACAIAutoencoder((16, 16), 8, width=64),
        lambda: VariationalAutoencoder((30, 20, 5), init_std=0.05),
        lambda: MLPAutoencoder((30, 20, 5)),
    ],
)
def test_weights_drawn_again_are_drawn_as_at_first(make):
    torch.manual_seed(0)
    network = make()
    first = {name: p.detach().clone() for name, p in network.named_parameters()}
    redraw(network)
    for name, parameter in network.named_parameters():
        if name.endswith("weight"):
            assert not torch.equal(parameter, first[name]), name
            ratio = float(parameter.detach().std() / first[name].std())
            assert 0.75 < ratio < 1.33, (name, ratio)  # PyTorch's are about half of Glorot's
        elif network.__dict__.get("init_std"):
            assert not parameter.any(), name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"init_std": "he"}, "init_std: got 'he'; it takes a number, 'glorot' or None"),
        ({"sizes": (5,)}, r"sizes: got \(5,\); it takes two or more integers of at least 1"),
        ({"sizes": 5}, "sizes: got 5; it takes two or more"),
        ({"sizes": (5, 0)}, r"sizes: got \(5, 0\)"),
        ({"sizes": (5, 2.5)}, r"sizes: got \(5, 2.5\)"),
        ({"activation": "linear"}, "activation: got 'linear'; it takes one of relu, leaky_relu"),
        ({"code": "relu"}, "code: got 'relu'; it takes one of linear, sigmoid, tanh"),
        ({"output": "softmax"}, "output: got 'softmax'; it takes one of linear, sigmoid, tanh"),
    ],
)
@pytest.mark.parametrize("kind", [MLPAutoencoder, VariationalAutoencoder])
def test_bad_parameters_of_an_mlp(kind, arguments, message):
    with pytest.raises(ValueError, match=message):
        kind(**{"sizes": (5, 2), **arguments})


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_denoising_uses_the_activation_that_made_its_input(layer):
    """Eqs. 6 to 9 of Xie et al. (2016), without and with dropout."""
    names = {"activation": "sigmoid", "code": "tanh", "output": "linear"}
    network, x = MLPAutoencoder((60, 9, 7, 4), **names), rows()
    g1 = ["sigmoid", "sigmoid", "tanh"][layer]
    g2 = ["linear", "sigmoid", "sigmoid"][layer]
    below = numpy_layers(network.encoder[:layer], x.double().numpy(), ["sigmoid"] * layer)
    h = below[-1] if below else x.double().numpy()
    mirror = network.decoder[2 - layer]

    output, clean = network.denoise_layer(layer, x, 0.0)
    np.testing.assert_allclose(clean, h, atol=1e-5)
    [code] = numpy_layers([network.encoder[layer]], h, [g1])
    np.testing.assert_allclose(output.detach(), numpy_layers([mirror], code, [g2])[0], atol=1e-5)

    torch.manual_seed(5)
    output, clean = network.denoise_layer(layer, x, 0.4)
    torch.manual_seed(5)
    corrupted = nn.functional.dropout(clean, 0.4).double().numpy()
    [code] = numpy_layers([network.encoder[layer]], corrupted, [g1])
    corrupted = nn.functional.dropout(torch.from_numpy(code).float(), 0.4).double().numpy()
    expected = numpy_layers([mirror], corrupted, [g2])[0]
    np.testing.assert_allclose(output.detach(), expected, atol=1e-5)


def test_denoising_moves_its_own_layer_alone():
    network = MLPAutoencoder((60, 9, 7, 4))
    output, clean = network.denoise_layer(1, rows(), 0.2)
    (output - clean).square().sum().backward()
    own = {id(parameter) for parameter in network.layer_parameters(1)}
    assert len(own) == 4
    for name, parameter in network.named_parameters():
        assert (parameter.grad is not None) == (id(parameter) in own), name


def keep_and_scale(like, share):
    """What dropout, from the present state of torch's generator, multiplies values by."""
    return nn.functional.dropout(torch.ones_like(like), share)


@pytest.mark.parametrize("corruption", [(0.0, 0.0, 0.0), (0.3, 0.2, 0.0), [0.5, 0.0, 0.4]])
def test_denoising_of_the_whole_is_its_formula(corruption):
    """Eqs. 9 and 10 of Dizaji et al. (2017)."""
    names = {"activation": "leaky_relu", "code": "tanh", "output": "sigmoid"}
    network, x = MLPAutoencoder((60, 9, 7, 4), **names), rows()
    torch.manual_seed(5)
    code, outputs = network.denoise(x, corruption)
    torch.manual_seed(5)
    h = x.double().numpy()
    up = zip(network.encoder, ["leaky_relu", "leaky_relu", "tanh"], corruption, strict=True)
    for linear, name, share in up:
        seen = h * keep_and_scale(torch.from_numpy(h).float(), share).numpy()
        [h] = numpy_layers([linear], seen, [name])
    np.testing.assert_allclose(code.detach(), h, atol=1e-5)
    expected = numpy_layers(network.decoder, h, ["leaky_relu", "leaky_relu", "sigmoid"])[::-1]
    for output, layer in zip(outputs, expected, strict=True):
        np.testing.assert_allclose(output.detach(), layer, atol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_denoising_without_noise_is_the_network_itself(name):
    network, x = made(name).eval(), rows()
    shares = [0.0] * getattr(network, "n_layers", 1)
    code, outputs = network.denoise(x, shares)
    assert torch.equal(code, network.encode(x))
    if not network.has_decoder:
        assert outputs == []
        return
    assert torch.equal(outputs[0], network.decode(code))
    if name in LAYERED:
        inputs = [x, *network.layers(x)[:-1]]
        assert [o.shape for o in outputs] == [h.shape for h in inputs]
        h = code
        for layer in reversed(range(network.n_layers)):
            h = network.decode_layer(layer, h)
            assert torch.equal(outputs[layer], h)
    else:
        assert len(outputs) == 1


@pytest.mark.parametrize("name", NETWORKS)
def test_denoising_drops_values_of_what_each_layer_sees(name):
    network, x = made(name).eval(), rows()
    shares = [0.5, *[0.25] * (getattr(network, "n_layers", 1) - 1)]
    torch.manual_seed(5)
    code, _ = network.denoise(x, shares)
    torch.manual_seed(5)
    h = x * keep_and_scale(x, 0.5)
    if name in LAYERED:
        h = network.encode_layer(0, h)
        for layer in range(1, network.n_layers):
            h = network.encode_layer(layer, h * keep_and_scale(h, 0.25))
    else:
        h = network.encode(h)
    torch.testing.assert_close(code, h, rtol=1e-6, atol=1e-6)
    assert not torch.allclose(code, network.encode(x))


@pytest.mark.parametrize("name", LAYERED)
def test_denoising_reaches_all_layers_and_overwrites_nothing(name):
    network, x = made(name), rows()
    original = x.clone()
    code, outputs = network.denoise(x, [0.2] * network.n_layers)
    kept = [output.clone() for output in (code, *outputs)]
    sum(output.square().sum() for output in outputs).backward()
    assert torch.equal(x, original)
    assert all(map(torch.equal, (code, *outputs), kept))
    for key, parameter in network.named_parameters():
        assert (parameter.grad is not None) == (not key.startswith("log_var")), key


@pytest.mark.parametrize("corruption", [[], [0.1], [0.1] * 4])
def test_denoising_takes_one_share_for_each_layer(corruption):
    network = MLPAutoencoder((60, 9, 7, 4))
    message = f"corruption: got {len(corruption)} shares; it takes one for each of the 3 layers"
    with pytest.raises(ValueError, match=message):
        network.denoise(rows(), corruption)


# Variational.


@pytest.mark.parametrize("sizes", [(60, 9, 7, 4), (60, 4)])
def test_posterior_and_samples_are_their_formulas(sizes):
    network, x, noise = VariationalAutoencoder(sizes), rows(), rows(width=4, seed=2)
    mean, log_var = network.posterior(x)
    assert torch.equal(mean, network.encode(x))
    h = network.layers(x)[-2].detach() if len(sizes) > 2 else x
    [expected] = numpy_layers([network.log_var], h.double().numpy(), ["linear"])
    np.testing.assert_allclose(log_var.detach(), expected, atol=1e-5)
    z = network.sample(mean, log_var, noise)
    assert torch.equal(z, mean + (log_var / 2).exp() * noise)
    assert torch.equal(network.sample(mean, log_var, torch.zeros(6, 4)), mean)


def test_samples_have_the_posteriors_mean_and_variance():
    network = VariationalAutoencoder((6, 2))
    mean, log_var = torch.tensor([[1.0, -2.0]]), torch.tensor([[0.0, 2.0]])
    torch.manual_seed(3)
    z = network.sample(mean.expand(40_000, 2), log_var.expand(40_000, 2))
    np.testing.assert_allclose(z.mean(0), [1, -2], atol=4 * np.e / 200)
    np.testing.assert_allclose(z.var(0).log(), [0, 2], atol=0.03)
    torch.manual_seed(3)
    assert torch.equal(z, network.sample(mean.expand(40_000, 2), log_var.expand(40_000, 2)))


def test_a_variational_network_starts_as_the_plain_one():
    torch.manual_seed(0)
    variational = VariationalAutoencoder((60, 7, 4))
    torch.manual_seed(0)
    plain = MLPAutoencoder((60, 7, 4))
    x = rows()
    assert all(map(torch.equal, variational(x), plain(x)))
    missing, unexpected = variational.load_state_dict(plain.state_dict(), strict=False)
    assert missing == ["log_var.weight", "log_var.bias"]
    assert unexpected == []


# Convolutional.


@pytest.mark.parametrize(
    ("name", "side", "sizes"),
    [
        ("depict-mnist", 28, [13, 7]),
        ("depict-usps", 16, [7, 4]),
        ("depict-frgc", 32, [17, 9]),
        ("depict-cmu-pie", 32, [17, 9]),
        ("depict-ytf", 55, [28, 13]),
        ("dcec", 28, [14, 7, 3]),
        ("dcec-usps", 16, [8, 4, 2]),
    ],
)
def test_published_shapes(name, side, sizes):
    network = ConvAutoencoder((side, side), 10, layers=name)
    channels = (32, 64, 128) if name.startswith("dcec") else (50, 50)
    x = torch.zeros(1, side * side)
    hidden = [tuple(h.shape[1:]) for h in network.layers(x)[:-1]]
    assert hidden == [(c, s, s) for c, s in zip(channels, sizes, strict=True)]
    assert network.shapes == [(1, side, side), *hidden]
    assert network(x)[1].shape == x.shape


def test_every_published_shape_is_tested():
    [mark] = test_published_shapes.pytestmark
    assert {case[0] for case in mark.args[1]} == set(CONV_SHAPES)
    default = ConvAutoencoder((28, 28), 10)
    assert default.shapes == ConvAutoencoder((28, 28), 10, layers="dcec").shapes


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kernel", [1, 2, 3, 5])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("padding", [0, 1, 2])
def test_any_size_comes_back(channels, kernel, stride, padding):
    for h, w in itertools.product((5, 6, 7, 8), (5, 7, 10)):
        network = ConvAutoencoder((h, w, channels), 3, layers=((2, kernel, stride, padding),))
        x = torch.ones(2, h * w * channels)
        assert network(x)[1].shape == x.shape


def test_every_layer_comes_back_in_a_deep_network():
    for h, w in itertools.product(range(13, 21), (13, 16, 19)):
        network = ConvAutoencoder((h, w), 3, layers=((3, 5, 2, 2), (4, 4, 3, 1), (5, 2, 2, 0)))
        x = torch.zeros(1, h * w)
        below = [x, *network.layers(x)[:-1]]
        reconstruction = network.encode(x)
        for layer in reversed(range(4)):
            reconstruction = network.decode_layer(layer, reconstruction)
            assert reconstruction.shape == below[layer].shape


def test_conv_is_its_formula():
    """Against plain modules on images whose channels come first, nothing in place."""
    settings = {"activation": "leaky_relu", "code": "tanh", "output": "tanh"}
    network = ConvAutoencoder((5, 4, 3), 4, layers=((6, 3, 2, 1), (5, 2, 1, 0)), **settings)
    g, (conv0, conv1, dense) = nn.functional.leaky_relu, network.encoder
    mirror_dense, mirror1, mirror0 = network.decoder
    x = rows()
    images = torch.from_numpy(x.numpy().reshape(6, 5, 4, 3).transpose(0, 3, 1, 2).copy())
    h0 = g(conv0(images))
    h1 = g(conv1(h0))
    z = torch.tanh(dense(torch.einsum("nchw->nhwc", h1).reshape(6, -1)))
    up1 = g(mirror_dense(z)).reshape(6, 2, 1, 5)
    up1 = torch.einsum("nhwc->nchw", up1).contiguous()
    output = torch.tanh(mirror0(g(mirror1(up1))))
    for layer, expected in zip(network.layers(x), (h0, h1, z), strict=True):
        torch.testing.assert_close(layer, expected)
    expected = output.detach().numpy().transpose(0, 2, 3, 1).reshape(6, -1)
    np.testing.assert_allclose(network(x)[1].detach(), expected, atol=1e-6)


def test_rows_are_images_channels_last():
    """With weights that copy, each layer holds the rows themselves, and so does the output."""
    network = ConvAutoencoder((5, 4, 3), 60, layers=((3, 1, 1, 0),))
    for parameter in network.parameters():
        nn.init.zeros_(parameter)
    for module in (network.encoder[0], network.decoder[1]):
        nn.init.dirac_(module.weight)
    for module in (network.encoder[1], network.decoder[0]):
        nn.init.eye_(module.weight)
    x = rows().abs()  # so that ReLU copies too
    images, z = network.layers(x)
    np.testing.assert_array_equal(
        images.detach(), x.numpy().reshape(6, 5, 4, 3).transpose(0, 3, 1, 2)
    )
    assert torch.equal(z, x)
    assert torch.equal(network.decode(z), x)


@pytest.mark.parametrize("size", [(5, 4, 3), (5, 4, 1), (1, 1, 3)])
def test_rows_and_images_share_their_memory(size):
    x = rows(width=int(np.prod(size)))
    images = to_images(x, size)
    assert images.data_ptr() == x.data_ptr() == to_rows(images).data_ptr()
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(to_rows(images), x)


def test_convolutions_stay_channels_last():
    """In which they are quicker on a CPU, and the way to rows and back is no copy."""
    network = ConvAutoencoder((5, 4, 3), 4, layers=((6, 3, 2, 1), (5, 2, 1, 0)))
    *images, z = network.layers(rows())
    for layer in (2, 1):
        z = network.decode_layer(layer, z)
        images.append(z)
    assert all(h.is_contiguous(memory_format=torch.channels_last) for h in images)
    assert not any(h.is_contiguous() for h in images)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_shape": 28}, r"image_shape: got 28; it takes \(H, W\) or \(H, W, C\)"),
        ({"image_shape": (28,)}, r"image_shape: got \(28,\)"),
        ({"image_shape": (8, 8, 0)}, r"image_shape: got \(8, 8, 0\)"),
        ({"image_shape": (8, 8.5)}, r"image_shape: got \(8, 8.5\)"),
        ({"code_width": 0}, "code_width: got 0; it takes an integer of at least 1"),
        ({"layers": "lenet"}, "layers: got 'lenet'; it takes one of dcec, "),
        ({"layers": ()}, r"layers: got \(\); it takes one or more \(channels, kernel"),
        ({"layers": ((8, 3, 2),)}, r"layers: got \(\(8, 3, 2\),\)"),
        ({"layers": ((8, 3, 2, -1),)}, r"layers: got \(\(8, 3, 2, -1\),\)"),
        ({"layers": ((8, 3, 0, 1),)}, r"layers: got \(\(8, 3, 0, 1\),\)"),
        ({"layers": (8, 3, 2, 1)}, r"layers: got \(8, 3, 2, 1\)"),
        ({"layers": ((8, 3, 1.5, 1),)}, r"layers: got \(\(8, 3, 1.5, 1\),\)"),
        (
            {"image_shape": (8, 11), "layers": ((8, 3, 2, 0), (8, 3, 2, 0), (8, 4, 1, 1))},
            r"layers\[2\]: got images of 1 x 2; a kernel of 4 with padding 1 takes sides of at"
            r" least 2",
        ),
        ({"output": "relu"}, "output: got 'relu'"),
    ],
)
def test_bad_parameters_of_a_conv(arguments, message):
    with pytest.raises(ValueError, match=message):
        ConvAutoencoder(**{"image_shape": (16, 16), "code_width": 3, **arguments})


def test_rows_of_another_width_are_not_images():
    network = ConvAutoencoder((8, 8), 3, layers="depict-usps")
    for shape in ((5, 63), (5, 8, 8)):
        with pytest.raises(ValueError, match=r"image_shape: got \(8, 8, 1\) for rows of shape"):
            network.encode(torch.zeros(shape))


# Features.


@pytest.mark.parametrize("which", ["last", (0,), [-1], (1, 0), (-3, 2), np.array([0, 1, 2])])
@pytest.mark.parametrize("name", ["mlp", "conv"])
def test_features_are_layers_side_by_side(name, which):
    network, x = made(name), rows()
    layers = [layer.detach().numpy() for layer in network.layers(x)]
    flat = [h.reshape(6, h.shape[1], -1).mean(2) for h in layers]
    numbers = [-1] if isinstance(which, str) else which
    expected = np.concatenate([flat[number] for number in numbers], axis=1)
    result = features(network.layers(x), which)
    np.testing.assert_allclose(result.detach(), expected, atol=1e-6)
    assert features_width(network, which) == expected.shape[1]


@pytest.mark.parametrize("which", [(3,), (0, -4), (), "first", 2, None, (0.5,)])
def test_features_that_are_none(which):
    network = made("mlp")
    message = "features: got .*; it takes 'last' or numbers of layers from -3 to 2"
    with pytest.raises(ValueError, match=message):
        features(network.layers(rows()), which)
    with pytest.raises(ValueError, match=message):
        features_width(network, which)


def test_the_width_is_found_without_a_trace():
    network = made("user's images")
    network.encoder[1].eval()  # frozen, in a network that is trained
    state = {name: value.clone() for name, value in network.state_dict().items()}
    assert features_width(network) == 4
    assert network.training
    assert [module.training for module in network.encoder] == [True, False, True, True]
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    with pytest.raises(ValueError, match="features: got"):
        features_width(network, (0, 1))
    assert network.training


# A user's own, and none.


def test_a_users_images_are_channels_first():
    torch.manual_seed(0)
    x = rows()
    network = UserNetwork(nn.Flatten(), nn.Unflatten(1, (3, 5, 4)), image_shape=(5, 4, 3))
    expected = x.numpy().reshape(6, 5, 4, 3).transpose(0, 3, 1, 2).reshape(6, -1)
    np.testing.assert_array_equal(network.encode(x), expected)
    assert torch.equal(network(x)[1], x)


def test_shared_parameters_are_the_encoders():
    class Tied(nn.Module):
        def __init__(self, weight):
            super().__init__()
            self.weight, self.bias = weight, nn.Parameter(torch.zeros(60))

        def forward(self, z):
            return z @ self.weight + self.bias

    encoder = nn.Linear(60, 4)
    network = UserNetwork(encoder, Tied(encoder.weight), n_features=60)
    assert [p.shape for p in network.encoder_parameters()] == [(4, 60), (4,)]
    assert [p.shape for p in network.decoder_parameters()] == [(60,)]


def test_trying_a_users_network_leaves_it_as_it_was():
    encoder = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
    encoder[2].eval()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    UserNetwork(encoder, n_features=6)
    assert [module.training for module in encoder] == [True, True, False]
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    assert all(parameter.grad is None for parameter in encoder.parameters())


def test_lazy_modules_get_their_widths():
    network = UserNetwork(nn.LazyLinear(4), nn.LazyLinear(60), n_features=60)
    assert network.code_width == 4
    assert [tuple(p.shape) for p in network.parameters()] == [(4, 60), (4,), (60, 4), (60,)]


class Gives(nn.Module):
    def __init__(self, output):
        super().__init__()
        self.output = output

    def forward(self, x):
        return self.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"encoder": nn.Unflatten(1, (8, 8))},
            r"encoder: gave shape \(2, 8, 8\) for rows \(2, 64\); it takes a module whose output"
            r" is \(N, D\)",
        ),
        ({"encoder": Gives(torch.zeros(1, 4))}, r"encoder: gave shape \(1, 4\) for rows \(2, 64\)"),
        (
            {"encoder": Gives(torch.zeros(2, 4, dtype=torch.int64))},
            r"encoder: gave torch.int64 of shape \(2, 4\) for rows",
        ),
        ({"encoder": Gives((torch.zeros(2, 4), 1))}, r"encoder: gave tuple for rows \(2, 64\)"),
        (
            {"encoder": nn.Linear(63, 4)},
            r"encoder: failed for rows \(2, 64\): RuntimeError: .*shapes cannot be multiplied",
        ),
        (
            {"decoder": nn.Linear(4, 63)},
            r"decoder: gave shape \(2, 63\) for codes \(2, 4\); it takes a module whose output is"
            r" \(N, 64\)",
        ),
        ({"decoder": nn.Linear(5, 64)}, r"decoder: failed for codes \(2, 4\): RuntimeError"),
        (
            {
                "encoder": nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten()),
                "decoder": nn.Linear(72, 64),
                "image_shape": (8, 8),
            },
            r"decoder: gave shape \(2, 64\) for codes \(2, 72\); .* is \(N, 1, 8, 8\)",
        ),
        (
            {"image_shape": (8, 8, 1), "encoder": nn.Conv2d(1, 2, 3)},
            r"encoder: gave shape \(2, 2, 6, 6\) for images \(2, 1, 8, 8\)",
        ),
        ({"image_shape": (8, 9)}, r"image_shape: got \(8, 9, 1\) for rows of 64 values"),
        ({"n_features": None}, "n_features: got None; it takes an integer of at least 1"),
        ({"n_features": 0}, "n_features: got 0"),
    ],
)
def test_bad_networks_of_a_user(arguments, message):
    with pytest.raises(ValueError, match=message):
        UserNetwork(**{"encoder": nn.Linear(64, 4), "n_features": 64, **arguments})


def test_what_is_no_module():
    with pytest.raises(TypeError, match=r"encoder: got function; it takes a torch\.nn\.Module"):
        UserNetwork(lambda x: x, n_features=64)
    with pytest.raises(TypeError, match=r"decoder: got str; it takes a torch\.nn\.Module"):
        UserNetwork(nn.Linear(64, 4), "mirror", n_features=64)


def test_given_embeddings_are_their_own_codes():
    network, x = GivenEmbeddings(60), rows()
    assert [layer is x for layer in network.layers(x)] == [True]
    assert features(network.layers(x)) is x
    assert features_width(network) == network.code_width == 60
    assert network.state_dict() == {}
