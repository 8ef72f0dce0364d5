"""Conditional and partial GETs, decided without I/O."""

from hypothesis import given
from hypothesis import strategies as st
from werkzeug.datastructures import Headers

from sandboxd.http.kit.ranges import Resource, plan

resources = st.builds(
    Resource, size=st.integers(0, 2**63), version=st.just("v1"), modified=st.floats(0, 2**31), ranges=st.booleans()
)
texts = st.text('bytes=0123456789-, ;"W/v1*', max_size=30)
headers = st.dictionaries(st.sampled_from(["Range", "If-Range", "If-None-Match"]), texts).map(Headers)


@given(resources, headers)
def test_whatever_is_asked_the_answer_fits_the_resource(resource: Resource, request: Headers) -> None:
    answer = plan(resource, request)
    assert answer.status in {200, 206, 304, 416}
    assert answer.has_body == (answer.status in {200, 206})
    assert answer.headers["etag"] == '"v1"'
    if answer.has_body:
        assert 0 <= answer.offset <= answer.offset + answer.length <= resource.size
    if answer.status == 200:
        assert (answer.offset, answer.length) == (0, resource.size)
    if answer.status == 206:
        last = answer.offset + answer.length - 1
        assert answer.length > 0
        assert answer.headers["content-range"] == f"bytes {answer.offset}-{last}/{resource.size}"


@given(st.integers(1, 1000), st.integers(0, 1200), st.integers(0, 1200))
def test_a_range_is_what_it_says(size: int, first: int, last: int) -> None:
    resource = Resource(size=size, version="v", modified=0)
    answer = plan(resource, Headers({"Range": f"bytes={first}-{last}"}))
    expected = bytes(size % 7 for _ in range(size))[first : last + 1]
    if first > last:
        assert answer.status == 200
    elif expected:
        assert (answer.status, answer.length) == (206, len(expected))
    else:
        assert answer.status == 416


def test_a_weak_validator_or_a_date_does_not_let_a_download_go_on() -> None:
    resource = Resource(size=10, version="v", modified=0)
    for value, status in (('"v"', 206), ('W/"v"', 200), ('"w"', 200), ("Thu, 01 Jan 1970 00:00:00 GMT", 200)):
        assert plan(resource, Headers({"Range": "bytes=1-2", "If-Range": value})).status == status
