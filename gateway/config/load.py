"""Reads the configuration: TOML in, `Config` out. Every error names the file and the line or the path of the key."""

from __future__ import annotations

import codecs
import dataclasses
import os
import re
import socket
import ssl
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard, TypeVar

import msgspec

from alg.registry import BrokenModule, Declared, declared
from gateway.config.access_file import AccessError, Lookups, parse_access_file
from gateway.config.check import BadValue, check
from gateway.config.messages import readable, resembling
from gateway.config.places import lines_of, nearest, others_in, path_in
from gateway.config.schema import DEFAULT_PATH, AlgSection, Config
from gateway.config.schema_rules import Loaded
from gateway.model.certificates import load_authorities, load_chain
from gateway.model.errors import ConfigError

_T = TypeVar("_T")


_QUOTES = re.compile("[“”„‘’«»]")  # of word processors and web pages
DROP_INS = "conf.d"  # the folder beside the configuration file whose *.toml are read after it


class _Source(msgspec.Struct, frozen=True):
    """A file of the configuration: its tables, the line of each key, and how many tables of each [[array]] the files
    before it have."""

    name: str
    document: dict[str, Any]
    lines: dict[str, int]
    before: dict[str, int]

    def place(self, path: str) -> tuple[int, str] | None:
        """Return FILE:LINE of a key of the whole configuration, or of the nearest part of its path that is in this
        file, and before it how long that part is; None if no part is."""
        found = re.match(r"(\w+)\[(\d+)\]", path)
        if found:
            index = int(found[2]) - self.before.get(found[1], 0)
            if index < 0:
                return None
            path = f"{found[1]}[{index}]{path[found.end() :]}"
        part = nearest(self.lines, path)
        return None if part is None else (len(part), f"{self.name}:{self.lines[part]}")

    def places(self) -> dict[str, str]:
        """Return FILE:LINE of each key by its path in the whole configuration. The keys within rules are left out,
        because they are many."""
        found = {}
        for path, line in self.lines.items():
            array = re.match(r"(\w+)\[(\d+)\]", path)
            if array:
                path = f"{array[1]}[{int(array[2]) + self.before.get(array[1], 0)}]{path[array.end() :]}"
            if not path.startswith("rule[") or path.endswith("]"):
                found[path] = f"{self.name}:{line}"
        return found


def load_config(path: str | os.PathLike[str] | None = None) -> Config:
    """Read and validate a configuration file and the files `conf.d/*.toml` beside it, in the order of their names.

    A table of a later file is merged into that of earlier files, and a key that it sets again replaces the earlier one;
    [[tables]] are appended. Without `path`: /etc/algate/algate.toml and /etc/algate/conf.d, if they exist, otherwise
    the defaults (SOCKS on loopback). Raises ConfigError.
    """
    main = Path(DEFAULT_PATH if path is None else path)
    try:
        there = path is not None or main.exists()
    except OSError as error:
        raise ConfigError(f"{main}: cannot be read: {error.strerror}") from error
    texts = [(_text_of(main), str(main))] if there else []
    drop_ins = main.parent / DROP_INS
    try:
        files = sorted(file for file in drop_ins.glob("*.toml") if not file.name.startswith("."))
    except OSError as error:
        raise ConfigError(f"{drop_ins}: cannot be read: {error.strerror}") from error
    texts += [(_text_of(file), str(file)) for file in files]
    return _parse(texts or [("", "default configuration")])


def parse_config(text: str, source: str) -> Config:
    """Validate a TOML document; `source` names it in errors. Raises ConfigError."""
    return _parse([(text, source)])


def _text_of(path: Path) -> str:
    try:
        content = path.read_bytes().removeprefix(codecs.BOM_UTF8)  # as editors of Windows write it
        return content.decode()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}:{line}: is not UTF-8 text (byte 0x{content[error.start]:02x})") from error


def _parse(texts: list[tuple[str, str]]) -> Config:
    document: dict[str, Any] = {}
    sources: list[_Source] = []
    for text, name in texts:
        tables = _tables(text, name)
        before = {key: len(value) for key, value in document.items() if isinstance(value, list)}
        sources.append(_Source(name, tables, lines_of(text), before))
        _merge(document, tables)
    try:
        if "loaded" in document:
            raise BadValue("loaded: unknown key")
        config = _convert(_with_defaults(document), Config)
        check(config)
        return msgspec.structs.replace(config, loaded=_load_others(config, sources))
    except BadValue as error:
        raise ConfigError(f"{_place(sources, str(error))}: {error}") from error


def _tables(text: str, source: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        message = str(error)
        found = re.search(r"\(at line (\d+), column (\d+)\)", message)
        lines = text.splitlines() or [""]
        line, column = (found[1], found[2]) if found else (len(lines), len(lines[-1]) + 1)  # "at end of document"
        where = f"{source}:{line}:{column}"
        what = re.sub(r"Cannot declare \((.*?),?\) twice", r"the table \1 is there twice", message.split(" (at ")[0])
        if text.splitlines() and (found_quote := _QUOTES.search(text.splitlines()[int(line) - 1])):
            what += f" (TOML's quotation mark is \", not {found_quote[0]})"
        raise ConfigError(f"{where}: {what}") from error


def _merge(into: dict[str, Any], tables: dict[str, Any]) -> None:
    """Merge the tables of a later file."""
    for key, value in tables.items():
        there = into.get(key)
        if isinstance(there, dict) and isinstance(value, dict):
            _merge(there, value)
        elif _is_array_of_tables(there) and _is_array_of_tables(value):
            into[key] = [*there, *value]
        else:
            into[key] = value


def _is_array_of_tables(value: Any) -> TypeGuard[list[dict[str, Any]]]:
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)


def _place(sources: list[_Source], message: str) -> str:
    """Return FILE:LINE of the key with which a message begins. If that key is in no file (a default), return the place
    of the key with which it conflicts; if there is none either, only the first file's name."""
    for path in (path_in(message), *others_in(message)):
        found = [place for source in reversed(sources) if (place := source.place(path)) is not None]
        if found:
            # Of a table that stands in several files the one with the key itself; of a key that is set twice the last.
            return max(found, key=lambda place: place[0])[1]
    return sources[0].name


def _load_others(config: Config, sources: list[_Source]) -> Loaded:
    """Read the other files that the configuration names, and note where its keys stand."""
    places = {path: place for source in sources for path, place in source.places().items()}
    passwords: dict[str, str] = {}
    for i, upstream in enumerate(config.upstream):
        if upstream.password_file:
            password = _read(f"upstream[{i}].password_file", upstream.password_file).strip("\r\n")
            if not 1 <= len(password.encode()) <= 255:
                raise BadValue(f"upstream[{i}].password_file: its password is not 1 to 255 bytes long")
            passwords[upstream.name] = password
    authorities, certificates = _of_tls(config)
    path = config.socks.access_file
    access = []
    if path:
        content = _read("socks.access_file", path)
        lookups = Lookups(_host_addresses, socket.getservbyname, lambda name: Path(name).read_text())
        try:
            access = parse_access_file(content, path, config.socks.access_masks, lookups)
        except AccessError as error:
            raise ConfigError(str(error)) from error
    return Loaded(
        places=places,
        access=tuple(line.rule for line in access),
        access_places=tuple(line.place for line in access),
        passwords=passwords,
        authorities=authorities,
        certificates=certificates,
    )


def _of_tls(config: Config) -> tuple[dict[str, str], dict[str, str]]:
    """Read the authorities and the certificates of upstreams, by the upstreams' names."""
    authorities: dict[str, str] = {}
    certificates: dict[str, str] = {}
    for i, upstream in enumerate(config.upstream):
        for key, path, texts, load in (
            ("ca", upstream.ca, authorities, load_authorities),
            ("certificate", upstream.certificate, certificates, load_chain),
        ):
            if path:
                texts[upstream.name] = text = _read(f"upstream[{i}].{key}", path)
                try:
                    load(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), text)
                except ValueError as error:
                    raise BadValue(f"upstream[{i}].{key}: {path}: {error}") from error
    return authorities, certificates


def _read(key: str, path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise BadValue(f"{key}: {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise BadValue(f"{key}: {path} is not UTF-8 text (byte {error.start})") from error


def _host_addresses(name: str) -> list[str]:
    """Resolve a host of the access file to IPv4 addresses. As in the classic sockd this happens once, when the file is
    read."""
    found = socket.getaddrinfo(name, None, socket.AF_INET, socket.SOCK_STREAM)
    return sorted({str(address[0]) for *_, address in found})


def _with_defaults(document: dict[str, Any]) -> dict[str, Any]:
    """Return the document with defaults that depend on something: a module's ports, a run_dir that this user can
    create."""
    if isinstance(document.get("alg", {}), dict):
        try:
            installed = declared()
        except BrokenModule as error:
            raise BadValue(f"alg: {error}") from error
        sections: dict[str, Any] = {name: {} for name, module in installed.items() if module.is_ours}
        sections |= document.get("alg", {})
        for name, section in sections.items():
            if isinstance(section, dict):
                sections[name] = section = _with_options(name, section, installed)
            _convert(section, AlgSection, f"alg.{name}")  # of a mapping msgspec would not name the key
        document["alg"] = sections
    process = document.setdefault("process", {})
    if isinstance(process, dict) and "run_dir" not in process and os.geteuid() != 0:
        base = os.environ.get("XDG_RUNTIME_DIR")
        theirs = f"{base}/algate" if base else f"/tmp/algate-{os.geteuid()}"  # noqa: S108  checked when made
        process["run_dir"] = os.environ.get("RUNTIME_DIRECTORY", theirs)  # systemd has made it for the service
    return document


def _with_options(name: str, section: dict[str, Any], installed: Mapping[str, Declared]) -> dict[str, Any]:
    """Return the section of a module with what the module declares where it sets nothing, and the module's own keys
    apart, complete and checked."""
    common = [key for key in AlgSection.__struct_fields__ if key != "options"]
    own = {key: value for key, value in section.items() if key not in common and (key != "options" or value != {})}
    defaults: dict[str, Any] = {"transports": []}
    if module := installed.get(name):
        known = module.options
        defaults = {"mode": module.mode.value, "ports": list(module.ports), "transports": list(module.transports)}
        for key in own:
            if known is None or key not in known.__dataclass_fields__:
                fields = list(known.__dataclass_fields__) if known else []
                raise BadValue(f"alg.{name}.{key}: unknown key{resembling(key, [*common, *fields])}")
        if known is not None:
            own = msgspec.to_builtins(dataclasses.asdict(_convert(own, known, f"alg.{name}")))
    section = {**defaults, **section}
    return {**{key: section[key] for key in common if key in section}, "options": own}


def _convert(value: Any, kind: type[_T], prefix: str = "") -> _T:
    """Convert `value` to `kind`. Raises BadValue, which names the key, below `prefix`."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise BadValue(readable(str(error), kind, prefix)) from error
