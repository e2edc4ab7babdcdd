"""Errors of UPnP: those of control answers (UDA 1.1, 3.2.2, and the tables of the services), and those of HTTP."""

from __future__ import annotations

DESCRIPTIONS = {
    401: "Invalid Action",
    402: "Invalid Args",
    501: "Action Failed",
    600: "Argument Value Invalid",
    601: "Argument Value Out of Range",
    606: "Action not authorized",
    714: "NoSuchEntryInArray",
    713: "SpecifiedArrayIndexInvalid",
    715: "WildCardNotPermittedInSrcIP",
    716: "WildCardNotPermittedInExtPort",
    718: "ConflictInMappingEntry",
    727: "ExternalPortOnlySupportsWildcard",
    728: "NoPortMapsAvailable",
    729: "ConflictWithOtherMechanisms",
    730: "PortMappingNotFound",
    731: "ReadOnly",
    732: "WildCardNotPermittedInIntPort",
    733: "InconsistentParameters",
}
"""The descriptions of error codes that WANIPConnection and all services have."""

PINHOLE_DESCRIPTIONS = {
    701: "PinholeSpaceExhausted",
    702: "FirewallDisabled",
    703: "InboundPinholeNotAllowed",
    704: "NoSuchEntry",
    705: "ProtocolNotSupported",
    706: "InternalPortWildcardingNotAllowed",
    707: "ProtocolWildcardingNotAllowed",
    708: "WildCardNotPermittedInSrcIP",
    709: "NoTrafficReceived",
}
"""The descriptions of error codes that only WANIPv6FirewallControl:1 has."""

REASONS = {
    200: "OK",
    400: "Bad Request",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    411: "Length Required",
    412: "Precondition Failed",
    413: "Content Too Large",
    417: "Expectation Failed",
    429: "Too Many Requests",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    501: "Not Implemented",
    503: "Service Unavailable",
    505: "HTTP Version Not Supported",
}
"""The reason phrases of HTTP status codes (RFC 9110, section 15; RFC 6585)."""


class ActionError(Exception):
    """An action was refused: `code` as the service's standard has it."""

    def __init__(self, code: int) -> None:
        self.code = code
        self.description = DESCRIPTIONS.get(code) or PINHOLE_DESCRIPTIONS.get(code) or "Action Failed"
        super().__init__(f"{code} {self.description}")


class HttpError(Exception):
    """A request was refused with this status of HTTP."""

    def __init__(self, status: int) -> None:
        self.status = status
        super().__init__(f"{status} {REASONS[status]}")
