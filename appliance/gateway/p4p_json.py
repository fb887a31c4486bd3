"""Configuration files of p4p's gateway, versions 1 and 2: from its keys to ours.

What they say becomes the same `GatewayConfig` that a YAML file gives, with the line of each key. p4p ignores keys that it
does not know; here they are refused, because a misspelt key must never mean a silent default.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple, NoReturn

from appliance.config import loader
from appliance.config.hints import unknown
from appliance.config.pva import from_variable
from appliance.config.section import Path, dotted
from appliance.errors import ConfigurationError
from appliance.gateway.config import GatewayConfig, Sides, resolve_sides
from appliance.gateway.json_lines import begins_with_brace, read_json, read_text

__all__ = ["Loaded", "Note", "load_config"]

_NOT_IN_A_NAME: Final = re.compile(r"[^A-Za-z0-9_.-]")
_LONGEST_NAME: Final = 64

_TOP_KEYS: Final = ("version", "readOnly", "statsdb", "clients", "servers")
_CLIENT_KEYS: Final = (
    "name", "provider", "addrlist", "autoaddrlist", "serverport", "bcastport", "tls_keychain",
)  # fmt: skip
_SERVER_KEYS: Final = (
    "name", "clients", "interface", "addrlist", "autoaddrlist", "ignoreaddr", "serverport", "bcastport",
    "getholdoff", "statusprefix", "access", "pvlist", "acf_client", "tls_keychain",
)  # fmt: skip
_NEEDLESS: Final = {
    "EPICS_PVA_MAX_ARRAY_BYTES": "arrays have no such limit",
    "EPICS_PVA_DEBUG": "use --debug",
    "EPICS_PVA_PROVIDER_NAMES": "there is one provider",
    "EPICS_PVAS_PROVIDER_NAMES": "there is one provider",
}
"""Variables of older software that have no meaning here, and why that does no harm."""


class Note(NamedTuple):
    """What a site should know about one key of its file."""

    path: Path
    """The key's place in the YAML form."""
    line: int | None
    """Its line in the JSON file."""
    key: str
    """The key in the JSON file."""
    text: str
    """The sentence."""


class Loaded(NamedTuple):
    """A configuration that was read, in whichever form it is written."""

    document: loader.Document[GatewayConfig]
    notes: tuple[Note, ...]
    """For a file of p4p's gateway: what is different here."""
    keys: Mapping[Path, Path] | None
    """For a file of p4p's gateway: the place in the file of each place in the YAML form. None for YAML."""

    @property
    def config(self) -> GatewayConfig:
        """The configuration."""
        return self.document.value

    @property
    def warnings(self) -> list[str]:
        """The notes, each as one sentence with file, line and key."""
        file = self.document.file
        return [
            str(ConfigurationError(note.text, file=file, line=note.line, key=note.key)) for note in self.notes
        ]

    def sides(self, environ: Mapping[str, str] | None = None) -> Sides:
        """Return the settings of all sides (`resolve_sides`).

        Raises:
            ConfigurationError: A value is bad.
        """
        try:
            return resolve_sides(self.config, self.document.section, environ)
        except ConfigurationError as error:
            if self.keys is None:
                raise
            raise _in_terms_of(error, self.keys) from error

    def placed(self, error: ConfigurationError) -> ConfigurationError:
        """Return an error about a key of this configuration with the file, the line and the key as it is written there."""
        if error.file is not None or error.key is None:
            return error
        lines = {dotted(path): line for path, line in self.document.lines.items()}
        for key in (
            error.key,
            error.key.partition("[")[0],
        ):  # an item that shares the line of its list may have none
            if key in lines:
                found = ConfigurationError(error.why, file=self.document.file, line=lines[key], key=key)
                return found if self.keys is None else _in_terms_of(found, self.keys)
        return error


def load_config(path: str, *, environ: Mapping[str, str] | None = None) -> Loaded:
    """Read a configuration file: JSON of p4p's gateway if it begins with a brace, otherwise our YAML.

    Raises:
        ConfigurationError: The file cannot be read, or it is wrong; the text has file, line and key.
    """
    text = read_text(path)
    if not begins_with_brace(text):
        document = loader.loads_document(text, GatewayConfig, file=path, environ=environ)
        return Loaded(document, (), None)
    translation = _Translation(*read_json(text, path), path)
    translation.run()
    try:
        document = loader.tree_document(
            translation.tree, translation.lines, GatewayConfig, file=path, environ=environ
        )
    except ConfigurationError as error:
        raise _in_terms_of(error, translation.keys) from error
    return Loaded(document, tuple(translation.notes), translation.keys)


def _in_terms_of(error: ConfigurationError, keys: Mapping[Path, Path]) -> ConfigurationError:
    """Name the JSON file's key instead of the YAML form's."""
    best: tuple[int, str | None] = (0, error.key)
    for path, origin in keys.items():
        name = dotted(path)
        if name and error.key is not None and f"{error.key}.".startswith(f"{name}."):
            best = max(best, (len(name), dotted(origin)), key=lambda found: found[0])
    return _renamed(error, best[1])


def _renamed(error: ConfigurationError, key: str | None) -> ConfigurationError:
    return ConfigurationError(error.why, file=error.file, line=error.line, key=key)


class _Translation:
    """Makes the tree that the YAML form of the same settings has."""

    def __init__(self, given: Any, lines: Mapping[Path, int], file: str) -> None:
        self.tree: dict[str, Any] = {}
        self.lines: dict[Path, int] = {}
        self.keys: dict[Path, Path] = {}
        self.notes: list[Note] = []
        self._given = given
        self._lines = lines
        self._file = file
        self._clients: dict[str, str] = {}
        """Our names of client sides by theirs."""
        self._version: Any = None

    # -- helpers -------------------------------------------------------------------------------------

    def _refuse(self, why: str, place: Path) -> NoReturn:
        line = next(
            (self._lines[place[:n]] for n in range(len(place), 0, -1) if place[:n] in self._lines), None
        )
        raise ConfigurationError(why, file=self._file, line=line, key=dotted(place))

    def _note(self, text: str, place: Path, path: Path) -> None:
        self.notes.append(Note(path, self._lines.get(place), dotted(place) or "", text))

    def _put(self, path: Path, value: Any, place: Path) -> None:
        """Set a value of our tree, and remember which key of the file it comes from."""
        tree: Any = self.tree
        for depth, part in enumerate(path[:-1], 1):
            tree = tree.setdefault(part, {})
            if path[:depth] not in self.lines and place in self._lines:
                self.lines[path[:depth]] = self._lines[place]
        tree[path[-1]] = value
        if place in self._lines:
            self.lines[path] = self._lines[place]
        self.keys[path] = place
        if isinstance(value, list):
            for index in range(len(value)):
                inner = (*place, index)
                if inner in self._lines:
                    self.lines[*path, index] = self._lines[inner]
                    self.keys[*path, index] = inner

    def _known(self, given: Mapping[str, Any], keys: Iterable[str], place: Path, prefix: str = "") -> None:
        for key in given:
            if key not in keys and not (prefix and key.startswith(prefix)):
                self._refuse(unknown("key", key, keys), (*place, key))

    def _typed(self, value: Any, kind: type | tuple[type, ...], wanted: str, place: Path) -> Any:
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            self._refuse(f"expected {wanted}, not {_named(value)}", place)
        return value

    def _text(self, value: Any, place: Path) -> str:
        text: str = self._typed(value, str, "text", place)
        return text

    def _flag(self, value: Any, place: Path) -> bool:
        flag: bool = self._typed(value, bool, "true or false", place)
        return flag

    def _texts(self, value: Any, place: Path) -> str | list[str]:
        """Return addresses, as text with blanks or as a list."""
        if isinstance(value, list):
            return [self._text(item, (*place, index)) for index, item in enumerate(value)]
        return self._text(value, place)

    def _objects(self, key: str) -> list[tuple[dict[str, Any], Path]]:
        if key not in self._given:
            self._refuse(f"missing: {key}", ())
        if isinstance(self._given[key], dict):
            self._refuse(
                "expected a list, not an object; what begins with a brace is read as a file of p4p's gateway: begin a YAML file with "
                "the line ---",
                (key,),
            )
        items = self._typed(self._given[key], list, "a list", (key,))
        return [
            (self._typed(item, dict, "an object", (key, index)), (key, index))
            for index, item in enumerate(items)
        ]

    def _side(self, kind: str, item: Mapping[str, Any], place: Path, taken: Mapping[str, str]) -> str:
        """Return our name of a side: theirs, unless it has characters that a key of ours cannot have."""
        if "name" not in item:
            self._refuse("missing: name", place)
        theirs = self._text(item["name"], (*place, "name"))
        if theirs in taken:
            self._refuse(
                f"two of the {kind} have the name {theirs[:80]!r}; give each its own", (*place, "name")
            )
        made = _NOT_IN_A_NAME.sub("_", theirs)[:_LONGEST_NAME] or "side"
        name, count = made, 1
        while name in taken.values():
            count += 1
            name = f"{made[: _LONGEST_NAME - 4]}_{count}"
        self._put((kind, name), {}, place)
        self.keys[(kind, name)] = (*place, "name")
        if name != theirs:
            self._note(f"the name {theirs[:80]!r} becomes {name}", (*place, "name"), (kind, name))
        return name

    # -- the file ------------------------------------------------------------------------------------

    def run(self) -> None:
        """Translate the whole file.

        Raises:
            ConfigurationError: A key is unknown, or its value cannot be used.
        """
        given = self._given
        self._known(given, _TOP_KEYS, ())
        self._version = given.get("version")
        if self._version not in {1, 2} or isinstance(self._version, bool):
            what = "version is missing" if "version" not in given else f"version {self._version!r} is unknown"
            place: Path = ("version",) if "version" in given else ()
            self._note(f"{what[:80]}; the file is read as version 2", place, ())
        if given.get("statsdb"):
            self._note("no database is kept: the tables of the status PVs are in memory", ("statsdb",), ())
        if "readOnly" in given:
            self._put(("read_only",), self._flag(given["readOnly"], ("readOnly",)), ("readOnly",))
        self.tree["clients"], self.tree["servers"] = {}, {}
        for kind in ("clients", "servers"):
            if (kind,) in self._lines:
                self.lines[(kind,)] = self._lines[(kind,)]
                self.keys[(kind,)] = (kind,)
        for item, place in self._objects("clients"):
            self._client(item, place)
        servers: dict[str, str] = {}
        ports: list[tuple[frozenset[str], int]] = []
        for item, place in self._objects("servers"):
            servers[item.get("name", "")] = self._server(item, place, servers, ports)

    def _client(self, item: Mapping[str, Any], place: Path) -> None:
        self._known(item, _CLIENT_KEYS, place, "EPICS_PVA_")
        name = self._side("clients", item, place, self._clients)
        self._clients[item["name"]] = name
        side: Path = ("clients", name)
        provider = item.get("provider", "pva")
        if provider != "pva":
            self._refuse(
                f"there is only the provider 'pva', not {str(provider)[:80]!r}; for Channel Access run its own gateway",
                (*place, "provider"),
            )
        addresses = self._text(item.get("addrlist", ""), (*place, "addrlist"))
        if addresses:
            self._put((*side, "pva", "addr_list"), addresses, (*place, "addrlist"))
        automatic = self._flag(item.get("autoaddrlist", True), (*place, "autoaddrlist"))
        self._put((*side, "pva", "auto_addr_list"), automatic, (*place, "autoaddrlist"))
        self._ports(item, place, side, client=True)
        self._keychain(item, place, side)
        self._variables(item, place, side, client=True)

    def _server(
        self,
        item: Mapping[str, Any],
        place: Path,
        servers: Mapping[str, str],
        ports: list[tuple[frozenset[str], int]],
    ) -> str:
        self._known(item, _SERVER_KEYS, place, "EPICS_PVA")
        name = self._side("servers", item, place, servers)
        side: Path = ("servers", name)
        if "clients" not in item:
            self._refuse("missing: clients; an empty list serves only the status PVs", place)
        listed = self._typed(item["clients"], list, "a list", (*place, "clients"))
        theirs = [self._text(client, (*place, "clients", n)) for n, client in enumerate(listed)]
        ours = [self._client_named(client, (*place, "clients", n)) for n, client in enumerate(theirs)]
        self._put((*side, "clients"), ours, (*place, "clients"))
        interfaces = self._interfaces(item, place, side)
        automatic = self._flag(item.get("autoaddrlist", True), (*place, "autoaddrlist"))
        self._put((*side, "pva", "auto_beacon_addr_list"), automatic, (*place, "autoaddrlist"))
        beacons = self._text(item.get("addrlist", ""), (*place, "addrlist"))
        if beacons:
            self._put((*side, "pva", "beacon_addr_list"), beacons, (*place, "addrlist"))
            if len(interfaces) > 1:
                self._note(
                    "it is used; p4p drops it when there are several interfaces",
                    (*place, "addrlist"),
                    (*side, "pva", "beacon_addr_list"),
                )
        ignored = self._texts(item.get("ignoreaddr", ""), (*place, "ignoreaddr"))
        if ignored:
            self._put((*side, "pva", "ignore_addr_list"), ignored, (*place, "ignoreaddr"))
        self._ports(item, place, side, client=False)
        self._keychain(item, place, side)
        self._variables(item, place, side, client=False)
        self._port_of_its_own(place, side, ports)
        self._rules(item, place, side, theirs)
        return name

    def _client_named(self, theirs: str, place: Path) -> str:
        if theirs not in self._clients:
            known = ", ".join(self._clients) or "none"
            self._refuse(f"there is no client {theirs[:80]!r}; there are: {known[:400]}", place)
        return self._clients[theirs]

    def _interfaces(self, item: Mapping[str, Any], place: Path, side: Path) -> list[str]:
        where = (*place, "interface")
        written = item.get("interface") or []
        found = self._texts(written, where)
        path = (*side, "pva", "intf_addr_list")
        if isinstance(written, list) and written and self._version == 1:
            self._note("version 1 of this format has one interface, as text; the list is used", where, path)
        addresses = found.split() if isinstance(found, str) else found
        if addresses:
            self._put(path, addresses, where)
            if isinstance(written, list):
                for index in range(len(written)):
                    self.keys[*path, index] = (*where, index)
        if len(addresses) > 1:
            self._note(
                "one server listens on all of these addresses; p4p makes a server for each", where, path
            )
        return addresses

    def _ports(self, item: Mapping[str, Any], place: Path, side: Path, *, client: bool) -> None:
        for theirs, variable, ours in (
            ("serverport", "EPICS_PVA_SERVER_PORT", "server_port"),
            ("bcastport", "EPICS_PVA_BROADCAST_PORT", "broadcast_port"),
        ):
            if theirs not in item:
                continue
            where = (*place, theirs)
            value = self._typed(item[theirs], (int, str), "a port number", where)
            if client and theirs == "serverport" and str(value) == "0":
                continue  # p4p's own tests write it; a client has no port of this kind
            found = self._read(variable, str(value), where, client=client)
            assert found is not None
            self._put((*side, "pva", ours), found[1], where)

    def _port_of_its_own(self, place: Path, side: Path, ports: list[tuple[frozenset[str], int]]) -> None:
        """Let a port give way that an earlier server has at the same address, as p4p does."""
        pva = self.tree["servers"][side[1]]["pva"]
        port = pva.get("server_port", 0)
        listed = pva.get("intf_addr_list") or ()
        hosts = frozenset(listed.split() if isinstance(listed, str) else listed)
        if hosts & {"0.0.0.0", "[::]", "::"}:  # noqa: S104 - what is looked for
            hosts = frozenset()
        if port and any(port == other and (not hosts or not at or hosts & at) for at, other in ports):
            pva["server_port"] = 0
            self._note(
                f"TCP port {port} is that of an earlier server at the same address; this one takes any free port, as with p4p",
                (*place, "serverport"),
                (*side, "pva", "server_port"),
            )
            return
        ports.append((hosts, port))

    def _keychain(self, item: Mapping[str, Any], place: Path, side: Path) -> None:
        if item.get("tls_keychain"):
            where = (*place, "tls_keychain")
            self._setting(side, "tls_keychain", self._text(item["tls_keychain"], where), where)

    def _setting(self, side: Path, key: str, value: Any, where: Path) -> None:
        self._put((*side, "pva", key), value, where)

    def _read(self, variable: str, text: str, where: Path, *, client: bool) -> tuple[str, Any] | None:
        try:
            return from_variable(variable, text, client=client)
        except ValueError as error:
            # The value of a keychain may hold its password.
            shown = "" if "KEYCHAIN" in variable else f", not {text[:80]!r}"
            self._refuse(f"{error}{shown}", where)

    def _variables(self, item: Mapping[str, Any], place: Path, side: Path, *, client: bool) -> None:
        """Take keys that are named like variables; for a server EPICS_PVAS_* goes before EPICS_PVA_*."""
        prefixed = sorted((key for key in item if key.startswith("EPICS_PVA")), reverse=True)
        for variable in prefixed:
            where = (*place, variable)
            value = self._typed(item[variable], (str, int, float), "text", where)
            found = self._read(variable, str(value), where, client=client)
            if found is None:
                if variable not in _NEEDLESS:
                    kind = "client" if client else "server"
                    self._refuse(f"no {kind} of the gateway has such a setting; remove it", where)
                self._note(f"it has no effect: {_NEEDLESS[variable]}", where, side)
                continue
            path = (*side, "pva", found[0])
            if not client and not variable.startswith("EPICS_PVAS_") and found[0] in _ALWAYS_GIVEN:
                self._note(
                    f"it has no effect, as with p4p: {_ALWAYS_GIVEN[found[0]]} goes before it", where, side
                )
                continue
            if path in self.keys and self.keys[path] != where and self.keys[path] in self._lines:
                self._note(f"it is used, and {dotted(self.keys[path])} is not, as with p4p", where, path)
            self._setting(side, found[0], found[1], where)

    def _rules(self, item: Mapping[str, Any], place: Path, side: Path, clients: list[str]) -> None:
        holdoff = item.get("getholdoff")
        if holdoff is not None:
            where = (*place, "getholdoff")
            seconds = self._typed(holdoff, (int, float), "a number of seconds", where)
            self._put((*side, "get_holdoff"), float(max(seconds, 0)), where)
        if "statusprefix" in item:
            where = (*place, "statusprefix")
            prefix = self._text(item["statusprefix"], where)
            self._put((*side, "status_prefix"), prefix, where)
            if not prefix:
                self._note(
                    "an empty prefix means no status PVs; p4p serves them as 'clients', 'cache' and so on",
                    where,
                    (*side, "status_prefix"),
                )
        for theirs, path in (("pvlist", (*side, "pvlist")), ("access", (*side, "access", "file"))):
            file = self._text(item.get(theirs, ""), (*place, theirs))
            if file:
                self._put(path, file, (*place, theirs))
        inputs = item.get("acf_client")
        where = (*place, "acf_client")
        if inputs is not None:
            ours = self._client_named(self._text(inputs, where), where)
            self._put((*side, "access", "inputs"), ours, where)
        elif len(clients) > 1 and item.get("access"):
            self._note(
                f"inputs of access security (INPA ... INPU) are read through the first client, {clients[0]}; acf_client names "
                "another one",
                (*place, "access"),
                (*side, "access", "file"),
            )


_ALWAYS_GIVEN: Final = {
    "intf_addr_list": "interface",
    "beacon_addr_list": "addrlist",
    "auto_beacon_addr_list": "autoaddrlist",
    "ignore_addr_list": "ignoreaddr",
}
"""Settings of a server that p4p gives always, so that a variable of the client's name has no effect; and their keys."""

_KINDS: Final[tuple[tuple[type, str], ...]] = (
    (bool, "true or false"), (str, "text"), (list, "a list"), (dict, "an object"), (int, "a number"), (float, "a number"),
)  # fmt: skip


def _named(value: Any) -> str:
    return next((name for kind, name in _KINDS if isinstance(value, kind)), "null")
