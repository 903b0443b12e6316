"""What saves processor time in every test and changes nothing that a test sees."""

import functools
import gc

import botocore.loaders
import pytest
import torch


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """Have the garbage collector leave alone what is there for good: modules and tests."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def _thrift() -> None:
    """Read botocore's tables once, not for each session of S3, and seed no GPU that is not there.

    For each seed torch keeps the whole stack of who asked, for a GPU that may be there later.
    """
    botocore.loaders.create_loader = functools.cache(botocore.loaders.create_loader)
    if not torch.cuda.is_available():
        torch.cuda.manual_seed_all = lambda seed: None
