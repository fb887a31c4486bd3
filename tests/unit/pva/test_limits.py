"""Named tuples of bounds and times show only what is not usual, so that ``help()`` of a class that takes them reads well."""

import inspect

from appliance.client.context import Context
from appliance.pva.limits import Limits
from appliance.server.quota import Quota
from appliance.server.server import Server


def test_only_what_differs_from_the_default_is_shown() -> None:
    assert repr(Limits()) == "Limits()"
    assert repr(Limits(max_name=5, max_types=2)) == "Limits(max_name=5, max_types=2)"
    assert repr(Quota(connections=3)) == "Quota(connections=3)"


def test_signatures_of_the_client_and_server_do_not_list_each_bound() -> None:
    assert "timings: 'Timings' = Timings()" in str(inspect.signature(Context))
    assert "quota: 'Quota' = Quota()" in str(inspect.signature(Server))
