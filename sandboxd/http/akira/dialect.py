"""Akira's API as a dialect: below /akira, and at its documented paths where the native API is not."""

from sandboxd.http.akira.errors import ERRORS
from sandboxd.http.akira.routes import OWN, SHARED
from sandboxd.http.kit.dialect import Dialect
from sandboxd.service.api import Service


def make(_: Service) -> Dialect:
    """All of it; its ports, like its names, are those of the native API."""
    return Dialect(name="akira", routes=(*OWN, *SHARED), shared=OWN, prefix="/akira", errors=ERRORS)
