import pytest

from tests.helpers.authn import running_site


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """One certificate service and one issuer for all tests of a module; each test has accounts of its own."""
    with running_site(tmp_path_factory.mktemp("site")) as running:
        yield running
