"""The section ``data`` of a run's configuration; see `image_classification.config.schema`."""

from __future__ import annotations

from dataclasses import dataclass

from image_classification.config.schema_setting import setting


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the images are and what is done to them. Sizes in pixels."""

    path: str = setting("/imagenet", doc="folder with train/ and val/, or 'demo', or 'synthetic'")
    backend: str = setting("pytorch", doc="registered data backend")
    format: str = setting(
        "auto",
        doc="how the folder holds the images; auto looks at what is there",
        choices=("auto", "folder", "tfrecord", "recordio", "webdataset"),
    )
    image_size: int = setting(224, doc="side of the training crop and the validation crop", min=8)
    resize: int = setting(256, doc="validation resize before the centre crop", min=8)
    resize_mode: str = setting(
        "short_side",
        doc="short_side keeps the aspect ratio; squash resizes to resize x resize",
        choices=("short_side", "squash"),
    )
    interpolation: str = setting(
        "bilinear", doc="resampling kernel", choices=("bilinear", "bicubic", "nearest")
    )
    antialias: bool = setting(True, doc="low-pass before downscaling, as PIL does")
    crop_area_min: float = setting(0.08, doc="least area share of the random crop", min=0.0)
    crop_area_max: float = setting(1.0, doc="largest area share of the random crop", min=0.0)
    crop_ratio_min: float = setting(3 / 4, doc="least width/height of the random crop", min=0.0)
    crop_ratio_max: float = setting(4 / 3, doc="largest width/height of the random crop", min=0.0)
    hflip_prob: float = setting(0.5, doc="probability of a horizontal flip", min=0.0, max=1.0)
    augmentation: str = setting(
        "none",
        doc="policy applied to the training images after crop and flip (AutoAugment "
        "arXiv:1805.09501, RandAugment arXiv:1909.13719, TrivialAugment wide arXiv:2103.10158)",
        choices=("none", "autoaugment", "randaugment", "trivialaugment"),
    )
    augmentation_fill: int = setting(
        128, doc="grey value the policy fills with where it moves the image away", min=0, max=255
    )
    randaugment_ops: int = setting(2, doc="operations an image (randaugment only)", min=1, max=16)
    randaugment_magnitude: int = setting(
        9, doc="strength of the operations, of 31 steps (randaugment only)", min=0, max=30
    )
    colour_jitter_brightness: float = setting(
        0.0, doc="x: brightness times a factor in max(0, 1-x)..1+x; 0: off", min=0.0
    )
    colour_jitter_contrast: float = setting(
        0.0, doc="x: contrast times a factor in max(0, 1-x)..1+x; 0: off", min=0.0
    )
    colour_jitter_saturation: float = setting(
        0.0, doc="x: saturation times a factor in max(0, 1-x)..1+x; 0: off", min=0.0
    )
    colour_jitter_hue: float = setting(
        0.0, doc="x: hue turned by a share of the circle in -x..x; 0: off", min=0.0, max=0.5
    )
    random_erasing: float = setting(
        0.0,
        doc="probability of filling a random rectangle with the mean colour (arXiv:1708.04896)",
        min=0.0,
        max=1.0,
    )
    mean: tuple[float, float, float] = setting(
        (0.485, 0.456, 0.406), doc="per-channel mean of images in 0..1, subtracted"
    )
    std: tuple[float, float, float] = setting(
        (0.229, 0.224, 0.225), doc="per-channel deviation of images in 0..1, divided by"
    )
    workers: int = setting(
        8,
        doc="loader processes (dali: threads) a device; 0: none but the run's own (dali: 1)",
        min=0,
    )
    prefetch: int = setting(
        2, doc="batches prepared ahead: by each worker, or (dali) by all together", min=1
    )
    hw_decoder_load: float = setting(
        0.65,
        doc="share of the JPEGs given to the GPU's hardware decoder (dali-gpu only)",
        min=0.0,
        max=1.0,
    )
    device_memory_padding_mib: int = setting(
        16, doc="GPU memory a decoding thread takes at the start (dali-gpu only)", min=0
    )
    error_budget: float = setting(
        0.001,
        doc="share of the train images that may fail to decode before the run ends",
        min=0.0,
        max=1.0,
    )
    synthetic_train_images: int = setting(1_281_167, doc="train images of 'synthetic'", min=1)
    synthetic_val_images: int = setting(50_000, doc="validation images of 'synthetic'", min=1)
