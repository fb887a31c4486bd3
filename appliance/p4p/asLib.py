"""p4p's access security is not part of this package: `appliance.acf` and `pvagw` take its place."""

raise ImportError(
    "p4p.asLib is not part of appliance.p4p: the gateway pvagw applies access security files and PV lists; "
    "the command acf-test tries them (docs/how-to/write-access-rules.md)",
    name=__name__,
)
