"""Build a sharded multi-DeepIndex from feature shards (Ray tasks), and report its recall.

Three passes: fit the codebooks on a sample (one task); encode and add every image (a task per
index shard, each over its own range of rows, in bounded memory); measure against exact search on
held-out queries. The idf is counted over all shards, so shards rank as one index would.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import BaseModel, Field

from imgray.config import JobConfig

ROWS_AT_ONCE = 256
SHARD_IMAGES = 100_000
TASK_RETRIES = 5
SAMPLE_PARTS = 256


class IndexConfig(JobConfig):
    """Build a sharded multi-DeepIndex from the shards of a features artifact."""

    runtime: ClassVar[frozenset[str]] = frozenset({"output", "overwrite", "cpus_per_task"})

    features: str = Field(description="folder or s3://bucket/prefix of the features artifact")
    output: str = Field(description="folder or s3://bucket/prefix for the index artifact")
    feature: list[str] = Field(
        min_length=1,
        description="columns of the features artifact to fuse in the index; NET stands for "
        "NET.high. The best pairs join a mid-level and a high-level feature of two networks",
        json_schema_extra={"metavar": "NAME"},
    )
    codewords: list[int] = Field(
        default=[64],
        description="words of each feature's codebook, one number for all or one per feature; "
        "the square root of the number of regions is a start",
        json_schema_extra={"metavar": "K"},
    )
    shards: int | None = Field(
        default=None, ge=1, description=f"index shards (default: one per {SHARD_IMAGES:,} images)"
    )
    dim: int = Field(default=64, ge=2, description="dimensions of a feature after PCA")
    assignments: int = Field(
        default=3, ge=1, description="words that a query's region visits in every codebook"
    )
    code: str = Field(default="SQ8", description="code of a region: SQ8, SQ4, SQfp16 or Flat")
    signature: int = Field(
        default=64,
        ge=0,
        description="bytes per feature of the global image signature; 0 for none",
    )
    sample: int = Field(
        default=20_000, ge=100, description="regions on which PCA and codebooks are trained"
    )
    queries: int = Field(
        default=100, ge=1, description="images held out of training, to measure recall with"
    )
    seed: int = Field(default=0, ge=0, description="seed of the sample and of k-means")
    cpus_per_task: int = Field(default=1, ge=1, description="CPUs that each task holds")
    overwrite: bool = Field(default=False, description="remove what is at --output first")


class IndexResult(BaseModel):
    """What an index build has made."""

    output: str
    images: int
    shards: int
    bytes_per_image: float
    recall: dict[str, float]

    def __str__(self) -> str:
        recall = ", ".join(f"{name} {value:.3f}" for name, value in self.recall.items())
        return (
            f"{self.images:,} images in {self.shards} shards, {self.bytes_per_image:.0f} bytes per "
            f"image\nagainst exact search: {recall}\nartifact: {self.output}"
        )
