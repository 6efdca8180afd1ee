"""What each dataset is, without loading any of it; only the standard library is imported here."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches

_CIFAR_10 = "airplane automobile bird cat deer dog frog horse ship truck"
_CIFAR_100 = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly
camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile
cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp
lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom oak_tree
orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine possum
rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider
squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train
trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""
_FASHION = "t-shirt/top trouser pullover dress coat sandal shirt sneaker bag ankle_boot"
_DIGITS = "0 1 2 3 4 5 6 7 8 9"


@dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """What is known of a dataset before any file is opened.

    Args:
        name: As it is passed to `load_dataset`.
        title: As its authors write it.
        summary: One line for a listing.
        num_train: Images in the training split; None where the files decide.
        num_test: Images in the test split; None where the files decide.
        channels: Colour channels of an image.
        image_size: Height and width in pixels; None where the files decide.
        classes: Their names in the order of the labels; empty where the files decide.
        mean: Per channel, on the scale [0, 1], for normalisation.
        std: Per channel, on the same scale.
        files: The file names that are looked for.
        home: Where its authors publish it.
        downloadable: Whether `load_dataset(..., download=True)` can fetch it.
    """

    name: str
    title: str
    summary: str
    num_train: int | None
    num_test: int | None
    channels: int
    image_size: int | None
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    files: str
    home: str
    downloadable: bool = False

    @property
    def how_to_get(self) -> str:
        """The end of a sentence that says how to come by the files."""
        place = "pass their folder as data_dir (--data-dir) or set EQUIPOISE_DATA to it"
        if not self.downloadable:
            return place
        return (
            f"pass download=True (--download) to fetch them, or get them from {self.home} and "
            + place
        )


_ALL = (
    DatasetInfo(
        name="cifar10",
        title="CIFAR-10",
        summary="60,000 colour photographs of 32 x 32 pixels in 10 classes",
        num_train=50_000,
        num_test=10_000,
        channels=3,
        image_size=32,
        classes=tuple(_CIFAR_10.split()),
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2023, 0.1994, 0.2010),
        files="train-*.parquet and test-*.parquet, or data_batch_1 ... 5 and test_batch",
        home="https://www.cs.toronto.edu/~kriz/cifar.html",
        downloadable=True,
    ),
    DatasetInfo(
        name="cifar100",
        title="CIFAR-100",
        summary="60,000 colour photographs of 32 x 32 pixels in 100 classes",
        num_train=50_000,
        num_test=10_000,
        channels=3,
        image_size=32,
        classes=tuple(_CIFAR_100.split()),
        mean=(0.5071, 0.4865, 0.4409),
        std=(0.2673, 0.2564, 0.2762),
        files="train-*.parquet and test-*.parquet, or the pickle files train and test",
        home="https://www.cs.toronto.edu/~kriz/cifar.html",
        downloadable=True,
    ),
    DatasetInfo(
        name="digits",
        title="Digits",
        summary="1,797 grey handwritten digits of 8 x 8 pixels, shipped with scikit-learn",
        num_train=1_442,
        num_test=355,
        channels=1,
        image_size=8,
        classes=tuple(_DIGITS.split()),
        mean=(0.3054,),
        std=(0.3753,),
        files="none",
        home="scikit-learn",
    ),
    DatasetInfo(
        name="fashion_mnist",
        title="Fashion-MNIST",
        summary="70,000 grey pictures of clothes of 28 x 28 pixels in 10 classes",
        num_train=60_000,
        num_test=10_000,
        channels=1,
        image_size=28,
        classes=tuple(_FASHION.split()),
        mean=(0.2860,),
        std=(0.3530,),
        files="train-images-idx3-ubyte, train-labels-idx1-ubyte and their t10k twins, .gz or plain",
        home="https://github.com/zalandoresearch/fashion-mnist or Debian's dataset-fashion-mnist",
        downloadable=True,
    ),
    DatasetInfo(
        name="image_folder",
        title="An image folder",
        summary="your own pictures, one folder per class; any size, streamed by FolderLoader",
        num_train=None,
        num_test=None,
        channels=3,
        image_size=None,
        classes=(),
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        files="train/CLASS/*.jpg and val/CLASS/*.jpg (or test/CLASS/*.jpg)",
        home="yourself",
    ),
    DatasetInfo(
        name="svhn",
        title="SVHN",
        summary="99,289 colour photographs of house-number digits of 32 x 32 pixels",
        num_train=73_257,
        num_test=26_032,
        channels=3,
        image_size=32,
        classes=tuple(_DIGITS.split()),
        mean=(0.4377, 0.4438, 0.4728),
        std=(0.1980, 0.2010, 0.1970),
        files="train_32x32.mat and test_32x32.mat",
        home="http://ufldl.stanford.edu/housenumbers",
        downloadable=True,
    ),
)
_BY_NAME = {info.name: info for info in _ALL}


def dataset_names() -> tuple[str, ...]:
    """Names of the datasets that `load_dataset` knows, sorted; imports no torch.

    Example:
        >>> dataset_names()
        ('cifar10', 'cifar100', 'digits', 'fashion_mnist', 'image_folder', 'svhn')
    """
    return tuple(_BY_NAME)


def describe(name: str) -> DatasetInfo:
    """What is known of a dataset before any file is opened; imports no torch.

    Args:
        name: One of `dataset_names()`.

    Raises:
        ValueError: There is no such dataset.

    Example:
        >>> describe("cifar10").image_size
        32
    """
    if name in _BY_NAME:
        return _BY_NAME[name]
    near = get_close_matches(str(name).lower(), _BY_NAME, n=1)
    hint = f"did you mean {near[0]!r}? The names" if near else "the names"
    raise ValueError(f"There is no dataset {name!r}; {hint} are {', '.join(_BY_NAME)}.")
