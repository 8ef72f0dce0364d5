"""HTTP: bytes <-> domain values, on hypercorn's protocol state machines and quart-trio.

app.py      every dialect that is served, and which of them a request is for
native/     the API of /v1, a dialect
akira/      Akira's API, a dialect
kit/        what dialects are made of: routes and calls, access, errors, streams, websockets
proxy/      requests for ports of sandboxes, answered by the programs that listen there
server/     connections: the accept loop, protocols, bodies, start and stop

To add a dialect: a package with a function `make(service) -> Dialect` (`kit/dialect.py`), and its entry in `app.py`.
"""
