import pytest

from cdl_jax.errors import masked


@pytest.mark.parametrize(
    "secret",
    [":hunter2", "me:hunter2", ":p@ss", ":pa/ss", "me:p?ss", "me:p#ss", ":a@b/c", ":a@b?c",
     "me:12/34", ":12/34", "me:1234567/8", ":p?x=1", ":/", ":abc==", ":[p/", "me:p/q@r?s"],
)  # fmt: skip
@pytest.mark.parametrize(
    "rest", ["h/s", "[::1]:1/s", "h:1/s?store=/home/me@x/f", "h/s?store=s3://b"]
)
def test_no_piece_of_a_password_is_left(secret, rest):
    if set("/?#") & set(secret):  # no address: how much is hidden behind it does not matter
        assert masked(f"redis://{secret}@{rest}").startswith("redis://***@")
        rest = rest.partition("?")[0]
    assert masked(f"at redis://{secret}@{rest} x") == f"at redis://***@{rest} x"


@pytest.mark.parametrize(
    "text",
    ["redis://h/s?store=/home/me@x/f", "redis://h:6379/s?store=/home/me@x/f",
     "redis://[::1]:6379/s?store=/home/me@x/f", "redis://[::1]/s?store=/home/me@x/f",
     "s3://bucket/a@b", "s3://bucket/a:1@b", "file:///home/me@x/y:z@", "http://h:80",
     "see redis://h:1/s or mail a@b", "redis://***@h/s"],
)  # fmt: skip
def test_what_is_no_password_stays(text):
    assert masked(text) == text


def test_each_url_is_masked_by_itself():
    text = '["redis://h:1/s", "redis://k:p@h"] redis://:p/q@h/s?store=s3://k:pw@b'
    assert masked(text) == '["redis://h:1/s", "redis://***@h"] redis://***@h/s?store=s3://***@b'
