"""The ``pva:`` sections of configuration files, whose keys are the names of the EPICS variables.

Their values stay as written; `resolve_client` and `resolve_server` read them together with arguments and variables.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from appliance.config.loader import Settings
from appliance.config.secret import FilePath

__all__ = ["ClientSettings", "ServerSettings"]

_Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]
_Seconds = Annotated[float, msgspec.Meta(ge=0)]
_Addresses = str | list[str]
_Options = str | dict[str, str | bool]


class ClientSettings(Settings, frozen=True, kw_only=True):
    """What a configuration file may say about a PVAccess client. For an absent key the environment decides."""

    addr_list: _Addresses | None = None
    auto_addr_list: bool | None = None
    broadcast_port: _Port | None = None
    cert_pv_prefix: str | None = None
    conn_tmo: _Seconds | None = None
    intf_addr_list: _Addresses | None = None
    name_servers: _Addresses | None = None
    no_status_cache: bool | None = None
    server_port: _Port | None = None
    status_cache_dir: FilePath | None = None
    tls_keychain: FilePath | None = None
    tls_keychain_pwd_file: FilePath | None = None
    tls_keylog_file: FilePath | None = None
    tls_options: _Options | None = None
    tls_port: _Port | None = None
    xdg_config_home: str | None = None
    xdg_data_home: str | None = None


class ServerSettings(Settings, frozen=True, kw_only=True):
    """What a configuration file may say about a PVAccess server. For an absent key the environment decides."""

    auto_beacon_addr_list: bool | None = None
    beacon_addr_list: _Addresses | None = None
    beacon_period: _Seconds | None = None
    broadcast_port: _Port | None = None
    cert_pv_prefix: str | None = None
    conn_tmo: _Seconds | None = None
    ignore_addr_list: _Addresses | None = None
    intf_addr_list: _Addresses | None = None
    no_status_cache: bool | None = None
    server_port: _Port | None = None
    status_cache_dir: FilePath | None = None
    tls_keychain: FilePath | None = None
    tls_keychain_pwd_file: FilePath | None = None
    tls_keylog_file: FilePath | None = None
    tls_options: _Options | None = None
    tls_port: _Port | None = None
    tls_stop_if_no_cert: bool | None = None
    xdg_config_home: str | None = None
    xdg_data_home: str | None = None
