"""p4p's tool that counts objects is not part of this package, nor of p4p since 4.3."""

raise ImportError(
    "p4p.disect is not part of appliance.p4p, nor of p4p since 4.3: use tracemalloc or objgraph, and p4p.listRefs()",
    name=__name__,
)
