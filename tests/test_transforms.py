"""Views of rows: their geometry, their noise, and that a generator's state decides all of it."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Generator, Tensor

from deepclust import transforms
from deepclust.transforms import FeatureNoise, ImageTransform
from tests.cases import DTYPES, HALVES, lay_out

SHAPES = [(8, 8), (16, 16), (12, 20), (9, 5)]
ALL = [ImageTransform((8, 8), noise=0.1), ImageTransform((4, 8, 2)), FeatureNoise()]
each = pytest.mark.parametrize("transform", ALL, ids=repr)


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def rows(n: int, d: int = 64, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(n, d, generator=seeded(7), dtype=torch.float64).to(dtype)


def places(height: int, width: int) -> np.ndarray:
    """x and y of each pixel (H W, 2)."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x.ravel(), y.ravel()], 1).astype(float)


def sources(transform: ImageTransform, n: int, seed: int = 0) -> np.ndarray:
    """The maps (n, 3, 2) from (x, y, 1) of a pixel to the place that it is taken from.

    Found with images whose two channels are x and y, in which interpolation is exact: what comes
    out between the borders is the place itself.
    """
    height, width = transform.image_shape[:2]
    image = torch.from_numpy(places(height, width)).flatten()
    two = dataclasses.replace(transform, image_shape=(height, width, 2), noise=0.0)
    found = two(image.expand(n, -1), seeded(seed)).reshape(n, -1, 2).numpy()
    design = np.column_stack([places(height, width), np.ones(height * width)])
    maps = np.empty((n, 3, 2))
    for i, place in enumerate(found):
        inside = ((place > 0) & (place < [width - 1, height - 1])).all(1)
        assert inside.sum() > 3
        maps[i], *_ = np.linalg.lstsq(design[inside], place[inside], rcond=None)
        np.testing.assert_allclose(design[inside] @ maps[i], place[inside], atol=1e-9)
    return maps


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("degrees", [15.0, 180.0])
def test_turns_shifts_and_scales_stay_in_their_ranges_and_fill_them(
    shape: tuple[int, int], degrees: float
) -> None:
    height, width = shape
    maps = sources(ImageTransform(shape, degrees, translate=0.1, zoom=0.2), 300)
    linear = maps[:, :2].transpose(0, 2, 1)
    # a turn times a number, in pixels, whatever the image's shape; and no mirror
    np.testing.assert_allclose(linear[:, 0, 0], linear[:, 1, 1], atol=1e-9)
    np.testing.assert_allclose(linear[:, 0, 1], -linear[:, 1, 0], atol=1e-9)
    middle = np.array([(width - 1) / 2, (height - 1) / 2])
    shifts = linear @ middle + maps[:, 2] - middle
    drawn = {
        "turn": np.degrees(np.arctan2(linear[:, 1, 0], linear[:, 0, 0])) / degrees,
        "zoom": (1 / np.sqrt(np.linalg.det(linear)) - 1) / 0.2,
        "x": shifts[:, 0] / (0.1 * width),
        "y": shifts[:, 1] / (0.1 * height),
    }
    for name, values in drawn.items():
        assert np.abs(values).max() <= 1 + 1e-9, name
        # uniform from -1 to 1: the standard errors of mean and deviation are 0.033 and 0.015
        assert abs(values.mean()) < 0.15, name
        assert abs(values.std() - 1 / math.sqrt(3)) < 0.07, name
    # and each is drawn for itself
    correlations = np.corrcoef(np.stack(list(drawn.values()))) - np.eye(4)
    assert np.abs(correlations).max() < 0.25


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("strength", [(15.0, 0.1, 0.1), (180.0, 0.2, 0.3)])
def test_pixels_are_interpolated_and_the_border_goes_on(
    shape: tuple[int, int], strength: tuple[float, float, float]
) -> None:
    transform = ImageTransform(shape, *strength)
    x = rows(20, shape[0] * shape[1], torch.float64)
    design = np.column_stack([places(*shape), np.ones(x.shape[1])])
    for row, view, place in zip(x, transform(x, seeded()), sources(transform, 20), strict=True):
        x_of, y_of = (design @ place).T
        expected = ndimage.map_coordinates(
            row.reshape(shape).numpy(), [y_of, x_of], order=1, mode="nearest"
        )
        np.testing.assert_allclose(view.numpy(), expected, atol=1e-9)


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_strength_is_no_change(dtype: torch.dtype) -> None:
    x = rows(5, 12 * 20, dtype)
    view = ImageTransform((12, 20), 0.0, 0.0, 0.0)(x, seeded())
    # places are numbers up to 20, with a few roundings
    torch.testing.assert_close(view, x, rtol=0, atol=100 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("background", [0.0, -1.5, 255.0])
def test_a_background_of_any_value_stays(background: float) -> None:
    x = torch.full((20, 64), background)
    view = ImageTransform((8, 8), 180.0, 0.3, 0.3)(x, seeded())
    torch.testing.assert_close(view, x)


def test_channels_are_last_and_move_together() -> None:
    colours = torch.tensor([1.0, 2.0, 3.0])
    x = rows(5).unsqueeze(2) * colours
    view = ImageTransform((8, 8, 3))(x.flatten(1), seeded()).reshape(5, 64, 3)
    grey = ImageTransform((8, 8))(rows(5), seeded())
    torch.testing.assert_close(view, grey.unsqueeze(2) * colours)


def test_each_row_has_its_own_view() -> None:
    x = rows(1).expand(10, -1)
    for transform in (ImageTransform((8, 8)), FeatureNoise(), FeatureNoise(std=0.0)):
        assert len(transform(x, seeded()).unique(dim=0)) == 10


def test_noise_of_images_is_a_share_of_the_spread_of_the_batch() -> None:
    transform = ImageTransform((8, 8), 0.0, 0.0, 0.0, noise=0.5)
    for scale in (1.0, 100.0):
        x = scale * rows(200) + 3
        x[:, :32] = 3  # a part of the image without values of its own
        noise = transform(x, seeded()) - x
        # of 12,800 values: the standard error of the deviation is 0.6 %, of the mean 0.9 %
        assert float(noise.std() / x.std()) == pytest.approx(0.5, rel=0.03)
        assert abs(float(noise.mean() / noise.std())) < 0.04
        assert float(noise[:, :32].std() / noise[:, 32:].std()) == pytest.approx(1.0, rel=0.05)


def test_feature_noise_is_a_share_of_the_spread_of_its_column() -> None:
    spread = torch.tensor([0.0, 1.0, 50.0])
    x = 7 + spread * torch.randn(5000, 3, generator=seeded(1))
    noise = FeatureNoise(std=0.2, drop=0.0)(x, seeded()) - x
    # of 5,000 values: the standard error is 1 %
    torch.testing.assert_close(noise.std(0), 0.2 * x.std(0), rtol=0.05, atol=0)
    assert not noise[:, 0].any()


def test_dropped_features_are_zero_and_the_others_as_they_were() -> None:
    x = rows(200) + 1
    view = FeatureNoise(std=0.0, drop=0.25)(x, seeded())
    dropped = view == 0
    assert torch.equal(view[~dropped], x[~dropped])
    # of 12,800 draws: the standard error of the share is 0.004
    assert float(dropped.float().mean()) == pytest.approx(0.25, abs=0.015)
    assert torch.equal(FeatureNoise(std=0.0, drop=0.0)(x, seeded()), x)


# --- what all promise alike ----------------------------------------------------------------------


@each
def test_the_state_of_the_generator_decides(transform: Any) -> None:
    x, generator = rows(6), seeded()
    first, second = transform(x, generator), transform(x, generator)
    assert not torch.equal(first, second)
    assert torch.equal(transform(x, seeded()), first)
    torch.rand(5)  # what others draw from torch's global generator does not matter
    state = generator.get_state()
    third = transform(x, generator)
    generator.set_state(state)
    assert torch.equal(transform(x, generator), third)


@each
def test_a_view_is_in_the_type_of_its_rows(transform: Any) -> None:
    for dtype in HALVES:  # computed in float32
        x = rows(6, dtype=dtype)
        assert torch.equal(transform(x, seeded()), transform(x.float(), seeded()).to(dtype))
    single, double = transform(rows(6), seeded()), transform(rows(6).double(), seeded())
    assert single.dtype == torch.float32
    # places are numbers up to 8, with a few roundings
    torch.testing.assert_close(single.double(), double, rtol=0, atol=4e-6)


@each
def test_autocast_changes_nothing(transform: Any) -> None:
    expected = transform(rows(6), seeded())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(transform(rows(6), seeded()), expected)


@each
def test_rows_are_read_wherever_they_lie_and_stay_as_they_are(transform: Any) -> None:
    x = rows(6)
    strided = lay_out(x, "strided")
    assert torch.equal(transform(strided, seeded()), transform(x, seeded()))
    assert torch.equal(x, rows(6))


@each
@pytest.mark.parametrize("n", [0, 1])
def test_few_rows(transform: Any, n: int) -> None:
    view = transform(rows(n), seeded())
    assert view.shape == (n, 64)
    assert view.isfinite().all()


@each
def test_parameters_are_the_whole_transform(transform: Any) -> None:
    tree = json.loads(json.dumps(dataclasses.asdict(transform)))
    again = type(transform)(**tree)
    assert again == transform
    assert hash(again) == hash(transform)
    assert eval(repr(transform), vars(transforms)) == transform
    assert sum(transform == other for other in ALL) == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        transform.drop = 0.5


@each
def test_rows_that_do_not_fit(transform: Any) -> None:
    with pytest.raises(ValueError, match=r"^x: got shape \(64,\)"):
        transform(torch.zeros(64), seeded())
    with pytest.raises(TypeError, match=r"^x: got torch\.int64"):
        transform(torch.zeros(2, 64, dtype=torch.int64), seeded())
    with pytest.raises(TypeError, match=r"^x: got ndarray"):
        transform(np.zeros((2, 64)), seeded())


def test_rows_of_another_width() -> None:
    with pytest.raises(ValueError, match=r"^x: got 65 columns .*; it takes 64"):
        ImageTransform((8, 8))(torch.zeros(2, 65), seeded())


@pytest.mark.parametrize(
    "shape", [(8,), (8, 8, 1, 1), (0, 8), (8, -1), 64, None, (8.0, 8.0), "8x8"]
)
def test_shapes_that_are_no_image(shape: Any) -> None:
    with pytest.raises(ValueError, match=r"^image_shape: got .*; it takes \(H, W\) or"):
        ImageTransform(shape)


@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf, "1", None, True])
@pytest.mark.parametrize("name", ["degrees", "translate", "zoom", "noise", "std", "drop"])
def test_strengths_that_are_none(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"^{name}: got .*; it takes a number "):
        FeatureNoise(**{name: value}) if name in ("std", "drop") else ImageTransform(
            (8, 8), **{name: value}
        )


def test_strengths_that_are_too_large() -> None:
    for name, value in {"degrees": 181, "translate": 1.1, "zoom": 1.0}.items():
        with pytest.raises(ValueError, match=rf"^{name}: got {value}; it takes a number from 0 to"):
            ImageTransform((8, 8), **{name: value})
    with pytest.raises(ValueError, match=r"^drop: got 1; it takes a number from 0 to below 1$"):
        FeatureNoise(drop=1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@each
def test_views_on_a_gpu(transform: Any) -> None:
    x = rows(6).cuda()
    view = transform(x, seeded())
    assert view.device == x.device
    assert torch.equal(transform(x, seeded()), view)
    if transform == ALL[1]:  # the geometry is that of the CPU
        torch.testing.assert_close(view.cpu(), transform(rows(6), seeded()), rtol=0, atol=1e-5)
