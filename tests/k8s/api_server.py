"""A small Kubernetes API server over HTTP: create, read, patch, replace, list, watch and delete, kept in memory.

It speaks the real paths and the real watch protocol, validates what it is given against the API schemas in strict mode,
refuses a create of what exists (409) and a replace of what has changed (409), knows operators' kinds once they are
installed, notes every right that a caller needs, and can be told to misbehave.
"""

from __future__ import annotations

import json
import re
import threading
import time
import uuid
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import jsonschema
import kubernetes_validate
import yaml

Manifest = dict[str, Any]
CUSTOM_KINDS = yaml.load((Path(__file__).parent / "custom_kinds.yaml").read_text(), yaml.CSafeLoader)

PATH = re.compile(
    r"/(?:api|apis/(?P<group>[^/]+))/v\d\w*/namespaces/[^/]+/(?P<plural>\w+)(?:/(?P<name>[^/]+))?(?P<log>/log)?$"
)
BUILT_IN = {"", "apps", "batch", "coordination.k8s.io", "networking.k8s.io", "policy", "rbac.authorization.k8s.io"}
VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
NEW_STATUS: dict[str, Manifest] = {
    "deployments": {},
    "jobs": {},
    "statefulsets": {"availableReplicas": 0, "replicas": 0},
}
"""Status of a workload before its controller has looked at it."""


class ApiServer:
    """``with ApiServer() as server: server.url``. ``objects`` is what there is, by (plural, name)."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str], Manifest] = {}
        self.events: list[tuple[int, str, str, Manifest]] = []
        """(resource version, plural, type, object)."""
        self.version = 100
        self.refuse: Callable[[str, str, str], tuple[int, str] | None] = lambda method, plural, name: None
        """Method, plural, name → status and message of a refusal."""
        self.forgotten_below = 0
        """Watches from older versions are answered 410 Gone."""
        self.drop_watches = 0
        """So many watches are cut after one event, in the middle of a line."""
        self.watches: list[str] = []
        """Resource versions that watches asked for."""
        self.log_lines = ["one", "two"]
        self.logs_read: list[str] = []
        """Pods whose log was asked for."""
        self.installed: set[str] = set()
        """API groups of operators."""
        self.rights: set[tuple[str, str, str]] = set()
        """(group, resource, verb) of everything that was asked, as a Role would have to permit it."""
        self.patched: list[tuple[str, str]] = []
        """(plural, name) of every patch."""
        self.changed = threading.Condition(threading.RLock())
        self.closing = False
        handler = type("Handler", (Handler,), {"api": self})
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"

    def __enter__(self) -> ApiServer:
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        with self.changed:
            self.closing = True
            self.changed.notify_all()
        self._http.shutdown()
        self._http.server_close()

    def put(self, plural: str, manifest: Manifest) -> Manifest:
        """Stores an object as a controller would, and tells the watchers."""
        with self.changed:
            key = (plural, manifest["metadata"]["name"])
            kind = "MODIFIED" if key in self.objects else "ADDED"
            self.version += 1
            manifest["metadata"]["resourceVersion"] = str(self.version)
            manifest["metadata"].setdefault("uid", str(uuid.uuid4()))
            manifest["metadata"].setdefault("creationTimestamp", "2026-01-01T00:00:00Z")
            self.objects[key] = manifest
            self.events.append((self.version, plural, kind, json.loads(json.dumps(manifest))))
            self.changed.notify_all()
        return manifest

    def names(self, plural: str) -> set[str]:
        return {name for kind, name in self.objects if kind == plural}


def matches(manifest: Manifest, selector: str) -> bool:
    labels = manifest["metadata"].get("labels", {})
    terms = [term.partition("=") for term in selector.split(",") if term]
    return all(labels.get(key) == value if equals else key in labels for key, equals, value in terms)


def has_fields(manifest: Manifest, selector: str) -> bool:
    """``involvedObject.name=x,type=Warning``."""

    def field(path: str) -> Any:
        value: Any = manifest
        for key in path.split("."):
            value = value.get(key, {})
        return value

    return all(field(path) == value for path, _, value in (t.partition("=") for t in selector.split(",") if t))


def merged(base: Manifest, over: Manifest) -> Manifest:
    """A merge patch: what both kinds that clients send do to mappings of scalars."""
    whole = dict(base)
    for key, value in over.items():
        whole[key] = merged(whole.get(key) or {}, value) if isinstance(value, dict) else value
    return whole


def validate(manifest: Manifest) -> None:
    custom = CUSTOM_KINDS.get(f"{manifest['apiVersion']}/{manifest['kind']}")
    if custom is None:
        kubernetes_validate.validate(manifest, "1.30", strict=True)
    else:
        jsonschema.validate(manifest, custom)


class Handler(BaseHTTPRequestHandler):
    """One request."""

    api: ApiServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or every answer waits 40 ms for an acknowledgement of its header

    def log_message(self, *_: object) -> None:
        """Says nothing."""

    def do_GET(self) -> None:
        self._dispatch("GET")

    def do_POST(self) -> None:
        self._dispatch("POST")

    def do_PUT(self) -> None:
        self._dispatch("PUT")

    def do_PATCH(self) -> None:
        self._dispatch("PATCH")

    def do_DELETE(self) -> None:
        self._dispatch("DELETE")

    def _dispatch(self, method: str) -> None:
        url = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or "null")
        found = PATH.match(url.path)
        if found is None:
            self._status(404, f"the server could not find {url.path}")
            return
        group, plural = found["group"] or "", found["plural"]
        name = found["name"] or (body or {}).get("metadata", {}).get("name", "")
        if group not in BUILT_IN | self.api.installed:
            self._json(404, "404 page not found\n")
            return
        looked = "get" if found["name"] else "watch" if query.get("watch") == "true" else "list"
        self.api.rights.add((group, plural + (found["log"] or ""), VERBS.get(method, looked)))
        if method == "PATCH":
            self.api.patched.append((plural, name))
        refusal = self.api.refuse(method, plural, name)
        if refusal is not None:
            self._status(*refusal)
        elif found["log"]:
            self.api.logs_read.append(name)
            self._log()
        elif method == "GET" and found["name"] is None:
            self._watch(plural, query) if query.get("watch") == "true" else self._list(plural, query)
        elif method == "POST":
            self._create(plural, name, body)
        elif (plural, name) not in self.api.objects:
            self._status(404, f'{plural} "{name}" not found')
        elif method == "GET":
            self._json(200, self.api.objects[plural, name])
        elif method == "PUT":
            self._replace(plural, name, body)
        elif method == "PATCH":
            with self.api.changed:
                self._json(200, self.api.put(plural, merged(self.api.objects[plural, name], body)))
        else:
            with self.api.changed:
                self._json(200, self.api.objects.pop((plural, name)))

    def _create(self, plural: str, name: str, body: Manifest) -> None:
        try:
            validate(body)
        except jsonschema.ValidationError as error:
            self._status(422, f"{name} is invalid: {error.message}")
            return
        if (plural, name) in self.api.objects:
            self._status(409, f'{plural} "{name}" already exists')
            return
        self._json(
            201, self.api.put(plural, body | ({"status": dict(NEW_STATUS[plural])} if plural in NEW_STATUS else {}))
        )

    def _replace(self, plural: str, name: str, body: Manifest) -> None:
        wanted = body["metadata"].get("resourceVersion")
        if wanted and wanted != self.api.objects[plural, name]["metadata"]["resourceVersion"]:
            self._status(409, f'Operation cannot be fulfilled on {plural} "{name}": the object has been modified')
            return
        self._json(200, self.api.put(plural, body))

    def _list(self, plural: str, query: dict[str, str]) -> None:
        items = [
            item
            for (kind, _), item in self.api.objects.items()
            if kind == plural
            and matches(item, query.get("labelSelector", ""))
            and has_fields(item, query.get("fieldSelector", ""))
        ]
        self._json(
            200,
            {
                "kind": "List",
                "apiVersion": "v1",
                "metadata": {"resourceVersion": str(self.api.version)},
                "items": items,
            },
        )

    def _watch(self, plural: str, query: dict[str, str]) -> None:
        self.api.watches.append(query["resourceVersion"])
        seen = int(query["resourceVersion"])
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        if seen < self.api.forgotten_below:
            gone = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version"}
            self._chunk({"type": "ERROR", "object": gone})
            self.wfile.write(b"0\r\n\r\n")
            return
        until = time.monotonic() + float(query.get("timeoutSeconds", "inf"))
        while not self.api.closing:
            if time.monotonic() >= until:
                self.wfile.write(b"0\r\n\r\n")
                return
            with self.api.changed:
                fresh = [e for e in self.api.events if e[0] > seen]
                if not fresh:
                    self.api.changed.wait(timeout=max(0.0, min(1.0, until - time.monotonic())))
                    continue
            for version, kind, change, manifest in fresh:
                seen = version
                if kind == plural and matches(manifest, query.get("labelSelector", "")):
                    self._chunk({"type": change, "object": manifest})
                    if self.api.drop_watches:
                        self.api.drop_watches -= 1
                        self.wfile.write(b'20\r\n{"type": "MODI')
                        self.close_connection = True
                        return
        self.close_connection = True

    def _log(self) -> None:
        text = "".join(line + "\n" for line in self.api.log_lines).encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def _chunk(self, event: Manifest) -> None:
        line = json.dumps(event).encode() + b"\n"
        self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))
        self.wfile.flush()

    def _json(self, status: int, body: Manifest | str) -> None:
        text = (body if isinstance(body, str) else json.dumps(body)).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def _status(self, status: int, message: str) -> None:
        self._json(
            status, {"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "code": status}
        )
