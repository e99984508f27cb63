import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from image_classification.config.schema import DataConfig
from image_classification.core.errors import DataError
from image_classification.data.formats.folder import open_index
from image_classification.data.loaders.decode import decode_rgb, eval_image
from image_classification.data.loaders.pytorch import ImageBatches
from image_classification.data.order import PADDING
from image_classification.data.transforms import eval_transform, train_transform


def blocks(width_px: int = 96, height_px: int = 64) -> Image.Image:
    rng = np.random.default_rng(3)
    pixels = rng.integers(0, 256, (height_px // 8, width_px // 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels.repeat(8, 0).repeat(8, 1))


def save(image: Image.Image, path: Path, file_format: str, **options: object) -> str:
    image.save(path, file_format, **options)
    return str(path)


def decode_file(path: str) -> torch.Tensor:
    return decode_rgb(np.fromfile(path, dtype=np.uint8), path)


EXIF_ROTATED = Image.Exif()
EXIF_ROTATED[0x0112] = 6


@pytest.mark.parametrize(
    ("mode", "file_format", "options"),
    [
        ("RGB", "JPEG", {"quality": 95}),
        ("RGB", "JPEG", {"progressive": True}),
        ("RGB", "JPEG", {"exif": EXIF_ROTATED}),
        ("L", "JPEG", {}),
        ("CMYK", "JPEG", {}),
        ("RGB", "PNG", {}),
        ("RGBA", "PNG", {}),
        ("P", "PNG", {}),
        ("1", "PNG", {}),
    ],
)
def test_decodes_to_the_rgb_pil_gives(
    tmp_path: Path, mode: str, file_format: str, options: dict[str, object]
) -> None:
    """ImageNet has grey and CMYK JPEGs, and a PNG called .JPEG; EXIF rotation is left alone."""
    path = save(blocks().convert(mode), tmp_path / "image.JPEG", file_format, **options)
    image = decode_file(path)
    assert (image.dtype, tuple(image.shape)) == (torch.uint8, (3, 64, 96))
    with Image.open(path) as reference:
        expected = torch.from_numpy(np.array(reference.convert("RGB"))).permute(2, 0, 1)
    assert (image.int() - expected.int()).abs().max() <= 2


def test_sixteen_bits_a_channel_become_eight(tmp_path: Path) -> None:
    grey = np.linspace(0, 65535, 64, dtype=np.uint16).reshape(8, 8)
    image = decode_file(save(Image.fromarray(grey), tmp_path / "deep.png", "PNG"))
    assert image.dtype == torch.uint8
    assert (image[0].numpy().astype(int) - grey // 256).max() <= 1
    assert image.float().mean().item() == pytest.approx(127.5, abs=1)


@pytest.mark.parametrize("content", [b"", b"not an image", None])
def test_what_cannot_be_decoded_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "bad.JPEG"
    if content is None:
        save(blocks(), path, "JPEG")
        path.write_bytes(path.read_bytes()[:400])
    else:
        path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        decode_file(str(path))
    assert caught.value.message.startswith(f"cannot decode {path}: ")
    assert caught.value.message.count(str(path)) == 1


def test_animations_are_refused(tmp_path: Path) -> None:
    frames = [blocks(), blocks().rotate(180)]
    path = save(frames[0], tmp_path / "a.jpg", "GIF", save_all=True, append_images=frames[1:])
    with pytest.raises(DataError, match="animation of 2 frames"):
        decode_file(path)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_evaluation_is_torchvisions_resize_and_centre_crop(interpolation: str) -> None:
    transform = eval_transform(DataConfig(image_size=24, resize=28, interpolation=interpolation))
    reference = v2.Compose(
        [
            v2.Resize(28, interpolation=v2.InterpolationMode(interpolation), antialias=True),
            v2.CenterCrop(24),
        ]
    )
    for width_px, height_px in ((96, 64), (64, 96), (64, 64), (104, 24)):
        image = torch.from_numpy(np.array(blocks(width_px, height_px))).permute(2, 0, 1)
        assert torch.equal(eval_image(image, transform), reference(image))


def test_squash_keeps_the_whole_width() -> None:
    image = torch.zeros((3, 64, 128), dtype=torch.uint8)
    image[:, :, :8] = 255
    image[:, :, -8:] = 255
    data = DataConfig(image_size=32, resize=32, resize_mode="squash")
    squashed = eval_image(image, eval_transform(data))
    assert squashed.shape == (3, 32, 32)
    assert squashed[0, 0, 0] == squashed[0, 0, -1] == 255


MakeBatches = Callable[..., ImageBatches]


@pytest.fixture
def make_batches(image_folder: Path) -> MakeBatches:
    def make(seed: int = 0, **data: object) -> ImageBatches:
        config = DataConfig(image_size=24, **data)  # type: ignore[arg-type]
        index = open_index(image_folder, "train", 2)
        return ImageBatches(index, train_transform(config), seed, "nchw")

    return make


def images_of(batches: ImageBatches, epoch: int, *indices: int) -> torch.Tensor:
    batch = batches[(epoch, np.array(indices, dtype=np.int64))]
    assert batch.error == ""
    return batch.images


@pytest.mark.parametrize("augmentation", ["none", "autoaugment"])
def test_pixels_depend_on_seed_epoch_and_index_alone(
    make_batches: MakeBatches, augmentation: str
) -> None:
    batches = make_batches(augmentation=augmentation)
    image = images_of(batches, 3, 5)[0]
    torch.manual_seed(1234)
    assert torch.equal(images_of(batches, 3, 1, 5, 2)[1], image)
    assert torch.equal(images_of(make_batches(augmentation=augmentation), 3, 5)[0], image)
    assert not torch.equal(images_of(batches, 4, 5)[0], image)
    assert not torch.equal(images_of(make_batches(seed=1, augmentation=augmentation), 3, 5), image)


def test_autoaugment_changes_images_and_leaves_the_global_generator(
    make_batches: MakeBatches,
) -> None:
    plain, augmented = make_batches(), make_batches(augmentation="autoaugment")
    torch.manual_seed(0)
    expected = torch.rand(4)
    torch.manual_seed(0)
    everyone = list(range(12))
    changed = images_of(augmented, 0, *everyone) != images_of(plain, 0, *everyone)
    assert torch.equal(torch.rand(4), expected)
    assert int(changed.flatten(1).any(1).sum()) >= 6


def test_flips_happen_as_often_as_asked(make_batches: MakeBatches) -> None:
    def whole(hflip_prob: float) -> torch.Tensor:
        batches = make_batches(hflip_prob=hflip_prob)
        return torch.cat([images_of(batches, epoch, *range(12)) for epoch in range(20)])

    never, always, half = whole(0.0), whole(1.0), whole(0.5)
    assert torch.equal(always, never.flip(-1))
    flipped = (half == always).flatten(1).all(1)
    assert torch.equal(half[~flipped], never[~flipped])
    assert 90 <= int(flipped.sum()) <= 150  # 120 expected, standard deviation 7.7


def test_padding(make_batches: MakeBatches) -> None:
    batch = make_batches()[(0, np.array([8, PADDING], dtype=np.int64))]
    assert batch.labels.tolist() == [1, 0]
    assert batch.valid.tolist() == [True, False]
    assert batch.images[0].any()
    assert not batch.images[1].any()


def test_a_train_image_that_cannot_be_decoded_costs_its_sample(
    make_batches: MakeBatches, image_folder: Path
) -> None:
    request = (0, np.array([2, 8, 9, 3], dtype=np.int64))
    whole = make_batches()[request]
    (image_folder / "train" / "dog" / "1.JPEG").write_bytes(b"not an image")
    (image_folder / "train" / "dog" / "2.JPEG").write_bytes(b"")
    batch = make_batches()[request]
    assert batch.error == ""
    assert torch.equal(batch.images, whole.images[[0, 3, 3, 3]])
    assert batch.labels.tolist() == [0, 0, 0, 0]
    assert bool(batch.valid.all())
    names = [name for name, _ in batch.undecodable]
    assert names == ["train/dog/1.JPEG", "train/dog/2.JPEG"]
    assert all(str(image_folder / name) in reason for name, reason in batch.undecodable)


def test_a_micro_batch_without_any_image_is_an_error(
    make_batches: MakeBatches, image_folder: Path
) -> None:
    (image_folder / "train" / "dog" / "1.JPEG").write_bytes(b"not an image")
    batch = make_batches()[(0, np.array([8], dtype=np.int64))]
    assert "no image of a micro-batch of 1" in batch.error
    assert "dog/1.JPEG" in batch.error


def test_validation_loses_no_image(image_folder: Path) -> None:
    (image_folder / "val" / "dog" / "1.JPEG").write_bytes(b"not an image")
    transform = eval_transform(DataConfig(image_size=24, resize=28))
    batches = ImageBatches(open_index(image_folder, "val", 2), transform, 0, "nchw")
    batch = batches[(0, np.arange(5, dtype=np.int64))]
    assert batch.error.startswith(f"cannot decode {image_folder / 'val' / 'dog' / '1.JPEG'}: ")
    assert batch.undecodable == ()


def test_a_data_set_that_has_gone_is_an_error(
    make_batches: MakeBatches, image_folder: Path
) -> None:
    batches = make_batches()
    (image_folder / "train").rename(image_folder / "elsewhere")
    assert "has gone" in batches[(0, np.array([1, 2], dtype=np.int64))].error


def test_batches_travel_to_other_processes(make_batches: MakeBatches) -> None:
    batches = make_batches()
    expected = images_of(batches, 0, 3, 9)
    copy = pickle.loads(pickle.dumps(batches))
    assert torch.equal(images_of(copy, 0, 3, 9), expected)
