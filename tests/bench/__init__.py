"""`make bench`: sandboxd measured beside its peers, interleaved in one run, on one machine.

    __main__    options, order, and the exit
    machine     facts about this machine; the private view of it in which everything is measured
    measure     trials taken turn by turn, and what becomes of their numbers
    systems     what a measured system can be asked to do
    sandboxd    the daemon over its Unix socket, and sandboxctl
    peers/      bubblewrap, OCI runtimes, podman, dockerd, kern, nsjail
    provision   getting the peers
    rows        what is measured
    density     memory of idle sandboxes
    terminals   keys and logs
    report      aims, table, JSON

Fairness: the same root file system and command for all, no network, warm caches, alternating order. Where conditions
differ they favour the peer (no overlay, no user namespace, no system call filter unless it is the tool's own
default), and each system's conditions are printed. Failures are counted and shown, not dropped.
"""
