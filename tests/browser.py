"""A headless browser for the tests of pages."""

import contextlib
import json
import socket
import subprocess
import time
import urllib.error
import urllib.request


class Browser:
    """Chromium by the WebDriver protocol, with the network switched off."""

    def __init__(self, folder):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.base = f"http://127.0.0.1:{port}"
        self.process = subprocess.Popen(["chromedriver", f"--port={port}"],
                                        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            self.start(folder)
        except BaseException:
            self.process.terminate()
            raise

    def start(self, folder):
        arguments = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
                     "--disable-background-networking", "--disable-component-update",
                     "--disable-sync", f"--user-data-dir={folder}"]
        for _ in range(100):
            with contextlib.suppress(urllib.error.URLError):  # it is still starting
                self.request("GET", "/status")
                break
            time.sleep(0.1)
        session = self.request("POST", "/session", {"capabilities": {"alwaysMatch": {
            "goog:loggingPrefs": {"browser": "ALL"},
            "goog:chromeOptions": {"args": arguments}}}})
        self.base += f"/session/{session['sessionId']}"
        self.tool("Network.enable")
        self.connect(False)

    def connect(self, on):
        """Switches the network on or off; what is no file of ours is out of reach then."""
        self.tool("Network.emulateNetworkConditions", offline=not on, latency=0,
                  downloadThroughput=-1 if on else 0, uploadThroughput=-1 if on else 0)

    def request(self, method, path, body=None):
        request = urllib.request.Request(
            self.base + path, method=method, headers={"Content-Type": "application/json"},
            data=None if body is None else json.dumps(body).encode())
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)["value"]

    def tool(self, command, **parameters):
        return self.request("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})

    def run(self, script):
        return self.request("POST", "/execute/sync", {"script": script, "args": []})

    def key(self, value):
        self.request("POST", "/actions", {"actions": [{"type": "key", "id": "k", "actions": [
            {"type": "keyDown", "value": value}, {"type": "keyUp", "value": value}]}]})

    def close(self):
        try:
            self.request("DELETE", "")
        finally:
            self.process.terminate()
            self.process.wait(30)
