from __future__ import annotations

import pickle
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import albumentations as A
import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image as PILImage
from PIL import ImageFilter, ImageOps
from scipy.stats import ks_2samp, kstest
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms import functional as F

from tk.runtime.errors import TkError
from tk.train.data.synth.scene import render_scene
from tk.train.run.sampling import sample_rng
from tk.train.ssl.multicrop import MultiCrop, MultiCropSpec, normalise, resize

Picture = NDArray[np.uint8]

BARE = MultiCropSpec(
    global_size=32,
    local_size=16,
    hflip_prob=0,
    color_jitter_prob=0,
    grayscale_prob=0,
    gaussian_blur_prob=0,
    solarize_prob=0,
)
"""Nothing but crops: tests switch on one thing at a time."""


def photo(side: int = 64) -> Picture:
    """Smooth and colourful, like a photo."""
    noise = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    soft = cv2.GaussianBlur(noise, (0, 0), 3)
    return np.asarray(cv2.normalize(soft, np.empty(0), 0, 255, cv2.NORM_MINMAX), np.uint8)


def flat(*color: int) -> Picture:
    return np.full((8, 8, 3), color, np.uint8)


def draws(spec: MultiCropSpec, image: Picture, count: int) -> list[list[Picture]]:
    """Views of a picture, made `count` times; position -> draws."""
    crop = MultiCrop(spec)
    made = [crop(image, np.random.default_rng((1, number))) for number in range(count)]
    return [list(views) for views in zip(*made, strict=True)]


def test_multicrop__gives_global_then_local_views() -> None:
    spec = MultiCropSpec(global_size=48, local_size=20, global_count=3, local_count=4)
    views = MultiCrop(spec)(photo(), np.random.default_rng(0))
    assert [view.shape for view in views] == [(48, 48, 3)] * 3 + [(20, 20, 3)] * 4
    assert all(view.dtype == np.uint8 and view.flags.c_contiguous for view in views)


def test_multicrop__equal_generators_give_equal_views() -> None:
    crop = MultiCrop(MultiCropSpec(global_size=32, local_size=16))
    image = photo()
    first = crop(image, np.random.default_rng(5))
    crop(image, np.random.default_rng(6))
    copies = (crop, MultiCrop(crop.spec), pickle.loads(pickle.dumps(crop)))
    for copy in copies:
        again = copy(image, np.random.default_rng(5))
        assert all((a == b).all() for a, b in zip(first, again, strict=True))
    other = crop(image, np.random.default_rng(6))
    assert not any((a == b).all() for a, b in zip(first, other, strict=True))
    assert not any((a == first[2]).all() for a in first[3:])
    assert (photo() == image).all()  # what goes in stays as it was


def test_multicrop__global_random_state_plays_no_part() -> None:
    crop = MultiCrop(BARE)
    np.random.seed(0)
    first = crop(photo(), np.random.default_rng(0))
    assert np.random.random() == np.random.RandomState(0).random()  # none was drawn
    np.random.seed(1)
    again = crop(photo(), np.random.default_rng(0))
    assert all((a == b).all() for a, b in zip(first, again, strict=True))


class Samples(Dataset[Any]):
    def __init__(self) -> None:
        self.crop = MultiCrop(MultiCropSpec(global_size=24, local_size=12, local_count=3))

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> Any:
        return self.crop(photo(), sample_rng(0, 1, index))


@pytest.mark.parametrize("workers", [1, 2])
def test_multicrop__does_not_depend_on_workers(workers: int) -> None:
    here = list(DataLoader(Samples(), batch_size=2, num_workers=0))
    there = list(
        DataLoader(Samples(), batch_size=2, num_workers=workers, multiprocessing_context="fork")
    )
    for a, b in zip(here, there, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (8, 8), (1, 200), (200, 1)])
def test_multicrop__small_and_narrow_pictures_are_enlarged(shape: tuple[int, int]) -> None:
    image = np.full((*shape, 3), 77, np.uint8)
    spec = replace(BARE, local_count=3)
    for seed in range(20):
        for view in MultiCrop(spec)(image, np.random.default_rng(seed)):
            assert (view == 77).all()


def boxes(views: list[Picture]) -> NDArray[np.float64]:
    """Left, top, right, bottom in 0..1 of views of `ramps`, read off their pixels."""
    found = []
    for view in views:
        x, y = view[..., 0].astype(float).mean(axis=0), view[..., 1].astype(float).mean(axis=1)
        half = (x[-1] - x[0]) / (len(x) - 1) / 2, (y[-1] - y[0]) / (len(y) - 1) / 2
        found.append((x[0] - half[0], y[0] - half[1], x[-1] + half[0], y[-1] + half[1]))
    return np.asarray(found) / 256


def ramps() -> Picture:
    """Red is the column, green the row."""
    image = np.zeros((256, 256, 3), np.uint8)
    image[..., 0] = np.arange(256)
    image[..., 1] = np.arange(256)[:, None]
    return image


@pytest.mark.parametrize(("place", "scale"), [(0, (0.4, 1.0)), (1, (0.4, 1.0)), (2, (0.05, 0.4))])
def test_crops__are_distributed_as_torchvisions(place: int, scale: tuple[float, float]) -> None:
    spec = replace(BARE, global_size=64, local_size=64, local_count=1)
    left, top, right, bottom = boxes(draws(spec, ramps(), 500)[place]).T
    torch.manual_seed(0)
    canvas = torch.zeros(3, 256, 256)
    made = [RandomResizedCrop.get_params(canvas, list(scale), [3 / 4, 4 / 3]) for _ in range(2000)]
    y, x, h, w = np.asarray(made, float).T / 256
    width, height = right - left, bottom - top
    for ours, theirs in (
        (width * height, w * h),
        (np.log(width / height), np.log(w / h)),
        ((left + right) / 2, x + w / 2),
        ((top + bottom) / 2, y + h / 2),
    ):
        assert ks_2samp(ours, theirs).pvalue > 0.001


CASES: dict[str, tuple[dict[str, Any], Any, tuple[float, float, float]]] = {
    "hflip": ({"hflip_prob": 0.5}, lambda v: v[0, 0, 0] > v[0, -1, 0], (0.5, 0.5, 0.5)),
    "vflip": ({"vflip_prob": 0.3}, lambda v: v[0, 0, 1] > v[-1, 0, 1], (0.3, 0.3, 0.3)),
    # Half of the turns, by 90 and 270 degrees, exchange rows and columns.
    "rotate": ({"rotate_prob": 1.0}, lambda v: v[0, 0, 0] == v[0, -1, 0], (0.5, 0.5, 0.5)),
    "gray": ({"grayscale_prob": 0.2}, lambda v: (np.ptp(v, axis=2) == 0).all(), (0.2, 0.2, 0.2)),
    "solarize": ({"solarize_prob": 0.2}, lambda v: (v[..., 2] == 55).all(), (0.0, 0.2, 0.0)),
    "jitter": (
        {"color_jitter_prob": 0.8},
        lambda v: (v[..., 2] != 200).any(),
        (0.8, 0.8, 0.8),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_frequencies__are_those_asked_for(name: str) -> None:
    options, happened, wanted = CASES[name]
    image = ramps()
    image[..., 2] = 200
    spec = replace(BARE, local_count=1, **options)
    for views, probability in zip(draws(spec, image, 400), wanted, strict=True):
        share = np.mean([bool(happened(view)) for view in views])
        deviation = np.sqrt(probability * (1 - probability) / 400)
        assert abs(share - probability) <= 4 * deviation


@pytest.mark.parametrize(
    ("blur", "wanted"), [((1.0, 0.1, 0.5), (1.0, 0.1, 0.5)), (0.7, (0.7, 0.7, 0.7))]
)
def test_frequencies__of_the_blur(blur: Any, wanted: tuple[float, float, float]) -> None:
    spec = replace(
        BARE,
        local_count=1,
        global_scale=(1.0, 1.0),
        gaussian_blur_prob=blur,
        gaussian_blur_sigma=(1.0, 2.0),
    )
    sharp = draws(replace(spec, gaussian_blur_prob=0), noise(), 400)
    for views, others, probability in zip(draws(spec, noise(), 400), sharp, wanted, strict=True):
        limit = min(float(view.std()) for view in others)
        share = np.mean([view.std() < limit for view in views])
        assert abs(share - probability) <= 4 * np.sqrt(probability * (1 - probability) / 400)


def noise() -> Picture:
    return np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)


def test_jitter__factors_are_uniform_in_their_ranges() -> None:
    only = replace(BARE, local_count=0, color_jitter_prob=1, contrast=0, saturation=0, hue=0)
    levels = [view[0, 0, 0] / 100 for view in draws(only, flat(100, 100, 100), 400)[0]]
    assert kstest(levels, "uniform", args=(0.6, 0.8)).pvalue > 0.001
    colors = replace(only, brightness=0, saturation=0.2)
    # Grey of this red is 0.299 x 200 = 60, so green runs from 60 x -0.2 (clipped) to 60 x 0.2.
    greens = np.array([view[0, 0, 1] for view in draws(colors, flat(200, 0, 0), 400)[0]])
    assert np.mean(greens == 0) == pytest.approx(0.5, abs=0.1)
    assert kstest(greens[greens > 0] / 60, "uniform", args=(0.0, 0.2)).pvalue > 1e-4
    turned = replace(only, brightness=0, hue=0.1)
    hues = [
        cv2.cvtColor(view, cv2.COLOR_RGB2HSV)[0, 0, 0] / 180
        for view in draws(turned, flat(0, 200, 0), 400)[0]
    ]
    assert kstest(np.array(hues) - 1 / 3, "uniform", args=(-0.1, 0.2)).pvalue > 1e-4


def fixed(name: str, factor: float) -> Any:
    """ColorJitter that does one thing."""
    ranges = {key: (1.0, 1.0) for key in ("brightness", "contrast", "saturation")}
    ranges |= {"hue": (0.0, 0.0), name: (factor, factor)}
    return lambda image: A.ColorJitter(**ranges, p=1)(image=image)["image"]


OPERATIONS: dict[str, tuple[Any, Any]] = {
    "brightness": (fixed("brightness", 1.3), partial(F.adjust_brightness, brightness_factor=1.3)),
    "contrast": (fixed("contrast", 0.7), partial(F.adjust_contrast, contrast_factor=0.7)),
    "saturation": (fixed("saturation", 1.2), partial(F.adjust_saturation, saturation_factor=1.2)),
    "hue": (fixed("hue", 0.08), partial(F.adjust_hue, hue_factor=0.08)),
    "gray": (
        lambda image: A.ToGray(p=1)(image=image)["image"],
        lambda image: F.rgb_to_grayscale(image, 3),
    ),
    "solarize": (
        lambda image: A.Solarize((128 / 255, 128 / 255), p=1)(image=image)["image"],
        lambda image: ImageOps.solarize(image, 128),
    ),
    "blur": (
        lambda image: A.GaussianBlur(0, (1.5, 1.5), p=1)(image=image)["image"],
        lambda image: image.filter(ImageFilter.GaussianBlur(1.5)),
    ),
}
MEAN_DIFFERENCE = {"hue": 2.0}
"""Levels of 255; OpenCV has 180 hues where Pillow has 256."""


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations__do_to_pixels_what_those_of_lightly_do(name: str) -> None:
    ours, theirs = OPERATIONS[name]
    image = photo(160)
    found = np.asarray(ours(image), float)
    expected = np.asarray(theirs(PILImage.fromarray(image)), float)
    assert found.shape == expected.shape
    assert np.abs(found - expected).mean() <= MEAN_DIFFERENCE.get(name, 0.6)
    if name in ("solarize", "brightness", "gray"):
        assert np.abs(found - expected).max() <= 1


@pytest.mark.parametrize("side", [30, 96, 140, 170, 200, 270, 300, 600])
def test_resize__is_nearly_pillows_bicubic_and_never_skips_pixels(side: int) -> None:
    image = render_scene(0, 0, 800).image[:side, :side]
    found = resize(image, 96).astype(float)
    filtered = PILImage.fromarray(image).resize((96, 96), PILImage.Resampling.BICUBIC)
    difference = np.abs(found - np.asarray(filtered, float)).mean()
    skipping = cv2.resize(image, (96, 96), interpolation=cv2.INTER_CUBIC)
    if side <= 96:
        assert difference < 0.5
    else:
        assert difference < 0.8
        assert difference < 0.8 * np.abs(skipping - np.asarray(filtered, float)).mean() + 0.2


def test_resize__makes_squares_of_anything() -> None:
    for shape in ((1, 1), (1, 50), (50, 1), (17, 40), (300, 40)):
        assert (resize(np.full((*shape, 3), 9, np.uint8), 12) == np.full((12, 12, 3), 9)).all()


def test_defaults__are_those_of_lightlys_dino_transform() -> None:
    transforms = pytest.importorskip("lightly.transforms", reason="lightly is not installed")
    spec = MultiCropSpec()
    made = transforms.DINOTransform(n_local_views=8).transforms
    assert len(made) == spec.global_count + spec.local_count
    for number, blur in ((0, 1.0), (1, 0.1), (2, 0.5)):
        crop, flip, _, _, jitter, gray, gauss, solarize, _, scale = made[
            number
        ].transform.transforms
        local = number == 2
        assert crop.size[0] == (spec.local_size if local else spec.global_size)
        assert tuple(crop.scale) == (spec.local_scale if local else spec.global_scale)
        assert flip.p == spec.hflip_prob
        assert jitter.p == spec.color_jitter_prob
        color = jitter.transforms[0]
        for name in ("brightness", "contrast", "saturation"):
            limit = getattr(spec, name)
            assert getattr(color, name) == pytest.approx((1 - limit, 1 + limit))
        assert color.hue == pytest.approx((-spec.hue, spec.hue))
        assert gray.p == spec.grayscale_prob
        assert gauss.prob == blur == spec.blur_probs()[number]
        assert tuple(gauss.sigmas) == spec.gaussian_blur_sigma
        assert solarize.prob == (spec.solarize_prob if number == 1 else 0)
        assert solarize.threshold == 128
        assert (tuple(scale.mean), tuple(scale.std)) == (spec.mean, spec.std)


def test_normalise__is_torchvisions() -> None:
    spec = MultiCropSpec(mean=(0.481, 0.457, 0.408), std=(0.268, 0.261, 0.276))
    batch = torch.from_numpy(np.stack([photo(20), photo(20)[::-1]]))
    found = normalise(batch[:, None], spec)
    assert found.shape == (2, 1, 3, 20, 20)
    assert found.is_contiguous()
    for crop, image in zip(found[:, 0], batch, strict=True):
        expected = F.normalize(F.to_tensor(image.numpy()), list(spec.mean), list(spec.std))
        torch.testing.assert_close(crop, expected, rtol=1e-6, atol=2e-6)
    assert normalise(torch.zeros(2, 0, 5, 5, 3, dtype=torch.uint8), spec).shape == (2, 0, 3, 5, 5)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("hflip_prob", 1.5),
        ("gaussian_blur_prob", (0.5, 0.5, -0.1)),
        ("gaussian_blur_sigma", (2.0, 0.1)),
        ("global_scale", (0.0, 1.0)),
        ("local_scale", (0.4, 0.05)),
        ("local_size", 0),
        ("global_count", 0),
        ("local_count", -1),
        ("std", (0.2, 0.0, 0.2)),
        ("hue", 0.6),
        ("brightness", -0.1),
    ],
)
def test_spec__bad_values_are_named(name: str, value: Any) -> None:
    assert name in {field.name for field in fields(MultiCropSpec)}
    with pytest.raises(TkError, match=rf"{name} of the crops(.|\n)*expected"):
        MultiCropSpec(**{name: value})


@pytest.mark.parametrize(
    "image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)]
)
def test_multicrop__other_arrays_are_refused(image: Any) -> None:
    with pytest.raises(TkError, match="expected: \\(H, W, 3\\) uint8"):
        MultiCrop(BARE)(image, np.random.default_rng(0))


def test_albumentations__is_known_to_two_modules_only() -> None:
    root = Path(__file__).parents[3]
    users = {
        path.relative_to(root / part / "tk").as_posix()
        for part in ("train", "export", "runtime")
        for path in (root / part / "tk").rglob("*.py")
        if "import albumentations" in path.read_text(encoding="utf-8")
    }
    assert users == {"train/embedder/augment.py", "train/ssl/multicrop.py"}
