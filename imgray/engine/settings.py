"""The settings of every job of the engine. Imports neither Ray nor torch, so that help is quick."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from imgray.artifacts.folder import Folder
from imgray.config import Code, Encoding, Fusion, JobConfig, Precision
from imgray.data import pixels
from imgray.data.layout import HOW, Layout, Stored, numbers, pairs, place_of

Regions = Literal["global", "pyramid"]
SHARD_IMAGES = 100_000
WAIT = "seconds to wait for another run that works on --output"


def _listed(given: Any) -> Any:
    """A text alone is a list of one."""
    return [given] if isinstance(given, str) else given


class TableConfig(JobConfig):
    """The settings of every job that may read a table."""

    uris: ClassVar[frozenset[str]] = frozenset({"root"})

    columns: list[str] = Field(
        default=[],
        description="of a table, the columns that hold inputs, or id, group, split, class, under "
        "another name; of tars, the extensions of the members that are inputs, as image=jpg;png",
        json_schema_extra={"metavar": "NAME=COLUMN"},
    )
    root: str | None = Field(
        default=None, description="where paths in cells start (default: where the table lies)"
    )
    pattern: Annotated[list[str] | None, BeforeValidator(_listed)] = Field(
        default=None,
        description="the path, with {} where the cell's text belongs: images/{}.jpg; or one for "
        "each input: image=images/{}.jpg mask=masks/{}.png",
        json_schema_extra={"metavar": "[NAME=]PATTERN"},
    )

    def identity(self) -> dict[str, Any]:
        """The settings that determine the content of the output; one pattern is a text alone."""
        found = super().identity()
        own = self.pattern or []
        return found | {"pattern": own if len(own) > 1 else next(iter(own), None)}

    @property
    def layout(self) -> Layout:
        """How a table is read. Raises `UserError`."""
        root = Folder(self.root).absolute if self.root else None
        return Layout.parse(self.columns, root, self.pattern or [])


class FeaturesConfig(TableConfig):
    """The settings of every job that may read a table with features of other jobs beside it."""

    uris: ClassVar[frozenset[str]] = TableConfig.uris | {"features"}

    features: list[str] = Field(
        default=[],
        description="features artifact whose vectors an input takes, joined to the table by id, or "
        "by the column that --columns gives the input; #NET.LAYER where it has several columns, "
        "#NET.LAYER,NET.LAYER for some of them side by side, each of unit length",
        json_schema_extra={"metavar": "NAME=URI[#NET.LAYER,...]"},
    )

    @property
    def joined(self) -> dict[str, str]:
        """The features artifact of each input that takes one. Raises `UserError`."""
        given = pairs("--features", self.features, "URI")
        return {name: Folder(uri).absolute for name, uri in given.items()}


class CollectionConfig(TableConfig):
    """The settings of every job that passes over a collection."""

    runtime: ClassVar[frozenset[str]] = frozenset(
        {"output", "workers", "cpus_per_worker", "gpus_per_worker", "batch_size", "max_rejected"}
        | {"max_rejected_shard", "retry_rejected", "overwrite", "wait", "inventory"}
    )
    uris: ClassVar[frozenset[str]] = TableConfig.uris | {"images"}

    images: str = Field(
        description="folder or s3://bucket/prefix with the images, or a table: .parquet or .csv; "
        "or tars of WebDataset: x.tar or x-{000..099}.tar"
    )
    output: str = Field(description="folder or s3://bucket/prefix for the artifact")
    stored: Stored | None = Field(
        default=None,
        description="how images are stored, where their URI does not say it: tar, if it is a "
        "folder of tars",
    )
    ids: Literal["key"] | None = Field(
        default=None,
        description="of tars, the ids of records: key, where all keys differ (default: SHARD/KEY)",
    )
    inventory: str | None = Field(
        default=None,
        description="of a folder of images in S3, the manifest.json of an S3 Inventory: it is "
        "listed from there, which takes minutes where asking S3 takes hours",
        json_schema_extra={"metavar": "URI"},
    )
    suffixes: list[str] = Field(
        default=list(pixels.SUFFIXES), description='file suffixes that count as images, or "*"'
    )
    shard_size: int = Field(default=512, ge=1, description="images per Parquet shard")
    max_rejected: float = Field(
        default=0.01, ge=0, le=1, description="share of rejected images above which to exit with 3"
    )
    max_rejected_shard: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="share of a shard's images that may be rejected; above it the job stops, as "
        "more are an outage rather than bad images",
    )
    retry_rejected: bool = Field(
        default=False, description="try the images again that were rejected before"
    )
    batch_size: int | None = Field(
        default=None,
        ge=1,
        description="images per forward pass (default: 8; GPUs like 64), or texts (default: 512)",
    )
    workers: int | None = Field(
        default=None, ge=1, description="worker processes (default: one per GPU, else per core)"
    )
    cpus_per_worker: int = Field(default=1, ge=1, description="CPUs that each worker holds")
    gpus_per_worker: float | None = Field(
        default=None, ge=0, description="GPUs that each worker holds (default: 1 if there are any)"
    )
    overwrite: bool = Field(default=False, description="remove what is at --output first")
    wait: float = Field(default=0, ge=0, description=WAIT)

    def identity(self) -> dict[str, Any]:
        """The settings that determine the content; `HOW` it is stored, where that was given."""
        found = super().identity()
        return {key: found[key] for key in found if key not in HOW or found[key] is not None}

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """Those of them that need not be given, and are part of the identity by default."""
        return {key: value for key, value in super().defaults().items() if key not in HOW}

    @property
    def how(self) -> dict[str, Any]:
        """`HOW` the images are stored, as far as it was given."""
        return {key: getattr(self, key) for key in HOW if getattr(self, key) is not None}

    @property
    def read(self) -> list[str]:
        """The places that are read, none of which may lie in the output."""
        return [uri for uri in (self.images, self.root, self.inventory) if uri]


class ExtractConfig(CollectionConfig):
    """Extract features of every picture or text of a collection, exactly once."""

    uris: ClassVar[frozenset[str]] = CollectionConfig.uris | {
        "weights", "models", "except_", "other_than",
    }  # fmt: skip

    output: str = Field(description="folder or s3://bucket/prefix for the features artifact")
    extractor: list[str] = Field(
        min_length=1,
        description="networks of timm or torchvision, or trained models that --weights names, each "
        "with a layer: high (the last map, of a CFN the fused feature; the default), mid (the last "
        "stage at stride 16, of a CFN the middle one) or a module's dotted path. Or encoders of "
        "texts: minilm, tfidf, sentence-transformers/NAME of the hub, or any name with --weights",
        json_schema_extra={"metavar": "NET[.LAYER]"},
    )
    weights: list[str] = Field(
        default=[],
        description="safetensors files for networks whose weights no wheel or hub has; or model "
        "artifacts, each under a NET of your choice; of texts, a folder of sentence-transformers, "
        "or a features artifact that holds NET",
        json_schema_extra={"metavar": "NET=URI"},
    )
    except_: list[str] = Field(
        default=[],
        description="features artifacts of the same collection: only the images that they have not "
        "seen, or in another version, are extracted, and those that vanished listed; of rows of a "
        "table the id alone tells",
        json_schema_extra={"metavar": "FEATURES"},
    )
    regions: Regions = Field(
        default="global",
        description="global: one vector per image; pyramid: 1 + 4 + 9 regions",
    )
    crop_regions: bool = Field(
        default=False,
        description="cut the regions from the picture and run each through the network, as in the "
        "paper, instead of pooling them from one feature map",
    )
    size: int | None = Field(
        default=None, ge=32, le=2048, description="input side in pixels (default: the network's)"
    )
    precision: Precision = Field(
        default="float32",
        description="bfloat16 pays on GPUs and on CPUs with AMX; its vectors differ, so it is part "
        "of the fingerprint",
    )
    max_pixels: int = Field(
        default=pixels.MAX_PIXELS, ge=1, le=170_000_000, description="larger images are rejected"
    )
    vocabulary: int = Field(
        default=4096, ge=1, le=65_536, description="words of tfidf: those that stand in most texts"
    )


class IndexConfig(JobConfig):
    """Build a sharded multi-DeepIndex from the shards of a features artifact."""

    runtime: ClassVar[frozenset[str]] = frozenset(
        {"output", "overwrite", "wait", "cpus_per_task", "min_recall"}
    )
    uris: ClassVar[frozenset[str]] = frozenset({"features", "joint", "text_queries"})

    features: str = Field(description="folder or s3://bucket/prefix of the features artifact")
    output: str = Field(description="folder or s3://bucket/prefix for the index artifact")
    feature: list[str] = Field(
        min_length=1,
        description="columns of the features artifact to fuse in the index; NET stands for "
        "NET.high. The best pairs join a mid-level and a high-level feature of two networks",
        json_schema_extra={"metavar": "NAME"},
    )
    codewords: list[int] = Field(
        default=[],
        description="words of each feature's codebook, one number for all or one per feature "
        "(default: grows with the square root of the number of regions, up to a million lists)",
        json_schema_extra={"metavar": "K"},
    )
    shards: int | None = Field(
        default=None, ge=1, description=f"index shards (default: one per {SHARD_IMAGES:,} images)"
    )
    probes: list[int] = Field(
        default=[],
        description="multiple assignment: inverted lists that a query's region visits, one number "
        "for all or one per level of the pyramid; 1 switches it off (default: 512 32 4 for "
        "several features, 16 4 1 for one; global 512 and 32)",
        json_schema_extra={"metavar": "P"},
    )
    dim: int | None = Field(
        default=None,
        ge=2,
        description="dimensions of a feature after PCA (default: 48; 128 for global features)",
    )
    code: Code = Field(default="SQ8", description="code of a region")
    bandwidth: float = Field(
        default=0.25, gt=0, description="h of the kernel exp((cos - 1) / h) between regions"
    )
    signature_feature: list[str] = Field(
        default=[],
        description="features of the global image signature (default: the indexed ones)",
        json_schema_extra={"metavar": "NAME"},
    )
    signature_dim: int = Field(
        default=48, ge=0, description="bytes of the signature per feature; 0 switches it off"
    )
    signature_power: float = Field(
        default=2.0, ge=0, description="exponent of the signatures' cosine in the score"
    )
    sample: int = Field(
        default=20_000, ge=100, description="regions on which PCA and codebooks are trained"
    )
    queries: int = Field(
        default=100, ge=1, description="images held out of training, to measure recall with"
    )
    joint: str | None = Field(
        default=None,
        description="model that matches images and texts, or features of a dual encoder, such as "
        "--features: the index gets a part of its own with the images' joint embedding, and "
        "answers words too",
        json_schema_extra={"metavar": "MODEL"},
    )
    joint_codewords: int | None = Field(
        default=None, ge=1, description="words of the joint part's codebook (default: grows alike)"
    )
    joint_probes: int | None = Field(
        default=None,
        ge=1,
        description="lists of the joint part that a query visits (default: enough for a recall@10 "
        "of .95 with texts, which lie farther from the lists than images do)",
    )
    text_queries: str | None = Field(
        default=None,
        description="table with texts to measure the recall for words with, in the column `text` "
        "or the one named",
        json_schema_extra={"metavar": "TABLE[#COLUMN]"},
    )
    min_recall: list[str] = Field(
        default=[],
        description="recall@10 against exact search, for image or text queries, below which the "
        "index is not published (exit code 2)",
        json_schema_extra={"metavar": "MODALITY=SHARE"},
    )
    seed: int = Field(default=0, ge=0, description="seed of the sample and of k-means")
    cpus_per_task: int = Field(default=1, ge=1, description="CPUs that each task holds")
    overwrite: bool = Field(default=False, description="remove what is at --output first")
    wait: float = Field(default=0, ge=0, description=WAIT)

    @property
    def least_recall(self) -> dict[str, float]:
        """By modality the recall that it must reach. Raises `UserError`."""
        return numbers("--min-recall", self.min_recall, "SHARE")

    @model_validator(mode="after")
    def _possible(self) -> IndexConfig:
        given = {
            "--joint-codewords": self.joint_codewords,
            "--joint-probes": self.joint_probes,
            "--text-queries": self.text_queries,
        }
        for flag, value in given.items():
            if value and not self.joint:
                raise ValueError(f"{flag} is of the joint part, which needs --joint MODEL")
        for name, least in self.least_recall.items():
            if name not in ("image", "text") or not 0 <= least <= 1:
                raise ValueError(
                    f"--min-recall {name}={least:g}: expected image or text, and a share up to 1"
                )
            if name == "text" and not self.text_queries:
                raise ValueError("--min-recall text is measured with texts: say --text-queries")
        return self


class SearchConfig(JobConfig):
    """Search an index with images, with words, or both: prints the images that answer best."""

    index: str = Field(description="folder or s3://bucket/prefix of the index artifact")
    query: list[str] = Field(
        default=[],
        description="image files, on disk or in S3: a question each",
        json_schema_extra={"metavar": "IMAGE"},
    )
    text: list[str] = Field(
        default=[],
        description="words, of an index with a joint part: a question each; but one text with one "
        "image are a single question",
        json_schema_extra={"metavar": "WORDS"},
    )
    modalities: list[str] = Field(
        default=[],
        description="weight of the image or the text of a question with both (default: 1)",
        json_schema_extra={"metavar": "MODALITY=WEIGHT"},
    )
    fusion: Fusion = Field(
        default="average",
        description="how the two rankings of a question with both are joined: by the mean of "
        "their scores, or with more weight for the one that drops more sharply",
    )
    top: int = Field(default=10, ge=1, le=10_000, description="results per query")
    contact_sheet: str | None = Field(
        default=None,
        description="also draw queries and results into this picture",
        json_schema_extra={"metavar": "PNG"},
    )

    @property
    def weights(self) -> dict[str, float]:
        """Weight of each modality that is named. Raises `UserError`."""
        return numbers("--modalities", self.modalities, "WEIGHT")

    @model_validator(mode="after")
    def _possible(self) -> SearchConfig:
        if not self.query and not self.text:
            raise ValueError("say --query IMAGE, --text WORDS, or both")
        return self


class TrainConfig(FeaturesConfig):
    """Train a model by a recipe, and publish it as an artifact."""

    runtime: ClassVar[frozenset[str]] = frozenset(
        {"output", "recipe", "set", "workers", "cpus_per_worker", "gpus_per_worker", "feeders"}
        | {"grow_every", "retries", "patience", "overwrite", "wait"}
    )
    uris: ClassVar[frozenset[str]] = FeaturesConfig.uris | {"data"}

    recipe: str = Field(
        description="what to train, and how: a recipe of --list, or a YAML file",
        json_schema_extra={"metavar": "NAME|PATH"},
    )
    data: str = Field(
        description="folder or s3://bucket/prefix of the data set, or a table, or tars of "
        "WebDataset: x.tar or x-{000..099}.tar"
    )
    output: str = Field(description="folder or s3://bucket/prefix for the model artifact")
    set: list[str] = Field(
        default=[],
        description="settings of the recipe to change, such as batch_size=64 settings.rate=0.01",
        json_schema_extra={"metavar": "KEY=VALUE"},
    )
    workers: str = Field(
        default="1",
        pattern=r"^[0-9]+(-[0-9]+)?$",
        description="worker processes, or the least and the most that a changing cluster may give",
        json_schema_extra={"metavar": "N or LEAST-MOST"},
    )
    cpus_per_worker: int = Field(default=1, ge=1, description="CPUs that each worker holds")
    gpus_per_worker: float | None = Field(
        default=None, ge=0, description="GPUs that each worker holds (default: 1 if there are any)"
    )
    feeders: int = Field(
        default=1, ge=0, description="processes that load data for each worker; 0: its own threads"
    )
    grow_every: float = Field(
        default=60, gt=0, description="seconds between looks for room for more workers, up to MOST"
    )
    retries: int = Field(
        default=20, ge=0, description="how often lost workers are replaced before giving up"
    )
    patience: float = Field(
        default=600, ge=0, description="seconds to wait for the machines that workers need"
    )
    overwrite: bool = Field(default=False, description="remove what is at --output first")
    wait: float = Field(default=0, ge=0, description=WAIT)

    @property
    def span(self) -> tuple[int, int]:
        """The least and the most workers."""
        least, _, most = self.workers.partition("-")
        return int(least), int(most or least)

    @model_validator(mode="after")
    def _possible(self) -> TrainConfig:
        if not 1 <= self.span[0] <= self.span[1]:
            raise ValueError(f"--workers {self.workers}: at least one, and LEAST not above MOST")
        return self


class PredictConfig(CollectionConfig, FeaturesConfig):
    """Run a trained model over every image below a folder or S3 prefix, exactly once."""

    runtime: ClassVar[frozenset[str]] = CollectionConfig.runtime | {"contact_sheet"}
    uris: ClassVar[frozenset[str]] = CollectionConfig.uris | FeaturesConfig.uris | {"model"}

    model: str = Field(description="folder or s3://bucket/prefix of the model artifact")
    output: str = Field(description="folder or s3://bucket/prefix for the predictions artifact")
    batch_size: int | None = Field(
        default=16, ge=1, description="images per forward pass; GPUs like 64"
    )
    longest: int | None = Field(
        default=None,
        ge=32,
        le=2**16,
        description="scale longer images down to so many pixels (default: as the model's recipe)",
    )
    encode: Encoding = Field(
        default="png",
        description="how pictures that a model paints are kept: png, or jpeg of quality 95",
    )
    contact_sheet: str | None = Field(
        default=None,
        description="also draw some of the images and what the model says of them",
        json_schema_extra={"metavar": "PNG"},
    )

    @property
    def read(self) -> list[str]:
        """The places that are read, none of which may lie in the output."""
        return [*super().read, *map(place_of, self.joined.values())]


class EvaluateConfig(JobConfig):
    """Score the rankings of an index: mAP, precision@k, recall@k and the N-S score."""

    index: str = Field(description="folder or s3://bucket/prefix of the index artifact")
    queries: str | None = Field(
        default=None,
        description="folder or s3://bucket/prefix with query images, or a features artifact; those "
        "that the truth names are queries, and one that is indexed is left out of its own ranking",
    )
    texts: str | None = Field(
        default=None,
        description="instead, a table of texts, for an index with a joint part: column `text`, and "
        "`group` with the id of the image that is the right answer, or with a group of the truth",
        json_schema_extra={"metavar": "TABLE"},
    )
    columns: list[str] = Field(
        default=[],
        description="columns of the texts' table that have another name",
        json_schema_extra={"metavar": "NAME=COLUMN"},
    )
    part: str | None = Field(
        default=None, description="only texts whose column `split` has this (default: all)"
    )
    truth: str | None = Field(
        default=None,
        description="CSV with the columns id and group; images of one group are right answers",
        json_schema_extra={"metavar": "CSV"},
    )
    top: int | None = Field(
        default=None,
        ge=1,
        description="length of the rankings; what lies beyond is not found (default: 10000, of "
        "texts 1000)",
    )

    @property
    def layout(self) -> Layout:
        """How the table of texts is read. Raises `UserError`."""
        return Layout.parse(self.columns, None, [])

    @model_validator(mode="after")
    def _possible(self) -> EvaluateConfig:
        if (self.queries is None) == (self.texts is None):
            raise ValueError("say --queries, with --truth, or --texts")
        if self.queries and not self.truth:
            raise ValueError("--truth is required with --queries (see --help)")
        if not self.texts and (self.columns or self.part):
            raise ValueError("--columns and --part are of the table of --texts")
        return self


class EvaluateModelConfig(FeaturesConfig):
    """Score a trained model on a labelled part of a data set."""

    model: str = Field(description="folder or s3://bucket/prefix of the model artifact")
    data: str = Field(
        description="folder or s3://bucket/prefix of the data set, or a table, or tars of "
        "WebDataset: x.tar or x-{000..099}.tar"
    )
    set: list[str] = Field(
        default=[],
        description="settings of the model's recipe to change, such as settings.kid=null",
        json_schema_extra={"metavar": "KEY=VALUE"},
    )
    part: str | None = Field(
        default=None, description="part of the data set (default: what the recipe validates on)"
    )
    workers: int | None = Field(
        default=None, ge=1, description="worker processes (default: one per GPU, else per core)"
    )
    cpus_per_worker: int = Field(default=1, ge=1, description="CPUs that each worker holds")
    gpus_per_worker: float | None = Field(
        default=None, ge=0, description="GPUs that each worker holds (default: 1 if there are any)"
    )
    figure: str | None = Field(
        default=None,
        description="also draw what the scores come from (confusion matrix, precision and recall)",
        json_schema_extra={"metavar": "PNG"},
    )


class DemoConfig(JobConfig):
    """Extract, index, search and score a collection on this machine."""

    images: str | None = Field(
        default=None, description="your own images (default: photographs with known truth)"
    )
    output: str = Field(default="out", description="folder for everything that the demo makes")
    models: bool = Field(
        default=False, description="also train a classifier, a segmenter and an edge detector"
    )
    translator: bool = Field(
        default=False, description="also train a translator of tones, in three minutes"
    )
    overwrite: bool = Field(default=False, description="make everything again")


class VerifyConfig(JobConfig):
    """Check every file of artifacts of any kind against the digests of their manifests."""

    artifacts: list[str] = Field(
        min_length=1,
        description="folders or s3://bucket/prefix of artifacts",
        json_schema_extra={"metavar": "URI", "positional": True},
    )
