"""A terminal's past, made fit to be shown again: without its questions, which were answered then.

A program asks its terminal what it is, where its cursor stands, which colours it has, and the terminal types the
answer. Were such a question shown again, the answer would be typed into whatever runs now.
"""

import re

_QUERY = re.compile(
    rb"\x1b\[[?>=]?[0-9;]*[cn]"  # device attributes (DA1..3) and status (DSR)
    rb"|\x1b\[>[0-9;]*q"  # XTVERSION
    rb"|\x1b\[\??[0-9;]*\$p"  # DECRQM
    rb"|\x1b\[\?[0-9;]*u"  # kitty's keyboard
    rb"|\x1b\[(?:1[1-9]|2[01])(?:;[0-9]+)?t"  # reports of the window
    rb"|\x1b\][0-9]+(?:;[0-9]+)?;\?(?:\x07|\x1b\\)"  # colours (OSC 4, 10, 11, …)
    rb"|\x1bP(?:\$|\+)q[^\x1b]*\x1b\\"  # DECRQSS, XTGETTCAP
    rb"|\x1bZ|\x05"  # DECID, ENQ
)


def without_queries(output: bytes) -> bytes:
    return _QUERY.sub(b"", output)
