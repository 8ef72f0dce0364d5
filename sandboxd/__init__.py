"""sandboxd: throw-away Linux machines in milliseconds on one ordinary Linux host.

The layers, top to bottom. Imports point downwards only; tests/test_layers.py holds it.

    cli/, client/     what people and programs use; they speak HTTP like anyone else
    daemon.py         composition: opens everything in order, closes it in reverse
    http/             bytes <-> domain values: serving, auth, streams, and one package per API dialect
    service/          the domain, the only owner of long-lived tasks: sandboxes, commands, images, events, keys
    isolation/        how a sandbox is made and talked to: the backend protocol, bubblewrap, sandbox-init's wire
    store.py          SQLite: schema, migrations, one writer thread
    kernel/           synchronous, standard library only, no policy: system calls, id maps, mounts, cgroups
    config.py errors.py model.py    frozen values and one error tree; every layer may use them
"""

__version__ = "0.1.0"
