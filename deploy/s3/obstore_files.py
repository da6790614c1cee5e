"""obstore as fsspec's implementation of s3a:// URLs, by a class that can be sent to workers."""

from __future__ import annotations

import fsspec
from obstore.fsspec import FsspecStore


class S3(FsspecStore):
    protocol = "s3a"


def register() -> None:
    """In each process, of the workers too."""
    fsspec.register_implementation("s3a", S3, clobber=True)
