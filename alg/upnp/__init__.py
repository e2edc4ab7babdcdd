"""UPnP for Internet gateways: discovery (SSDP), descriptions, control (SOAP) and events (GENA), pure.

Standards: UPnP Device Architecture 1.1, InternetGatewayDevice:1 and :2 with WANIPConnection:1 and :2,
WANCommonInterfaceConfig:1, Layer3Forwarding:1 and WANIPv6FirewallControl:1.
"""
