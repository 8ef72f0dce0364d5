"""Connections: the accept loop, HTTP/1.1 and HTTP/2 state machines, deadlines; an ASGI application on top."""
