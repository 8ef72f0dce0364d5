"""The manual as pages for a browser: /docs lists its topics, /docs/TOPIC is one of them.

The pages are whole in themselves: no script, no picture, nothing from elsewhere, and a Content-Security-Policy that
allows nothing else. Every link is relative, so they work below whatever prefix a proxy gives them.
"""

import base64
import functools
import hashlib
import html
import itertools
from typing import TYPE_CHECKING

from quart.wrappers import Response

from sandboxd import __version__, manual
from sandboxd.errors import NotFound
from sandboxd.http.kit.call import Call
from sandboxd.http.kit.routes import Route

if TYPE_CHECKING:
    from markdown_it.token import Token

_STYLE = """
:root { color-scheme: light dark; --text: #1b1f24; --soft: #57606a; --line: #d8dee4; --code: #f4f5f7;
  --link: #0550ae }
@media (prefers-color-scheme: dark) {
  :root { --text: #dde3ea; --soft: #98a3ae; --line: #333a42; --code: #1f2429; --link: #79b8ff } }
* { box-sizing: border-box }
body { margin: 0; font: 16px/1.6 system-ui, sans-serif; color: var(--text); display: grid;
  grid-template-columns: 15rem minmax(0, 48rem); gap: 0 3rem; padding: 0 1.5rem }
nav { border-right: 1px solid var(--line); padding: 1.5rem 1rem 2rem 0; font-size: .92rem; position: sticky; top: 0;
  max-height: 100vh; overflow: auto }
nav ul { list-style: none; margin: .2rem 0 1rem; padding: 0 } nav b { color: var(--soft) }
nav [aria-current] { font-weight: 700; color: var(--text) } nav ul ul { margin: 0 0 .3rem; padding-left: .9rem }
main { padding: 1rem 0 4rem } a { color: var(--link); text-decoration: none } a:hover { text-decoration: underline }
h1 { line-height: 1.2 } h2 { margin-top: 2.2rem; border-bottom: 1px solid var(--line) }
h1, h2, h3 { scroll-margin-top: 1rem } h2 a, h3 a { color: inherit }
code { font: .88em ui-monospace, monospace; background: var(--code); padding: .1em .3em; border-radius: .25em }
pre { background: var(--code); padding: .8rem 1rem; overflow: auto; border-radius: .4rem; line-height: 1.45 }
pre code { padding: 0; background: none }
dt { margin-top: .8rem; font-weight: 600 } dd { margin: 0; color: var(--soft) }
.table { overflow: auto } table { border-collapse: collapse; font-size: .93rem } th:empty { padding: 0 }
td, th { text-align: left; vertical-align: top; padding: .35rem 1rem .35rem 0; border-bottom: 1px solid var(--line) }
@media (max-width: 50rem) { body { display: block; padding: 0 1rem } main { padding-top: 0 }
  nav { position: static; border: 0; border-bottom: 1px solid var(--line); max-height: none; padding: 1rem 0 }
  nav.topic > :not(:first-child) { display: none } }
"""
_POLICY = "; ".join(
    (
        "default-src 'none'",
        f"style-src 'sha256-{base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()}'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)


async def _contents(_: Call) -> Response:
    return _answer(_contents_page())


async def _topic(_: Call, topic: str) -> Response:
    if topic not in manual.TOPICS:
        near = ", ".join(manual.near(topic))
        raise NotFound(
            f"cannot find a page {topic!r} in the manual: GET /docs lists them" + (f"; near: {near}" * bool(near))
        )
    return _answer(_topic_page(topic))


ROUTES = (
    Route(method="GET", path="/docs", handler=_contents, scope=None, summary="The manual's topics, as a page"),
    Route(method="GET", path="/docs/<topic>", handler=_topic, scope=None, summary="A page of the manual"),
)


def _answer(page: str) -> Response:
    response = Response(page.encode(), content_type="text/html; charset=utf-8")
    response.headers["content-security-policy"] = _POLICY
    response.headers["x-content-type-options"] = "nosniff"
    response.headers["referrer-policy"] = "no-referrer"
    return response


@functools.cache
def _contents_page() -> str:
    topics = "".join(
        f"<h2>{html.escape(section)}</h2><dl>{''.join(_entry(name) for name in names)}</dl>"
        for section, names in manual.SECTIONS.items()
    )
    about = (
        "<p>Throw-away Linux machines in milliseconds, on one ordinary Linux host. This is the manual of the daemon "
        "that serves this page; every route of its API is at <a href='v1/docs'>v1/docs</a>.</p>"
    )
    return _page("sandboxd", f"<h1>sandboxd {html.escape(__version__)}</h1>{about}{topics}", prefix="docs/")


def _entry(name: str) -> str:
    page = manual.page(name)
    return f"<dt><a href='docs/{name}'>{html.escape(page.title)}</a></dt><dd>{render_inline(page.summary)}</dd>"


@functools.cache
def _topic_page(topic: str) -> str:
    body, headings = render(manual.page(topic).text)
    return _page(manual.page(topic).title, body, topic=topic, headings=headings)


def _page(
    title: str, body: str, *, prefix: str = "", topic: str | None = None, headings: tuple[tuple[str, str], ...] = ()
) -> str:
    """A whole document. `prefix` leads from where it is to the topics."""
    root = "" if prefix else "../"
    parts = [f"<p><a href='{root}docs'><b>sandboxd</b></a> · <a href='{root}v1/docs'>API</a></p>"]
    for section, names in manual.SECTIONS.items():
        items = "".join(_link(name, prefix, headings if name == topic else None) for name in names)
        parts.append(f"<b>{html.escape(section)}</b><ul>{items}</ul>")
    return (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        "<meta name=viewport content='width=device-width, initial-scale=1'>"
        f"<title>{html.escape(title)} · sandboxd</title><style>{_STYLE}</style>"
        f"<nav class='{'topic' if topic else 'contents'}' aria-label=Manual>{''.join(parts)}</nav>"
        f"<main>{body}</main></html>"
    )


def _link(name: str, prefix: str, headings: tuple[tuple[str, str], ...] | None) -> str:
    current = "" if headings is None else " aria-current=page"
    below = "".join(f"<li><a href='#{anchor}'>{html.escape(text)}</a>" for anchor, text in headings or ())
    title = html.escape(manual.page(name).title)
    return f"<li><a href='{prefix}{name}'{current}>{title}</a>{f'<ul>{below}</ul>' if below else ''}"


def render(text: str) -> tuple[str, tuple[tuple[str, str], ...]]:
    """A page's Markdown as HTML, and its second-level headings as (anchor, text)."""
    from markdown_it import MarkdownIt  # loaded when the first page is asked for, not at every start

    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = parser.parse(text)
    headings = []
    for token, inline in itertools.pairwise(tokens):
        if token.type == "heading_open":
            anchor = manual.anchor(inline.content)
            token.attrSet("id", anchor)
            if token.tag != "h1":
                _link_to_itself(inline, anchor)
            if token.tag == "h2":
                headings.append((anchor, inline.content))
        for child in inline.children or ():
            if child.type == "link_open":
                child.attrSet("href", _address(str(child.attrGet("href"))))
    rendered = parser.renderer.render(tokens, parser.options, {})
    return rendered.replace("<table>", "<div class=table><table>").replace("</table>", "</table></div>"), tuple(
        headings
    )


def render_inline(text: str) -> str:
    """One line of Markdown as HTML, its links as their text alone."""
    from markdown_it import MarkdownIt

    return str(MarkdownIt("commonmark", {"html": False}).disable("link").renderInline(text))


def _link_to_itself(inline: "Token", anchor: str) -> None:
    from markdown_it.token import Token

    opening = Token("link_open", "a", 1, attrs={"href": f"#{anchor}"})
    inline.children = [opening, *(inline.children or ()), Token("link_close", "a", -1)]


def _address(target: str) -> str:
    """Where a link between the manual's files leads when they are pages."""
    file, mark, anchor = target.partition("#")
    return target if "/" in file else f"{file.removesuffix('.md')}{mark}{anchor}"
