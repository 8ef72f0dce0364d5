"""The Python SDK: a typed client of the daemon's native API, over its Unix socket or TCP.

    from sandboxd.client import Client

    with Client() as client:                             # SANDBOXD_URL, or this user's daemon
        sandbox = client.create(image="base")
        result = client.shell(sandbox, "uname -a")
        with client.exec(sandbox, ["cat"], stdin=True) as command:
            ...

`AsyncClient` has the same methods as coroutines, on trio and on asyncio. The manual's page "sdk" is a tour.

api.py         AsyncClient: one method per operation; those of background commands, terminals, files, ports, watches
               and code are in background.py, ptys.py, files.py, ports.py, watches.py and code.py; calls.py has what
               all of them share
sync.py        Client: the same on blocking sockets
execution.py   a command with live input and output, and the window of its stdin
models.py      what the methods return
errors.py      what they raise
address.py     where the daemon is, and connecting to it
http.py        HTTP/1.1 over a stream (h11), and a pool of connections
websocket.py   a websocket over a stream (wsproto)
streams.py     server-sent events and pages as iterators; sse.py decodes the former
network/       streams, locks and waiting on trio, on asyncio and on blocking sockets
"""

from sandboxd.client.address import Address as Address
from sandboxd.client.address import default_address as default_address
from sandboxd.client.api import AsyncClient as AsyncClient
from sandboxd.client.background import Ended as Ended
from sandboxd.client.background import LogEvent as LogEvent
from sandboxd.client.code import CodeContext as CodeContext
from sandboxd.client.code import CodeEnded as CodeEnded
from sandboxd.client.code import CodeError as CodeError
from sandboxd.client.code import CodeEvent as CodeEvent
from sandboxd.client.code import CodeOutput as CodeOutput
from sandboxd.client.code import CodeResult as CodeResult
from sandboxd.client.code import Execution as Execution
from sandboxd.client.errors import ApiError as ApiError
from sandboxd.client.errors import ClientError as ClientError
from sandboxd.client.errors import ConnectionLost as ConnectionLost
from sandboxd.client.errors import DaemonUnreachable as DaemonUnreachable
from sandboxd.client.errors import InputClosed as InputClosed
from sandboxd.client.errors import StreamEnded as StreamEnded
from sandboxd.client.errors import TimedOut as TimedOut
from sandboxd.client.execution import Exec as Exec
from sandboxd.client.execution import ExecEvent as ExecEvent
from sandboxd.client.execution import Exited as Exited
from sandboxd.client.execution import Output as Output
from sandboxd.client.execution import OutputLost as OutputLost
from sandboxd.client.execution import Started as Started
from sandboxd.client.execution import StdinClosed as StdinClosed
from sandboxd.client.models import ApiKey as ApiKey
from sandboxd.client.models import BackgroundCommand as BackgroundCommand
from sandboxd.client.models import Capabilities as Capabilities
from sandboxd.client.models import CommandLogs as CommandLogs
from sandboxd.client.models import CommandResult as CommandResult
from sandboxd.client.models import Event as Event
from sandboxd.client.models import ExposedPort as ExposedPort
from sandboxd.client.models import FileInfo as FileInfo
from sandboxd.client.models import Health as Health
from sandboxd.client.models import Image as Image
from sandboxd.client.models import ListeningPort as ListeningPort
from sandboxd.client.models import LogRecord as LogRecord
from sandboxd.client.models import Metrics as Metrics
from sandboxd.client.models import Sandbox as Sandbox
from sandboxd.client.models import SandboxOptions as SandboxOptions
from sandboxd.client.models import Unpacked as Unpacked
from sandboxd.client.models import UploadState as UploadState
from sandboxd.client.models import Watch as Watch
from sandboxd.client.models import WatchEvent as WatchEvent
from sandboxd.client.models import WatchEvents as WatchEvents
from sandboxd.client.ports import PortStream as PortStream
from sandboxd.client.ptys import Attached as Attached
from sandboxd.client.ptys import PtyAttachment as PtyAttachment
from sandboxd.client.ptys import PtyEvent as PtyEvent
from sandboxd.client.ptys import Refused as Refused
from sandboxd.client.ptys import Writer as Writer
from sandboxd.client.snapshots import Clones as Clones
from sandboxd.client.snapshots import Snapshot as Snapshot
from sandboxd.client.snapshots import Storage as Storage
from sandboxd.client.sync import BlockingAttachment as BlockingAttachment
from sandboxd.client.sync import BlockingExec as BlockingExec
from sandboxd.client.sync import BlockingPortStream as BlockingPortStream
from sandboxd.client.sync import Client as Client
from sandboxd.client.sync import Download as Download
