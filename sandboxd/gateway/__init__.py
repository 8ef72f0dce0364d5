"""The network policy of sandboxes, and what their bytes say of whom they want to talk to: no I/O in any of it.

    names, addresses        what a host name and an address are, in one form each; which addresses nobody gets
    policy                  what a sandbox may reach: frozen values, and the questions put to them (no I/O)
    spec                    a policy or a site's settings as somebody typed them, checked
    sniff, requests         whom a client wants to talk to, from its first bytes and each later HTTP request (no I/O)
    dns_messages, datagram  DNS messages and IP packets from and to sandboxes (no I/O)

It stands alone: the standard library, trio, h11, dnspython, idna and publicsuffixlist are all it imports.
"""
