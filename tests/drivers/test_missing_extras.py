"""Stores whose client library is not installed."""

from __future__ import annotations

import subprocess
import sys

import pytest

ASK = """
import sys
sys.modules[sys.argv[2]] = None  # as if it were not installed
from busline.errors import ConfigurationError
from busline.stores import from_url
try:
    from_url(sys.argv[1])
except ConfigurationError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("url", "library", "extra"),
    [
        ("postgresql://localhost/app", "asyncpg", "postgres"),
        ("redis://localhost/0", "redis", "redis"),
        ("dynamodb://eu-west-1", "aiobotocore", "dynamodb"),
    ],
)
def test_a_store_whose_library_is_missing_names_the_extra(url: str, library: str, extra: str) -> None:
    command = [sys.executable, "-c", ASK, url, library]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert f"pip install 'busline[{extra}]'" in said
