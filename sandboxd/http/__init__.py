"""HTTP: bytes <-> domain values, on hypercorn's protocol state machines and quart-trio.

app.py, auth.py             the application: routes, access rules; native/ and akira/ are its API dialects
proxy/                      requests for ports of sandboxes, answered by the programs that listen there
streams.py, websockets.py   what dialects share: SSE and NDJSON responses, the websocket pump
connection.py               a request on the application's side: Quart's classes, bodies, websockets
exchange.py                 a request on the server's side: its task and the queue that feeds it
protocol.py                 HTTP/1.1 and HTTP/2 state machines (hypercorn's, repaired)
transport.py                one connection: bytes in, bytes out, deadlines, orderly close
serving.py                  the accept loop, who the peer is, start and stop
listeners.py                addresses and bound sockets
stack.py                    pinned versions, and every private name we use of them
"""
