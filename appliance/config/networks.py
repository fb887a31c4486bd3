"""Lists of addresses and networks in configuration files: who is meant, by address and never by name."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["Networks"]


class Networks:
    """Some addresses and networks.

    Args:
        items: Addresses (``10.0.0.5``, ``fd00::5``) and networks (``10.0.0.0/24``).

    Raises:
        ValueError: An item is neither, or means every address; the message says which.
    """

    __slots__ = ("_networks",)

    def __init__(self, items: Iterable[str] = ()) -> None:
        from ipaddress import ip_network  # loaded only where such a list is used: tools start faster without

        self._networks = []
        for item in items:
            try:
                network = ip_network(item)
            except ValueError as error:
                raise ValueError(
                    f"{item[:64]!r} is neither an address nor a network ({error}); write 10.0.0.5, 10.0.0.0/24 or fd00::5"
                ) from None
            if not network.prefixlen:
                raise ValueError(f"{item!r} means every address; name the addresses that are meant")
            self._networks.append(network)

    def __contains__(self, host: object) -> bool:
        """Whether the address ``host`` is one of these; also one of IPv4 that is mapped into IPv6."""
        if not self._networks:
            return False
        from ipaddress import ip_address

        try:
            address = ip_address(str(host).partition("%")[0])
        except ValueError:
            return False
        address = getattr(address, "ipv4_mapped", None) or address
        return any(address in network for network in self._networks)

    def __bool__(self) -> bool:
        return bool(self._networks)
