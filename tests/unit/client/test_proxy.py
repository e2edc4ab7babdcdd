"""How proxies are named."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.client.proxy import Chain, Proxy, ProxySyntaxError, configured


@pytest.mark.parametrize(
    ("url", "proxy"),
    [
        ("192.0.2.1", Proxy("socks5", "192.0.2.1", 1080)),
        ("socks5h://gw.example:1081", Proxy("socks5", "gw.example", 1081)),
        ("socks4a://me@gw", Proxy("socks4a", "gw", 1080, "me")),
        ("http://ann:p%40ss@[2001:db8::1]:3128/", Proxy("http", "2001:db8::1", 3128, "ann", "p@ss")),
        ("https://gw?name=proxy.example", Proxy("http", "gw", 443, tls=True, name="proxy.example")),
        ("socks5+tls://gw:1443?ca=/x", Proxy("socks5", "gw", 1443, tls=True, ca="/x")),
        ("socks5://gw?gssapi=integrity&service=socks", Proxy("socks5", "gw", gssapi="integrity", service="socks")),
    ],
)
def test_a_url(url: str, proxy: Proxy) -> None:
    assert Proxy.parse(url) == Proxy(url) == proxy
    assert Proxy.parse(str(proxy)).host == proxy.host
    assert Chain([url, proxy]) == Chain((proxy, proxy)) == Chain.of([proxy, url])
    assert Chain(url) == Chain.of(proxy)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("ftp://gw", "ftp is no kind of proxy"),
        ("socks5://", "no host"),
        ("socks5://ann:secret@gw:0", "is not SCHEME"),
        ("socks5://ann:secret@gw:70000", "(?i)port"),
        ("socks5://gw/path", "is not SCHEME"),
        ("socks5://ann:secret@gw?gssapi=yes", "gssapi=yes"),
        ("http://gw?gssapi=none", "gssapi=none"),
        ("socks5://gw?tls=1", "tls: no such option"),
        ("socks5://gw?ca=/x", "ca means something inside TLS only"),
        ("socks5://gw?service=", "service: needs one value"),
        ("socks5://ann@gw?password_file=/missing", "/missing"),
        (f"socks5://{'a' * 256}:secret@gw", "255"),
    ],
)
def test_a_url_that_is_wrong(url: str, says: str) -> None:
    with pytest.raises(ProxySyntaxError, match=says) as caught:
        Proxy.parse(url)
    assert "secret" not in str(caught.value)


def test_no_password_is_shown() -> None:
    proxy = Proxy.parse("socks5://ann:secret@gw")
    assert "secret" not in repr(proxy) + str(proxy) + str(Chain.of(proxy))


def test_a_password_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("secret\n")
    assert Proxy.parse(f"socks5://ann@gw?password_file={tmp_path}/password").password == "secret"
    (tmp_path / "password").write_text("")
    with pytest.raises(ProxySyntaxError, match="no password"):
        Proxy.parse(f"socks5://ann@gw?password_file={tmp_path}/password")


def test_what_is_configured(tmp_path: Path) -> None:
    home = {"HOME": str(tmp_path)}
    assert configured(home) is None
    file = tmp_path / ".config/algate/client.toml"
    file.parent.mkdir(parents=True)
    file.write_text('via = ["socks5://a", "http://b:8080"]\n')
    assert str(configured(home)) == "socks5://a:1080 http://b:8080"
    assert str(configured({**home, "SOCKS_SERVER": "c:1081"})) == "socks5://c:1081"
    assert str(configured({**home, "SOCKS_SERVER": "c", "ALL_PROXY": "http://d:1"})) == "http://d:1"
    assert str(configured({**home, "ALL_PROXY": "d", "ALGATE_PROXY": "e f"})) == "socks5://e:1080 socks5://f:1080"
    with pytest.raises(ProxySyntaxError, match="ALL_PROXY: ftp://d"):
        configured({**home, "ALL_PROXY": "ftp://d"})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("via = 1", "via: is neither"),
        ("via = []", "via: is neither"),
        ("", "via: is neither"),
        ('via = "ftp://x"', "via: ftp://x"),
        ('proxy = "x"', "proxy: no such key"),
        ("via = ", "client.toml"),
    ],
)
def test_a_file_that_is_wrong(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "algate").mkdir()
    (tmp_path / "algate/client.toml").write_text(text)
    with pytest.raises(ProxySyntaxError, match=says):
        configured({"XDG_CONFIG_HOME": str(tmp_path)})


def test_a_chain_of_nothing() -> None:
    with pytest.raises(ProxySyntaxError):
        Chain.of([])
    with pytest.raises(ProxySyntaxError):
        Chain([])


def test_a_kind_that_is_none() -> None:
    with pytest.raises(ProxySyntaxError, match="ftp is no kind of proxy"):
        Proxy("ftp", "gw")
    with pytest.raises(ProxySyntaxError, match="no kind of proxy") as refused:
        Proxy("socks5://ann:secret@gw", "gw")
    assert "secret" not in str(refused.value)
