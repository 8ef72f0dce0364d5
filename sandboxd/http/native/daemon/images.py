"""Images: list, import, build, remove."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

import trio

from sandboxd.errors import SandboxdError
from sandboxd.http.kit.call import Call
from sandboxd.http.kit.streams import ServerSentEvent, sse_response
from sandboxd.http.native.daemon.schemas import ImageDeleted, ImageList, ImageView
from sandboxd.http.native.errors import ErrorBody
from sandboxd.http.server.stack import TrioResponse
from sandboxd.service.images import jobs, recipes


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
