"""Reading the configuration: TOML in, `Config` out. Every error names the file and the line or key path."""

from __future__ import annotations

import dataclasses
import os
import re
import socket
import tomllib
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from alg.registry import BrokenModule, options_by_name, transports
from gateway.config.access_file import AccessError, Lookups, parse_access_file
from gateway.config.check import BadValue, check
from gateway.config.messages import readable, resembling
from gateway.config.schema import DEFAULT_ALG, DEFAULT_PATH, AlgSection, Config
from gateway.config.schema_rules import Loaded
from gateway.model.errors import ConfigError

_T = TypeVar("_T")


def load_config(path: str | os.PathLike[str] | None = None) -> Config:
    """Read and validate a configuration file.

    Without `path`: /etc/algate/algate.toml if there is one, else the defaults (SOCKS on loopback). Raises ConfigError.
    """
    if path is None:
        if not DEFAULT_PATH.exists():
            return parse_config("", "default configuration")
        path = DEFAULT_PATH
    try:
        text = Path(path).read_bytes().decode()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text (byte {error.start})") from error
    return parse_config(text, str(path))


def parse_config(text: str, source: str) -> Config:
    """Validate a TOML document; `source` names it in errors. Raises ConfigError."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        message = str(error)
        found = re.search(r"\(at line (\d+), column (\d+)\)", message)
        lines = text.splitlines() or [""]
        line, column = (found[1], found[2]) if found else (len(lines), len(lines[-1]) + 1)  # "at end of document"
        where = f"{source}:{line}:{column}"
        what = re.sub(r"Cannot declare \((.*?),?\) twice", r"the table \1 is there twice", message.split(" (at ")[0])
        raise ConfigError(f"{where}: {what}") from error
    try:
        if "loaded" in document:
            raise BadValue("loaded: unknown key")
        config = _convert(_with_defaults(document), Config)
        check(config)
        return msgspec.structs.replace(config, loaded=_load_others(config, text))
    except BadValue as error:
        raise ConfigError(f"{source}: {error}") from error


def _load_others(config: Config, text: str) -> Loaded:
    """What stands in the other files that the configuration names, and on which lines of `text` the rules begin."""
    lines = [number for number, line in enumerate(text.splitlines(), 1) if re.match(r"\s*\[\[\s*rule\s*\]\]", line)]
    passwords: dict[str, str] = {}
    for i, upstream in enumerate(config.upstream):
        if upstream.password_file:
            password = _read(f"upstream[{i}].password_file", upstream.password_file).strip("\r\n")
            if not 1 <= len(password.encode()) <= 255:
                raise BadValue(f"upstream[{i}].password_file: its password is not 1 to 255 bytes long")
            passwords[upstream.name] = password
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
        rule_lines=tuple(lines) if len(lines) == len(config.rule) else (),
        access=tuple(line.rule for line in access),
        access_places=tuple(line.place for line in access),
        passwords=passwords,
    )


def _read(key: str, path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise BadValue(f"{key}: {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise BadValue(f"{key}: {path} is not UTF-8 text (byte {error.start})") from error


def _host_addresses(name: str) -> list[str]:
    """The IPv4 addresses of a host in the access file, as the classic sockd took them: once, when it reads the file."""
    found = socket.getaddrinfo(name, None, socket.AF_INET, socket.SOCK_STREAM)
    return sorted({str(address[0]) for *_, address in found})


def _with_defaults(document: dict[str, Any]) -> dict[str, Any]:
    """The document with what a default depends on: a module's ports, a run_dir that this user can make."""
    if isinstance(document.get("alg", {}), dict):
        sections = {name: msgspec.to_builtins(section) for name, section in DEFAULT_ALG.items()}
        for name, section in document.get("alg", {}).items():
            sections[name] = {**sections.get(name, {}), **section} if isinstance(section, dict) else section
        for name, section in sections.items():
            if isinstance(section, dict):
                sections[name] = section = _with_options(name, section)
            _convert(section, AlgSection, f"alg.{name}")  # of a mapping msgspec would not name the key
        document["alg"] = sections
    process = document.setdefault("process", {})
    if isinstance(process, dict) and "run_dir" not in process and os.geteuid() != 0:
        base = os.environ.get("XDG_RUNTIME_DIR")
        theirs = f"{base}/algate" if base else f"/tmp/algate-{os.geteuid()}"  # noqa: S108  checked when made
        process["run_dir"] = os.environ.get("RUNTIME_DIRECTORY", theirs)  # systemd has made it for the service
    return document


def _with_options(name: str, section: dict[str, Any]) -> dict[str, Any]:
    """The section with the keys that are the module's own apart, complete and checked."""
    common = [key for key in AlgSection.__struct_fields__ if key != "options"]
    own = {key: value for key, value in section.items() if key not in common and (key != "options" or value != {})}
    try:
        kinds, options = transports(), options_by_name()
    except BrokenModule as error:
        raise BadValue(f"alg: {error}") from error
    if name in kinds:
        known = options[name]
        for key in own:
            if known is None or key not in known.__dataclass_fields__:
                fields = list(known.__dataclass_fields__) if known else []
                raise BadValue(f"alg.{name}.{key}: unknown key{resembling(key, [*common, *fields])}")
        if known is not None:
            own = msgspec.to_builtins(dataclasses.asdict(_convert(own, known, f"alg.{name}")))
    section = {"transports": list(kinds.get(name, ())), **section}
    return {**{key: section[key] for key in common if key in section}, "options": own}


def _convert(value: Any, kind: type[_T], prefix: str = "") -> _T:
    """`value` as a `kind`. BadValue names the key, below `prefix`."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise BadValue(readable(str(error), kind, prefix)) from error
