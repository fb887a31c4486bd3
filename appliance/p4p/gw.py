"""p4p's gateway is not part of this package: `pvagw` of this project takes its place."""

raise ImportError(
    "p4p.gw is not part of appliance.p4p: this project's gateway is the command pvagw; "
    "it reads p4p's configuration files (docs/how-to/move-from-p4p-gateway.md)",
    name=__name__,
)
