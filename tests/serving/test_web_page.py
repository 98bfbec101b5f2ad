"""The page at /, in a browser."""

import shutil
import threading

import pytest
from serving_helpers import NAMES, TRANSFORM, encoded, network_with_points, picture

from leenet_fx.serving.app import create_app
from leenet_fx.serving.server import address_of, listen, serve_app
from leenet_fx.serving.settings import Settings
from leenet_fx.serving.torch_network import TorchNetwork

playwright = pytest.importorskip("playwright.sync_api")
BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
pytestmark = pytest.mark.skipif(not BROWSER, reason="there is no Chromium")


@pytest.fixture(scope="module")
def address():
    settings = Settings(port=0, rate=0, api_key="secret", max_pixels=10_000)
    app = create_app(TorchNetwork(network_with_points(), TRANSFORM), settings)
    listening = listen(settings)
    found, started, servers = address_of(listening), threading.Event(), []
    thread = threading.Thread(target=serve_app, args=(app, listening, started.set, servers.append))
    thread.start()
    assert started.wait(60)
    yield found
    servers[0].should_exit = True
    thread.join(60)


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        try:
            found = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        except playwright.Error as error:
            pytest.skip(f"the browser does not start: {str(error)[:200]}")
        yield found
        found.close()


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_an_image_is_sent_and_its_exits_are_shown(address, browser, tmp_path, width, scheme):
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    problems, asked = [], []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(address)
    page.wait_for_selector("#keybox:not([hidden])")
    page.fill("#key", "secret")
    page.dispatch_event("#key", "change")
    page.wait_for_selector("#point:enabled")
    image = tmp_path / "image.png"
    image.write_bytes(encoded(picture(3)))
    page.set_input_files("#file", image)
    page.wait_for_selector("#result:not([hidden])")
    assert page.inner_text("#class") in NAMES
    assert page.locator("#exits > li").count() == 3
    assert page.locator("#exits > li.exited").count() == 1
    assert page.locator("#exits > li.exited .bars .name").count() == 5
    page.wait_for_function("!document.getElementById('total').textContent.startsWith('No')")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    # Another operating point sends the same image again.
    with page.expect_response(lambda response: "point=whole" in response.url):
        page.select_option("#point", "whole")
    large = tmp_path / "large.png"
    large.write_bytes(encoded(picture(0, (200, 200))))
    page.set_input_files("#file", large)
    page.wait_for_selector("#error:not([hidden])")
    assert "40000 pixels" in page.inner_text("#error")
    assert all(url.startswith((address, "blob:", "data:")) for url in asked)
    assert not problems
    page.close()
