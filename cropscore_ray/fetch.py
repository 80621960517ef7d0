"""Encoded images from wherever their URIs point, many at once.

A fetch never raises: what could not be had is an ImageError in its place, and becomes a
row with a status.
"""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from botocore.exceptions import BotoCoreError, ClientError

from cropscore_ray import retries, s3, storage
from cropscore_ray.errors import ImageError, StorageError

_MISSING = {"NoSuchKey", "NoSuchBucket", "404", "NotFound"}
_DENIED = {"AccessDenied", "403", "Forbidden", "InvalidAccessKeyId", "SignatureDoesNotMatch"}


def fetch_images(uris: Iterable[str]) -> list[bytes | ImageError]:
    """Return each URI's bytes, or the ImageError that says why not, in order."""
    with ThreadPoolExecutor(s3.CONNECTIONS, thread_name_prefix="fetch") as pool:
        return list(pool.map(_fetch, uris))


def _fetch(uri: str) -> bytes | ImageError:
    try:
        return fetch_image(uri)
    except ImageError as error:
        return error


def fetch_image(uri: str) -> bytes:
    """Return an image's bytes; ImageError with status missing, denied, throttled or unreachable."""
    if uri.startswith(s3.SCHEME):
        return _from_s3(uri)
    try:
        if storage.is_remote(uri):
            return storage.read_bytes(uri)
        with open(storage.absolute_uri(uri), "rb") as file:
            return file.read()
    except FileNotFoundError as error:
        raise ImageError("missing", f"no file {uri}") from error
    except PermissionError as error:
        raise ImageError("denied", f"no permission to read {uri}") from error
    except (OSError, StorageError) as error:
        raise ImageError("unreachable", f"{uri}: {error}"[:300]) from error


def _from_s3(uri: str) -> bytes:
    bucket, key = s3.bucket_and_key(uri)

    def read() -> bytes:
        found = s3.client().get_object(Bucket=bucket, Key=key, **s3.payer())
        return bytes(found["Body"].read())

    try:
        return retries.persistently(read, s3.is_transient)
    except (BotoCoreError, ClientError, OSError) as error:
        raise _explained(uri, error) from error


def _explained(uri: str, error: Exception) -> ImageError:
    """Return the ImageError of what S3 answered, or of why it did not."""
    if not isinstance(error, ClientError):
        return ImageError("unreachable", f"{uri}: {type(error).__name__}: {error}"[:300])
    code = s3.code_of(error)
    status = "missing" if code in _MISSING else "denied" if code in _DENIED else "unreachable"
    status = "throttled" if s3.is_throttled(error) else status
    return ImageError(status, f"{uri}: {code}: {error}"[:300])
