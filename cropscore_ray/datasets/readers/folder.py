"""A folder or prefix of images: the first-level sub-folder is the class.

Every file with an image's extension becomes an image, whatever is inside it. Images at
the top have no class. No file is opened.
"""

from cropscore_ray import storage
from cropscore_ray.datasets.files import ReadProgress
from cropscore_ray.datasets.problems import ProblemLog
from cropscore_ray.datasets.records import ImageRecord, Scan, count_unlabelled, part_images
from cropscore_ray.errors import DataError, StorageError


def require_folder(uri: str) -> None:
    """Raise StorageError unless a URI names a folder (on S3: a prefix of something)."""
    if not storage.exists(uri):
        raise StorageError(f"{uri}: no such folder", hint="check the path, or the bucket and key")
    if not storage.is_folder(uri):
        raise DataError(
            f"{uri}: this is a file, not a folder",
            hint="a table of images is given as csv:FILE or parquet:FILE",
        )


def scan(root_uri: str, log: ProblemLog, progress: ReadProgress | None = None) -> Scan:
    """List the images below a folder."""
    require_folder(root_uri)
    images, left_aside = part_images(storage.list_files(root_uri))
    if progress:
        progress(len(images), len(images))
    records = [ImageRecord(image_uri=image, label=_label(image, root_uri)) for image in images]
    count_unlabelled(records, log, "lies beside the folders of the classes")
    return Scan(records=records, left_aside=left_aside)


def _label(image_uri: str, root_uri: str) -> str | None:
    first, *rest = image_uri.removeprefix(root_uri).lstrip("/").split("/")
    return first if rest else None
