"""The HTTP application: routes, who may use them, and what they answer.

A model is asked at `/v1/models/NAME`, by what its task declares. The routes of the kinds ask one
about a picture in the same way, and shape what it says; further kinds need none.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

from fastapi import Request, Response
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles
from fastapi_offline import FastAPIOffline
from ray import serve

import imgray
from imgray.data.fields import Picture
from imgray.retrieval.modalities import TEXT
from imgray.serving.answers import (
    BatchAnswer,
    ClassifyAnswer,
    EdgesAnswer,
    EmbedAnswer,
    HealthAnswer,
    IdsAnswer,
    IndexAnswer,
    ModelAnswer,
    ModelsAnswer,
    Painted,
    ReadyAnswer,
    SegmentAnswer,
    SwapAnswer,
    thumbnail,
    told,
)
from imgray.serving.calls import call
from imgray.serving.captions import Captions
from imgray.serving.guard import (
    ADMIN_KEYS,
    Admission,
    Counted,
    Keys,
    Refusal,
    answer_errors,
    check_key,
    errors,
)
from imgray.serving.match import MatchAnswer, chosen, compare
from imgray.serving.metrics import replica_name, timed
from imgray.serving.models import Models, Served
from imgray.serving.openapi import ASK, SWAP, description, documented, in_query, of_form
from imgray.serving.options import (
    AskOptions,
    BatchOptions,
    ClassifyOptions,
    EmbedOptions,
    MatchOptions,
    NamedOptions,
    PageOptions,
    PaintOptions,
    PictureOptions,
    SearchOptions,
    SizeOptions,
    SwapOptions,
    TranslateOptions,
)
from imgray.serving.requests import (
    JPEG,
    PICTURE,
    PNG,
    picture_of,
    read,
    read_record,
    validated,
    wanted_picture,
)
from imgray.serving.search import Described, SearchAnswer, Searcher
from imgray.serving.settings import ServiceSettings
from imgray.serving.sites import OwnSite
from imgray.serving.versions import Holder

PAGE = Path(__file__).parent / "page"
POLICY = "default-src 'self'; img-src 'self' blob: data:"

BODY = errors(400, 413)
"""What may be wrong with a body, beside what may go wrong with every request."""
RECORD = errors(400, 406, 413)
"""As `BODY`, of a route whose answer has several media types."""


def _service() -> Any:
    """The service in this replica."""
    return serve.get_replica_context().servable_object


def _check_count(count: int, most: int, what: str, field: str) -> None:
    """Raises `Refusal` for none, and for too many."""
    if not 0 < count <= most:
        raise Refusal(422, f"send 1 to {most} {what}", field)


def _names() -> list[str] | None:
    """For `OwnSite`: the names that the service answers to."""
    return None if _service().key_needed else _service().settings.hosts


def _description() -> dict[str, Any]:
    """The OpenAPI of the service, with a route for each of its models."""
    service = _service()
    return description(app, service.models.served.values(), service.searcher is not None)


app = FastAPIOffline(
    title="imgray",
    version=imgray.__version__,
    redoc_url=None,
    responses=errors(401, 403, 404, 421, 422, 500, 503, 504),
)
app.add_middleware(OwnSite, names=_names)
app.add_middleware(Counted)
app.mount("/page", StaticFiles(directory=PAGE), "page")
answer_errors(app)
app.openapi = _description  # type: ignore[method-assign]  # FastAPI's own way


def paints(kind: str, asked: type[PaintOptions], answered: type[Painted], *types: str) -> Any:
    """Declare the route of a kind of models that paint: its options, and its answers."""
    return app.post(
        f"/v1/{kind}",
        response_model=answered,
        responses=RECORD,
        openapi_extra=documented(asked, PNG, *types),
    )


ACQUAINTED = 10.0
"""Seconds that a new replica waits at most for the deployments that it will ask."""


@serve.ingress(app)
class Service:
    """The ingress deployment.

    Args:
        settings: of the service.
        keys: of those who may ask.
        admins: keys of those who may also swap the index.
        registry, encoder, texts, shard_groups: handles of the deployments of the index, if there is
            one.
        predictors: handle of each model's deployment by name.
    """

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self,
        settings: ServiceSettings,
        keys: Keys,
        admins: Keys,
        registry: Any = None,
        encoder: Any = None,
        texts: Any = None,
        shard_groups: Sequence[Any] = (),
        predictors: Mapping[str, Any] | None = None,
    ) -> None:
        self.settings, self.limits = settings, settings.limits
        self.keys, self.admins = keys, admins
        self.key_needed = bool(keys) or not settings.open
        self.admitted = Admission(settings.limits.pending)
        found = [asyncio.to_thread(Served.of, *item) for item in settings.models.items()]
        models = {model.name: model for model in await asyncio.gather(*found)}
        self.models = Models(models, predictors or {}, self.limits.retries)
        self.registry = registry
        self.searcher: Searcher | None = None
        if registry is not None:
            holder = Holder(registry, replica_name(), Described.of)
            await holder.start()
            captions = await asyncio.to_thread(Captions.of, settings.captions)
            self.searcher = Searcher(settings, encoder, texts, shard_groups, holder, captions)
        # The first call of each finds its replicas, which may take as long as a question has.
        await asyncio.gather(*(self._ready(part, ACQUAINTED) for part in self._parts().values()))

    @asynccontextmanager
    async def _heard(self, request: Request) -> AsyncIterator[None]:
        """Within the keys, the number of requests and the time that are allowed."""
        if self.key_needed:
            check_key(request, (self.keys, self.admins))
        async with self.admitted():
            try:
                async with asyncio.timeout(self.limits.seconds):
                    with timed("request"):
                        yield
            except TimeoutError:
                text = f"not done within {self.limits.seconds:g} s"
                raise Refusal(504, text) from None

    def _index(self) -> Searcher:
        if self.searcher is None:
            raise Refusal(404, "this service has no index")
        return self.searcher

    # --- the index ---------------------------------------------------------------------------

    @app.post("/v1/search", responses=BODY, openapi_extra=documented(SearchOptions))
    async def search(self, request: Request) -> SearchAnswer:
        """The images of the collection that a picture, a text or both are most like, best first."""
        async with self._heard(request):
            searcher = self._index()
            options, pictures = await read(request, SearchOptions, self.limits.body_bytes)
            index = await searcher.current()
            searcher.check_weights(index, options)
            alone = options.text is not None and not (pictures or options.id)
            image = None if alone else await self._picture(pictures, options.id, index)
            return await searcher.search(index, options, image, options.text)

    @app.post("/v1/search/batch", responses=BODY, openapi_extra=documented(BatchOptions))
    async def search_batch(self, request: Request) -> BatchAnswer:
        """`search` for each picture, id and text: an answer or its error, in their order."""
        async with self._heard(request):
            searcher, most = self._index(), self.limits.batch
            options, pictures = await read(request, BatchOptions, self.limits.body_bytes, most)
            count = len(pictures) + len(options.ids) + len(options.texts)
            _check_count(count, most, "pictures, ids and texts", PICTURE)
            index = await searcher.current()
            searcher.check_weights(index, options)
            answers = await searcher.search_all(index, options, pictures)
            return BatchAnswer(version=index.version.digest, answers=answers)

    @app.post("/v1/embed", responses=BODY, openapi_extra=documented(EmbedOptions))
    async def embed(self, request: Request) -> EmbedAnswer:
        """The features of a picture, equal to the extracted ones, or the joint one of a text."""
        async with self._heard(request):
            searcher = self._index()
            options, pictures = await read(request, EmbedOptions, self.limits.body_bytes)
            index = await searcher.current()
            if options.text is None:
                image = await self._picture(pictures, options.id, index)
                return EmbedAnswer.of(index, await searcher.encode(index, image))
            if pictures or options.id:
                raise Refusal(422, "send a picture or a text: one of them", TEXT)
            vector = await searcher.embed_text(index, options.text)
            return EmbedAnswer.of_text(index, vector)

    @app.post("/v1/match", responses=BODY, openapi_extra=documented(MatchOptions))
    async def match(self, request: Request) -> MatchAnswer:
        """How well each of some pictures fits each of some texts."""
        async with self._heard(request):
            most = self.limits.batch
            options, pictures = await read(request, MatchOptions, self.limits.body_bytes, most)
            index = await self.searcher.current() if self.searcher else None
            by = chosen(self.models, self.searcher, index, options.model)
            _check_count(len(pictures) + len(options.ids), most, "pictures and ids", PICTURE)
            _check_count(len(options.texts), most, "texts", TEXT)
            indexed = partial(self._indexed, field="id", index=index)
            asked = pictures, options.ids, options.texts
            return await compare(by, *asked, indexed, self.settings.batching)

    @app.get("/v1/index")
    async def index(self, request: Request) -> IndexAnswer:
        """What is indexed, by what, and how well."""
        async with self._heard(request):
            return IndexAnswer.of(await self._index().current())

    @app.post(
        "/v1/index",
        responses=BODY,
        openapi_extra=documented(SwapOptions, pictures=False),
    )
    async def swap(self, request: Request) -> SwapAnswer:
        """Move to another index, once every replica has opened and verified it (admin key)."""
        if not self.admins:
            raise Refusal(403, f"this service has no admin key; see {ADMIN_KEYS}")
        check_key(request, (self.admins,))
        searcher = self._index()
        options, _ = await read(request, SwapOptions, self.limits.body_bytes)
        before = await searcher.current()
        version = await call(self.registry.move, options.index, options.seconds, blame="index")
        try:
            async with asyncio.timeout(self.limits.seconds):
                while searcher.holder.current != version:
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise Refusal(504, "the registry has moved, but this replica does not know") from None
        return SwapAnswer.of(await searcher.current(), before=before.version.digest)

    @app.get("/v1/images", openapi_extra=in_query(PageOptions))
    async def images(self, request: Request) -> IdsAnswer:
        """Ids of the collection, in its order."""
        async with self._heard(request):
            options = validated(PageOptions, dict(request.query_params))
            searcher = self._index()
            index = await searcher.current()
            ids = await searcher.ids(index, options.offset, options.limit)
            total = index.manifest.counts["images"]
            return IdsAnswer(version=index.version.digest, images=total, ids=ids)

    @app.get(
        "/v1/images/{id:path}",
        response_class=Response,
        responses={200: {"content": {"image/jpeg": {}}}},
        openapi_extra=in_query(SizeOptions),
    )
    async def image(self, request: Request, id: str) -> Response:
        """An indexed image as JPEG, at a bounded size."""
        async with self._heard(request):
            options = validated(SizeOptions, dict(request.query_params))
            searcher = self._index()
            data = await searcher.picture(await searcher.current(), id)
            jpeg = await asyncio.to_thread(thumbnail, data, options.size)
            headers = {"Cache-Control": "private, max-age=3600"}
            return Response(jpeg, media_type="image/jpeg", headers=headers)

    # --- the models --------------------------------------------------------------------------

    @app.get("/v1/models")
    async def served(self, request: Request) -> ModelsAnswer:
        """The models that are served."""
        async with self._heard(request):
            return ModelsAnswer(models=[ModelAnswer.of(one) for one in self.models.served.values()])

    @app.post(ASK, responses=RECORD)
    async def ask(self, request: Request, name: str) -> Response:
        """What a model says of a record: all outputs as JSON, or what it paints as a picture."""
        async with self._heard(request):
            return await self._answered(request, AskOptions, self.models.named(name))

    @app.post(SWAP, responses=RECORD, openapi_extra=of_form(NamedOptions, PNG, JPEG))
    async def swap_clothes(self, request: Request) -> Response:
        """A person in the clothes of another, as the model's own route answers a form."""
        async with self._heard(request):
            name = request.query_params.get("model")
            return await self._answered(request, NamedOptions, self.models.of_kind("swap", name))

    @app.post("/v1/classify", responses=BODY, openapi_extra=documented(ClassifyOptions))
    async def classify(self, request: Request) -> ClassifyAnswer:
        """The most probable classes of a picture."""
        async with self._heard(request):
            options, pictures = await read(request, ClassifyOptions, self.limits.body_bytes)
            model = self.models.of_kind("classify", options.model)
            given = await self._given(model, options, pictures)
            answer = await self.models.ask(model, given, None)
            return ClassifyAnswer.of(model, answer, options.top)

    @paints("segment", PaintOptions, SegmentAnswer)
    async def segment(self, request: Request) -> Response | Painted:
        """The class of every pixel: shares as JSON, the mask as PNG (`Accept: image/png`)."""
        return await self._painted(request, "segment", PaintOptions, SegmentAnswer)

    @paints("edges", PaintOptions, EdgesAnswer, JPEG)
    async def edges(self, request: Request) -> Response | Painted:
        """The probability of an edge at every pixel: as PNG 0 to 255 (`Accept: image/png`)."""
        return await self._painted(request, "edges", PaintOptions, EdgesAnswer)

    @paints("translate", TranslateOptions, Painted, JPEG)
    async def translate(self, request: Request) -> Response | Painted:
        """The picture as one of another domain: as PNG or JPEG (`Accept`), or its size."""
        return await self._painted(request, "translate", TranslateOptions, Painted)

    async def _painted(
        self, request: Request, kind: str, asked: type[PaintOptions], answered: type[Painted]
    ) -> Response | Painted:
        async with self._heard(request):
            options, pictures = await read(request, asked, self.limits.body_bytes)
            model = self.models.of_kind(kind, options.model)
            wanted = wanted_picture(request, model.task.outputs)
            encoding = wanted or (PNG if options.picture else None)
            given = await self._given(model, options, pictures)
            answer = await self.models.ask(model, given, encoding, options.longest)
            if wanted:
                return Response(answer.encoded, media_type=wanted)
            return answered.of(model, answer)

    async def _given(
        self, model: Served, options: PictureOptions, pictures: list[bytes]
    ) -> dict[str, Any]:
        """The inputs of a request about a picture."""
        picture = await self._picture(pictures, options.id)
        return {picture_of(model.inputs): picture, **options.inputs}

    async def _answered(self, request: Request, asked: type[AskOptions], model: Served) -> Response:
        """What a model says of the record that a request holds."""
        inputs = model.inputs
        wanted = wanted_picture(request, model.task.outputs)
        options, given = await read_record(request, asked, inputs, self.limits.body_bytes)
        for field, value in given.items():
            if isinstance(value, str) and isinstance(inputs.get(field), Picture):
                given[field] = await self._indexed(value, field)
        encoding = wanted or (PNG if options.picture else None)
        answer = await self.models.ask(model, given, encoding, options.longest)
        return Response(answer.encoded, media_type=wanted) if wanted else told(model, answer)

    async def _picture(
        self, pictures: list[bytes], id: str | None, index: Described | None = None
    ) -> bytes:
        """The one picture of a request, sent or named by id, of the index at hand."""
        if len(pictures) + (id is not None) != 1:
            raise Refusal(422, "send one picture, or the id of an indexed one", PICTURE)
        return pictures[0] if id is None else await self._indexed(id, "id", index)

    async def _indexed(self, id: str, field: str, index: Described | None = None) -> bytes:
        """An indexed picture, which a field of the request names."""
        if self.searcher is None:
            raise Refusal(422, "this service has no index", field)
        return await self.searcher.picture(index or await self.searcher.current(), id, field)

    async def drain(self) -> None:
        """Refuse new requests, and return when those in work are answered: before the end."""
        await self.admitted.close()

    # --- health and the page -----------------------------------------------------------------

    @app.get("/healthz")
    async def healthz(self) -> HealthAnswer:
        """This replica lives."""
        return HealthAnswer()

    @app.get("/readyz", responses={503: {"model": ReadyAnswer}})
    async def readyz(self, response: Response) -> ReadyAnswer:
        """Every deployment that answers depend on answers."""
        parts = self._parts()
        found = await asyncio.gather(*(self._ready(part, 2.0) for part in parts.values()))
        waiting = [name for name, ready in zip(parts, found, strict=True) if not ready]
        response.status_code = 503 if waiting else 200
        return ReadyAnswer(ready=not waiting, waiting=waiting)

    def _parts(self) -> dict[str, Any]:
        """The deployments that answers depend on, by name."""
        parts = dict(self.models.predictors)
        if self.searcher:
            parts |= {"encoder": self.searcher.encoder, "texts": self.searcher.texts}
            parts |= {f"shards-{n}": group for n, group in enumerate(self.searcher.shard_groups)}
        return parts

    async def _ready(self, part: Any, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                return bool(await call(part.ready))
        except (TimeoutError, Refusal):
            return False

    @app.get("/", include_in_schema=False)
    async def page(self) -> FileResponse:
        """The web page."""
        return FileResponse(PAGE / "index.html", headers={"Content-Security-Policy": POLICY})
