"""The egress gateway: an unprivileged process that owns what sandboxes say to the world, and the policy it follows.

    names, addresses        what a host name and an address are, in one form each; which addresses nobody gets
    policy                  what a sandbox may reach: frozen values, and the questions put to them (no I/O)
    spec                    a policy or a site's settings as somebody typed them, checked
    sniff, requests         whom a client wants to talk to, from its first bytes and each later HTTP request (no I/O)
    dns_messages, datagram  DNS messages and IP packets from and to sandboxes (no I/O)
    resolver, routes        the gateway's own questions: to DNS servers, and to the kernel's routing
    sandbox, limits         one sandbox: its policy, pins, limits, counters, recent decisions
    name_service, tcp,      what a sandbox asks and sends, answered or passed on
    relay, udp
    control, server         the daemon's commands, and the process as a whole

It stands alone: the standard library, trio, h11, dnspython, idna and publicsuffixlist are all it imports.
"""
