"""Images: list, import, build, remove."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from datetime import datetime
from typing import Annotated, Literal, Self

import trio
from pydantic import StringConstraints

from sandboxd.errors import SandboxdError
from sandboxd.http.kit.call import Call
from sandboxd.http.kit.routes import Route
from sandboxd.http.kit.streams import ServerSentEvent, sse_response
from sandboxd.http.native.errors import ErrorBody
from sandboxd.http.native.fields import ImageName, Request, Response, rfc3339_time
from sandboxd.http.server.stack import TrioResponse
from sandboxd.model import Image, Scope
from sandboxd.service.images import jobs, recipes


class ImageView(Response):
    digest: str
    names: list[str]
    created_at: datetime
    size_bytes: int
    user: str
    workdir: str
    source: str

    @classmethod
    def of(cls, image: Image) -> Self:
        return cls.model_construct(
            digest=image.digest,
            names=list(image.names),
            created_at=rfc3339_time(image.created_at),
            size_bytes=image.size,
            user=image.user,
            workdir=image.workdir,
            source=image.source,
        )


class ImageList(Response):
    images: list[ImageView]


class ImportQuery(Request):
    name: ImageName


class BuildImage(Request):
    recipe: Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]{0,63}$")]
    rebuild: bool = False


class ImageDeleted(Response):
    image: str
    status: Literal["deleted"] = "deleted"


async def list_all(call: Call) -> ImageList:
    return ImageList(images=[ImageView.of(image) for image in call.service.images.list()])


async def get(call: Call, image: str) -> ImageView:
    return ImageView.of(call.service.images.get(image))


async def delete(call: Call, image: str) -> ImageDeleted:
    await call.service.remove_image(image)
    return ImageDeleted(image=image)


async def import_tar(call: Call) -> ImageView:
    return ImageView.of(await jobs.import_archive(call.service.images, call.query.name, aiter(call.stream)))


async def build(call: Call) -> TrioResponse:
    recipes.find_recipe(call.body.recipe)  # an unknown one is a 404, not an event in a stream that began well
    return sse_response(call.conversation, _build(call))


@trio.as_safe_channel
async def _build(call: Call) -> AsyncGenerator[ServerSentEvent, None]:
    lines = jobs.build(call.service.images.directory, call.body.recipe, rebuild=call.body.rebuild)
    try:
        async with aclosing(lines):
            async for line in lines:
                yield ServerSentEvent.of({"message": line}, event="progress")
        image = call.service.images.get(call.body.recipe)
        yield ServerSentEvent(ImageView.of(image).model_dump_json(), event="image")
    except SandboxdError as error:
        yield ServerSentEvent(ErrorBody.of(error).model_dump_json(), event="error")


READ, ADMIN = Scope.READ, Scope.ADMIN

# fmt: off
IMAGE_ROUTES = (
    Route(method="GET", path="/v1/images", handler=list_all, scope=READ,
          response=ImageList, summary="List images"),
    Route(method="POST", path="/v1/images/import", handler=import_tar, scope=ADMIN,
          query=ImportQuery, response=ImageView, status=201, streams="upload",
          summary="Make an image of a tar archive"),
    Route(method="POST", path="/v1/images/build", handler=build, scope=ADMIN,
          body=BuildImage, streams="sse", summary="Build an image from a recipe"),
    Route(method="GET", path="/v1/images/<image>", handler=get, scope=READ,
          response=ImageView, summary="One image, by name or digest"),
    Route(method="DELETE", path="/v1/images/<image>", handler=delete, scope=ADMIN,
          response=ImageDeleted, summary="Remove an image"),
)
# fmt: on
