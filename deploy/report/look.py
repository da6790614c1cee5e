"""Reports in a real browser: no error, no request, all figures, light and dark, on a desk and on a phone.

Called by ``check``, with a browser, a folder to work in and perhaps one to keep pages and pictures in.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from tornado.httpclient import AsyncHTTPClient
from tornado.websocket import WebSocketClientConnection, websocket_connect

PATIENCE = 60  # s for a browser that starts or answers
WINDOWS = {"desk": (1280, 900, False), "phone": (360, 740, True)}
EXPECTED = {  # figures in each section
    "ocean": {"convergence": 1, "selection": 1, "densities": 6, "uncertainty": 1},
    "evil": {"convergence": 1, "densities": 6, "uncertainty": 1},
    "bare": {"convergence": 1, "densities": 6},
}
LEAST_CONTRAST = 4.5  # of text, by the Web Content Accessibility Guidelines 2.2, 1.4.3
# Runs in the page: what a person would see.
LOOK = """
(() => {
  const luminance = colour => {
    const [r, g, b] = colour.match(/[\\d.]+/g).slice(0, 3).map(v => v / 255)
      .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = element => {
    for (let e = element; e; e = e.parentElement) {
      const colour = getComputedStyle(e).backgroundColor;
      if (colour !== "rgba(0, 0, 0, 0)") return colour;
    }
    return "rgb(255, 255, 255)";
  };
  const contrasts = [...document.querySelectorAll("body *")].filter(e =>
    [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim())).map(e => {
      const style = getComputedStyle(e), ink = e.closest("svg") ? style.fill : style.color;
      const [a, b] = [luminance(ink), luminance(behind(e))].sort((x, y) => y - x);
      return [(a + 0.05) / (b + 0.05), e.textContent.trim().slice(0, 40)];
    });
  const figures = {};
  for (const svg of document.querySelectorAll("section figure > svg")) {
    const box = svg.getBoundingClientRect(), id = svg.closest("section").id;
    const drawn = box.width > 200 && box.height > 150 && svg.querySelectorAll("path").length > 5;
    figures[id] = (figures[id] || 0) + drawn;
  }
  const box = id => document.getElementById(id).getBoundingClientRect();
  const ids = [...document.querySelectorAll("[id]")].map(e => e.id);
  return JSON.stringify({
    figures, least: contrasts.sort((x, y) => x[0] - y[0])[0],
    width: document.documentElement.scrollWidth, window: innerWidth, height: document.documentElement.scrollHeight,
    dark: luminance(behind(document.body)) < 0.1, twice: ids.length - new Set(ids).size,
    letters: Math.min(...[...document.querySelectorAll("figure svg text")].map(e => e.getBoundingClientRect().height)),
    extent: [box("components").top, box("densities").bottom],
    hurt: window.hurt === undefined, texts: document.body.textContent,
  });
})()
"""
EVIL = "<img src=x onerror=window.hurt=1>$x$"


class Page:
    """A page of the browser, and what it complained of."""

    def __init__(self, socket: WebSocketClientConnection) -> None:
        self._socket, self._n = socket, 0
        self.errors: list[str] = []
        self.requests: list[str] = []
        self._loaded = False

    async def __call__(self, method: str, **params: Any) -> dict[str, Any]:
        self._n += 1
        await self._socket.write_message(json.dumps({"id": self._n, "method": method, "params": params}))
        while (message := await self._next()).get("id") != self._n:
            pass
        if "error" in message:
            raise RuntimeError(f"{method}: {message['error']['message']}")
        result: dict[str, Any] = message["result"]
        return result

    async def open(self, url: str) -> None:
        self._loaded = False
        await self("Page.navigate", url=url)
        while not self._loaded:
            await self._next()

    async def _next(self) -> dict[str, Any]:
        text = await asyncio.wait_for(self._socket.read_message(), PATIENCE)
        if text is None:
            raise RuntimeError("the browser has gone: run it by hand to see why")
        message: dict[str, Any] = json.loads(text)
        method, params = message.get("method", ""), message.get("params", {})
        if method in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded"):
            self.errors.append(json.dumps(params)[:300])
        elif method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif method == "Page.loadEventFired":
            self._loaded = True
        return message


@contextlib.asynccontextmanager
async def browser(path: str, work: Path) -> AsyncIterator[Page]:
    """A new page of a browser of its own, which ends with it."""
    profile = work / "profile"
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0", f"--user-data-dir={profile}"]
    with (work / "browser.log").open("w") as log:
        process = subprocess.Popen([path, *options, "about:blank"], stdout=log, stderr=log)
    try:
        for _ in range(PATIENCE * 10):
            if (port := profile / "DevToolsActivePort").exists() and port.read_text().count("\n"):
                break
            await asyncio.sleep(0.1)
        else:
            raise TimeoutError(f"no browser after {PATIENCE} s: {(work / 'browser.log').read_text()[-300:]}")
        address = f"http://127.0.0.1:{port.read_text().splitlines()[0]}"
        pages = json.loads((await AsyncHTTPClient().fetch(f"{address}/json/list")).body)
        url = next(page["webSocketDebuggerUrl"] for page in pages if page["type"] == "page")
        page = Page(await websocket_connect(url, max_message_size=2**28))
        for domain in ("Page", "Runtime", "Log", "Network"):
            await page(f"{domain}.enable")
        yield page
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def written(work: Path) -> dict[str, Path]:
    """Reports of an ocean, of one with a variable whose name would do harm, and of that without its data."""
    rng = np.random.default_rng(0)
    shape = 40, 60, 50
    kind = rng.integers(0, 5, shape)
    temperature = np.array([2, 8, 15, 22, 27.0])[kind] + rng.normal(size=shape)
    salinity = np.array([34.2, 35, 35.5, 36.2, 34.5])[kind] + 0.2 * rng.normal(size=shape)
    oxygen = 300 - 6 * temperature + 12 * rng.normal(size=shape)
    salinity[0, 0] = np.nan
    dims = ("time", "lat", "lon")
    ds = xr.Dataset(
        {
            "temperature": (dims, temperature, {"units": "degC"}),
            "salinity": (dims, salinity, {"units": "1e-3"}),
            "oxygen": (dims, oxygen, {"units": "µmol kg-1"}),
        }
    )
    ds.chunk(time=10).to_zarr(work / "ocean.zarr")
    temperature[3, 4, 5] = 60
    ds["temperature"].attrs["units"] = "<script>window.hurt = 1</script>degC"
    ds.rename(temperature=EVIL).chunk(time=10).to_zarr(work / "evil.zarr")
    missing = ("--missing", "drop")
    kinds = ("--components", "3:7", "--covariances", "EEI,VVI,EEE,VEE,VEV,VVV")
    run(work, "select", "ocean.zarr", *kinds, *missing, "--workers", "0", "--output", "ocean-model.zarr")
    run(work, "fit", "evil.zarr", "--components", "5", *missing, "--workers", "0", "--output", "evil-model.zarr")
    for name in ("ocean", "evil"):
        to_page = ("--workers", "2", "--output", f"{name}.html")
        run(work, "report", f"{name}-model.zarr", f"{name}.zarr", *missing, *to_page)
    run(work, "report", "evil-model.zarr", "--output", "bare.html")
    return {name: work / f"{name}.html" for name in EXPECTED}


def run(work: Path, *args: str) -> None:
    done = subprocess.run(
        [str(Path(sys.executable).parent / "daskgmm"), *args], cwd=work, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"daskgmm {args[0]} ended with {done.returncode}: {done.stderr[-500:]}")


async def look(page: Page, name: str, path: Path, scheme: str, window: str, keep: Path | None) -> None:
    width, height, mobile = WINDOWS[window]
    await page("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    metrics = {"width": width, "height": height, "mobile": mobile, "deviceScaleFactor": 2 if mobile else 1}
    await page("Emulation.setDeviceMetricsOverride", **metrics)
    await page.open(path.as_uri())
    seen = json.loads((await page("Runtime.evaluate", expression=LOOK))["result"]["value"])
    if keep:
        await photograph(page, 0, width, seen["height"], keep / f"{name}-{window}-{scheme}.png")
        if (name, window, scheme) == ("ocean", "desk", "light"):  # what the guide to commands shows
            await photograph(page, seen["extent"][0], width, seen["extent"][1], keep / "report.png")
    of = f"{name}, {window}, {scheme}"
    assert not page.errors, f"{of}: the browser complained of {page.errors}"
    asked = [url for url in page.requests if not url.startswith("data:") and url != path.as_uri()]
    assert not asked, f"{of}: it asked for {asked}"
    page.requests.clear()
    assert seen["figures"] == EXPECTED[name], f"{of}: figures are {seen['figures']}"
    assert seen["width"] <= seen["window"] == width, (
        f"{of}: {seen['width']} pixels wide in a window of {seen['window']}"
    )
    assert seen["dark"] == (scheme == "dark"), f"{of}: the ground is not {scheme}"
    assert seen["least"][0] >= LEAST_CONTRAST, f"{of}: {seen['least'][1]!r} has a contrast of {seen['least'][0]:.1f}"
    assert seen["letters"] >= 9, f"{of}: letters of {seen['letters']:.1f} pixels in a figure"
    assert seen["hurt"], f"{of}: a text of the store was run"
    assert name == "ocean" or EVIL in seen["texts"], f"{of}: a text of the store is not shown as it is"
    assert not seen["twice"], f"{of}: {seen['twice']} identifiers are there twice"


async def photograph(page: Page, top: float, width: int, bottom: float, path: Path) -> None:
    clip = {"x": 0, "y": top, "width": width, "height": bottom - top, "scale": 1}
    picture = await page("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
    path.write_bytes(base64.b64decode(picture["data"]))


async def main(path: str, work: Path, keep: Path | None) -> None:
    pages = written(work)
    for page_path in pages.values():
        outside = References(page_path.read_text()).found
        assert not outside, f"{page_path.name} refers to {outside[:3]}"
    views = [(name, scheme, window) for name in pages for scheme in ("light", "dark") for window in WINDOWS]
    async with browser(path, work) as page:
        for name, scheme, window in views:
            await look(page, name, pages[name], scheme, window, keep)
    if keep:
        for page_path in pages.values():
            shutil.copy(page_path, keep)
    sizes = ", ".join(f"{page_path.stat().st_size / 2**10:.0f} KiB" for page_path in pages.values())
    print(
        f"report: {len(views)} views of {len(pages)} pages ({sizes}), light and dark, at {WINDOWS['desk'][0]} and "
        f"{WINDOWS['phone'][0]} pixels: no error, no request, all figures, nothing cut off, texts escaped"
    )


class References(HTMLParser):
    """What a page points to, itself and data within it apart."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            urls = re.findall(r"url\(\s*([^)]*)", value or "") if name != "aria-label" else []
            if name in ("src", "srcset", "href", "xlink:href", "action", "data"):
                urls.append(value or "")
            self.found += [url for url in urls if not url.startswith(("#", "data:"))]


if __name__ == "__main__":
    browser_path, folder, kept = sys.argv[1:]
    if kept:
        Path(kept).mkdir(parents=True, exist_ok=True)
    try:
        asyncio.run(main(browser_path, Path(folder), Path(kept) if kept else None))
    except (AssertionError, OSError, RuntimeError) as error:
        sys.exit(f"report: {error}")
