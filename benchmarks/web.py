"""Many uploads at once to `lljax serve`: are all answered, how fast, in how much memory?

    python benchmarks/web.py --clients 50 --width 1200 --height 900

Starts a server of its own, sends one picture from each client at the same moment, and prints one
line of JSON. A client that is told 503 comes again when the server says, as the page does, unless
--once. Memory is read from /proc (Linux).
"""

import argparse
import collections
import http.client
import io
import json
import os
import pathlib
import subprocess
import sys
import threading
import time

import common
from PIL import Image

from lljax import weights


def upload(port, body, headers):
    """One upload: (status, seconds to come again in, the answer)."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    try:
        connection.request("POST", "/api/enhance", body, headers)
        answer = connection.getresponse()
        return answer.status, answer.getheader("Retry-After"), answer.read()
    finally:
        connection.close()


def form(width, height):
    """Body and headers of a form that holds a JPEG."""
    file = io.BytesIO()
    Image.fromarray(common.picture(height, width)).save(file, "JPEG", quality=92)
    body = (b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.jpg"\r\n\r\n'
            + file.getvalue() + b"\r\n--x--\r\n")
    return body, {"Content-Type": "multipart/form-data; boundary=x"}


def peak(pid):
    """Highest resident memory of a process so far, MiB."""
    for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) // 1024
    raise RuntimeError("no VmHWM in /proc")


def cpu(pid):
    """Seconds of processor time that a process has had: other work on the machine leaves it as it
    is, near enough."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(port, pid, options):
    body, headers = form(options.width, options.height)
    upload(port, body, headers)  # compiles
    before, busy = peak(pid), cpu(pid)
    begin = threading.Barrier(options.clients + 1)
    answered, refused, seconds = [], [], []

    def client():
        begin.wait()
        start = time.perf_counter()
        while True:
            try:
                status, again, answer = upload(port, body, headers)
            except OSError as error:
                status, answer = type(error).__name__, b""
            if status == 200:
                with Image.open(io.BytesIO(answer)) as image:
                    status = status if image.size == (options.width, options.height) else "wrong"
            if status == 503:
                refused.append(again)
                if not options.once:
                    time.sleep(float(again))
                    continue
            seconds.append(time.perf_counter() - start)
            answered.append(status)
            return

    threads = [threading.Thread(target=client) for _ in range(options.clients)]
    for thread in threads:
        thread.start()
    begin.wait()
    start = time.perf_counter()
    for thread in threads:
        thread.join()
    spent = time.perf_counter() - start
    return {"model": options.model, "clients": options.clients,
            "picture": f"{options.width}x{options.height}",
            "upload_kB": len(body) // 1000,
            "answers": {str(k): n for k, n in collections.Counter(answered).items()},
            "told_to_come_again": len(refused), "seconds": round(spent, 1),
            "median_seconds": round(sorted(seconds)[len(seconds) // 2], 1),
            "server_cpu_seconds": round(cpu(pid) - busy, 1), "peak_MiB_one_picture": before,
            "peak_MiB": peak(pid), "load": round(os.getloadavg()[0], 1)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--width", type=int, default=1200)
    parser.add_argument("--height", type=int, default=900)
    parser.add_argument("--once", action="store_true", help="take 503 for an answer")
    parser.add_argument("--model", default=weights.DEFAULT)
    parser.add_argument("serve", nargs="*", help="options of lljax serve, after --")
    options = parser.parse_args()
    command = [os.path.join(os.path.dirname(sys.executable), "lljax"), "serve", "--port", "0",
               "--model", options.model, *options.serve]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        address = server.stdout.readline().split()[0]
        print(json.dumps(measure(int(address.rpartition(":")[2]), server.pid, options)))
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
