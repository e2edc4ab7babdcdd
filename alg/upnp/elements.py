"""Small XML documents of strangers: read by expat, without document type, entities, or depth without end."""

from __future__ import annotations

from dataclasses import dataclass, field
from xml.parsers import expat

LONGEST = 8192  # bytes of a document
DEEPEST = 16  # elements within each other

_ESCAPES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;"})


@dataclass(slots=True)
class XmlElement:
    """An element: `name` without its prefix, the text directly in it, and the elements in it."""

    name: str
    text: str = ""
    children: list[XmlElement] = field(default_factory=list)

    def child(self, name: str) -> XmlElement | None:
        """Return the first element of this name in it."""
        return next((child for child in self.children if child.name == name), None)


class _Reader:
    def __init__(self, deepest: int) -> None:
        self.root: XmlElement | None = None
        self._deepest = deepest
        self._open: list[tuple[XmlElement, list[str]]] = []

    def start(self, name: str, _attributes: object) -> None:
        if len(self._open) >= self._deepest:
            raise ValueError(f"more than {self._deepest} elements within each other")
        element = XmlElement(name.rpartition(":")[2])
        if self._open:
            self._open[-1][0].children.append(element)
        else:
            self.root = element
        self._open.append((element, []))

    def end(self, _name: str) -> None:
        element, text = self._open.pop()
        element.text = "".join(text)

    def text(self, data: str) -> None:
        if self._open:
            self._open[-1][1].append(data)


def _refuse(*_: object) -> None:
    raise ValueError("a document type is not accepted")


def read(data: bytes, deepest: int = DEEPEST, longest: int = LONGEST) -> XmlElement:
    """Read a document of at most `longest` bytes, and return its root. The text is UTF-8; where it is not, ISO 8859-1,
    whatever the document says of itself. Raises ValueError for anything else, and for a document type (so that there
    are no entities but the five of XML)."""
    if len(data) > longest:
        raise ValueError(f"{len(data)} bytes are more than {longest}")
    try:
        data.decode()
    except UnicodeDecodeError:
        data = data.decode("latin-1").encode()
    reader = _Reader(deepest)
    parser = expat.ParserCreate("utf-8")
    parser.buffer_text = True
    parser.StartDoctypeDeclHandler = _refuse
    parser.EntityDeclHandler = _refuse
    parser.StartElementHandler = reader.start
    parser.EndElementHandler = reader.end
    parser.CharacterDataHandler = reader.text
    try:
        # Some clients count the zero byte at the end of their text in.
        parser.Parse(data.rstrip(b"\0 \t\r\n"), True)
    except expat.ExpatError as error:
        raise ValueError(str(error)) from error
    if reader.root is None:
        raise ValueError("there is no element")
    return reader.root


def escape(text: str) -> str:
    """Return text as it stands in an element or an attribute. What XML 1.0 cannot say (section 2.2) is left out."""
    return "".join(filter(_is_character, text)).translate(_ESCAPES)


def _is_character(character: str) -> bool:
    return (
        character in "\t\n\r"
        or " " <= character <= "\ud7ff"
        or "\ue000" <= character <= "\ufffd"
        or character > "\uffff"
    )


def plain(text: str, longest: int) -> str:
    """Return what a client has said as one line for people: without control characters, and at most `longest`
    characters long."""
    return "".join(character for character in text if character.isprintable())[:longest].strip()
