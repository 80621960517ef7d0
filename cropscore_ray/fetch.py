"""Encoded images from wherever their URIs point, many at once.

A fetch never raises: what could not be had is an ImageError in its place, and becomes a
row with a status.
"""

import random
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

from cropscore_ray import s3, storage
from cropscore_ray.errors import ImageError, StorageError

_READ_ATTEMPTS = 3

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
    """Return an image's bytes; ImageError with status missing, denied or unreachable."""
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
    try:
        return _get_object(bucket, key)
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))
        status = "missing" if code in _MISSING else "denied" if code in _DENIED else "unreachable"
        raise ImageError(status, f"{uri}: {code}: {error}"[:300]) from error
    except (BotoCoreError, OSError) as error:
        raise ImageError("unreachable", f"{uri}: {type(error).__name__}: {error}"[:300]) from error


def _get_object(bucket: str, key: str) -> bytes:
    """Read an object whole; the client retries what goes wrong before its first byte."""
    for attempt in range(_READ_ATTEMPTS):
        try:
            return bytes(s3.client().get_object(Bucket=bucket, Key=key)["Body"].read())
        except (ClientError, NoCredentialsError):
            raise
        except (BotoCoreError, OSError):
            if attempt == _READ_ATTEMPTS - 1:
                raise
            time.sleep(random.uniform(0, 2**attempt))
    raise AssertionError("unreachable")
